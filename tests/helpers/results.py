"""Results of evaluations and profiles, made up."""

import numpy as np

from scope_cli.measure.evaluate.compare import mean_bytes
from scope_cli.measure.profiling.result import (
    KV,
    UNWRITTEN,
    MemoryMap,
    Peaks,
    Result,
    Series,
    Speed,
    Time,
    Transfer,
    packed,
)

HELD = {
    "held_mean": 50.0, "held_peak": 80, "full_mean": 100.0, "full_peak": 200, "overhead": 5, "allocated": 90
}  # fmt: skip


def fidelity(name, kl, text="a", tokens=320):
    blocks = {"kl": kl, "top1": [0.5] * len(kl), "nll": [2.0] * len(kl)}
    row = {"text_id": text, "output_tokens": tokens, "block_tokens": 32, "blocks": blocks, "bytes": HELD}
    return {"name": name, "rows": [row], "bytes": mean_bytes([row])}


def result(*profiles, kind="fidelity"):
    return {"scope_evaluate": kind, "profiles": list(profiles)}


MIB = 2**20


def made_up(label="slide 128", evictions=5, runs_out=50):
    """Six positions of prompt and four of output in two layers, at two times."""
    values = np.full((2, 2, 5), 100, dtype=np.uint8)
    values[0, :, 4] = UNWRITTEN
    values[1, 1, 3] = 0
    n = list(range(1, 101))
    plan = {
        "weight_bytes": 500 * MIB, "cache_bytes": 8 * MIB, "held_peak_bytes": 7 * MIB,
        "held_mean_bytes": 6 * MIB,
        "held_end_bytes": 7 * MIB, "prefill_peak_bytes": 10 * MIB, "decode_peak_bytes": 9 * MIB,
        "free_bytes": 20 * MIB, "full_runs_out_at": runs_out, "room_for_output": 1000,
    }  # fmt: skip
    return Result(
        label=label, policy="slide, budget 128", prompt_tokens=6, output_tokens=100,
        model={"name": "tiny", "dtype": "float32", "device": "cpu"}, machine={}, versions={}, profile={},
        plan=plan,
        peaks=Peaks(900 * MIB, 10 * MIB, 9 * MIB, "made up"),
        kv=KV(8 * MIB, MIB, 7 * MIB, 6.0 * MIB, 7 * MIB, 12 * MIB, 9.0 * MIB),
        transfer=Transfer(1e9, 0.0, 1e8, 0, evictions, 50),
        speed=Speed(300.0, 10.0, n[1:], [10.0 + i % 3 for i in n[1:]]),
        time=Time(1.0, 9.0, 2.0, 1.0, 6.0, "made up"),
        series=Series(n, [min(i, 60) * MIB // 8 for i in n], [i * MIB // 8 for i in n]),
        map=MemoryMap([1, 100], [0, 3], [0, 3, 6, 7, 8, 10], 6, packed(values)),
    )  # fmt: skip
