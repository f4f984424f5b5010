# ruff: noqa: E402
"""How long does a decode step take on this CPU, native and through the model's own layers?

    python benchmarks/step.py                    # the embedded model; one lane, eight; plain and int8 slots
    SCOPE_NATIVE=avx2 python benchmarks/step.py  # as a CPU without AVX-512 computes
    python benchmarks/step.py --lanes 1 --held 1000 --threads 1
    python benchmarks/step.py --alone            # native steps one after the other, as a run takes them
    python benchmarks/step.py --alone --busy 2   # beside two other processes at full load
    python benchmarks/step.py --model random:mistral-7b --load-in int4 --turns 10

The cache holds so many tokens of a prompt in each lane, nothing is evicted, and the two steps take turns:
each writes one token. Milliseconds are the clock's, median (least), of the step alone. What must be read
(weights, keys and values) over the bandwidth measured beside it is the least that a step could take. Nothing
else may run meanwhile.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

from scope_cli.machine.setup import wait_briefly

wait_briefly()  # as `scope` does, before torch is imported

import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.prefill import read_prompt, read_to_end
from scope_cli.engine.roofline import bandwidth, step_weight_bytes
from scope_cli.engine.run import new_cache
from scope_cli.engine.run_plan import make_plan
from scope_cli.engine.step import EagerStep, Step, new_step
from scope_cli.machine.description import processor
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import load_profile

TEXT = "The keeper of the lighthouse wrote every evening what the sea had brought. "
ROOM = 20  # tokens, beside those that are written in a measurement


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--load-in", default="auto")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--held", type=int, nargs="+", default=[1000, 5000], help="tokens, in each lane")
    parser.add_argument("--kv", nargs="+", choices=["plain", "int8"], default=["plain", "int8"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="no steps through the layers between them")
    parser.add_argument("--busy", type=int, default=0, help="other processes at full load meanwhile")
    parser.add_argument("--turns", type=int, default=40, help="steps of each kind; the first is not counted")
    args = parser.parse_args()
    asked = {"model.name": args.model, "model.load_in": args.load_in, "model.threads": args.threads}
    loaded = open_model(load_profile("default", asked).profile.model).load()
    form = loaded.opened.load_in or str(loaded.dtype)
    chosen = os.environ.get("SCOPE_NATIVE", "the best there is")
    print(f"{args.model}; {processor()}; {args.threads} threads; weights {form}; instructions: {chosen}\n")
    print("| lanes | held by each | slots | native, ms | layers, ms | ratio | share of the bandwidth |")
    print("|--:|--:|---|--:|--:|--:|--:|")
    with others(args.busy):
        for lanes, held, kv in product(args.lanes, args.held, args.kv):
            if lanes * held <= 16_000:
                compare(loaded, lanes, held, kv, args.turns, args.alone)


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many processes that do nothing but take their share of the cores."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@torch.no_grad()
def compare(loaded: LoadedModel, lanes: int, held: int, kv: str, turns: int, alone: bool) -> None:
    asked = {"decode.strategy": "full", "sampling.max_new_tokens": 2 * turns + ROOM, "cache.kv": kv}
    settings = load_profile("default", asked)
    ids = loaded.tokenizer(TEXT * (held // 10))["input_ids"][:held]
    plan = make_plan(settings, loaded.geometry, len(ids))
    cache = new_cache(loaded, settings.profile, shared_shape([plan], lanes))
    read_to_end(read_prompt(loaded.model, cache, torch.tensor([ids]), plan.schedule, lane=0))
    for lane in range(1, lanes):
        cache.copy_prompt(0, lane)
    steps: dict[str, Step] = {
        "native": new_step(loaded.model, cache, False, print, native=True),
        "layers": EagerStep(loaded.model, cache),
    }
    if alone:
        del steps["layers"]
    tokens = torch.tensor([[ids[-1]]] * lanes)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns):
        for name, step in steps.items():
            elapsed_s = write(cache, step, tokens)
            if turn:  # the first one makes itself ready
                taken[name].append(1000 * elapsed_s)
    cells = [f"{statistics.median(times):.1f} ({min(times):.1f})" for times in taken.values()]
    native, *layers = (statistics.median(times) for times in taken.values())
    cells += [f"{layers[0] / native:.1f}x"] if layers else ["-", "-"]
    reads = step_weight_bytes(loaded.model, lanes) + cache.reading().read_bytes
    share = reads / bandwidth(loaded.device) / (native / 1000)
    print(
        f"| {lanes} | {held:,} | {kv} | {' | '.join(cells)} | {share:.0%} |",
        flush=True,
    )


def write(cache: ScopeCache, step: Step, tokens: torch.Tensor) -> float:
    """Seconds of a step, which writes a token of every lane."""
    began = time.perf_counter()
    step(tokens)
    elapsed_s = time.perf_counter() - began
    cache.end_step()
    return elapsed_s


if __name__ == "__main__":
    main()
