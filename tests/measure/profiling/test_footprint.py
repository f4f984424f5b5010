"""The plan against the cache that is really built, against sums by hand, and against trying every size."""

import pytest
import torch

from scope_cli.engine.run import generate, new_work
from scope_cli.errors import UsageError
from scope_cli.events import Token
from scope_cli.measure.profiling import footprint as f
from scope_cli.models.random_weights import CONFIGS
from scope_cli.models.shapes import ModelShape, shape_of
from tests.helpers.caches import loaded_tiny
from tests.helpers.configs import GEMMA3_27B, LLAMA_8B, LLAMA_70B, QWEN3_8B
from tests.helpers.plain import load_profile

GIB = 2**30


def settings(**keys):
    typed = {"sampling.ignore_eos": True, **{key.replace("__", "."): value for key, value in keys.items()}}
    return load_profile("default", typed)


def published(config, device="cuda", dtype="bfloat16"):
    return f.Target(shape_of(config), device, dtype)


def planned(config, prompt_tokens, lanes=1, **keys):
    return f.footprint(settings(**keys), published(config), prompt_tokens, lanes)


def test_llama_8b_by_hand():
    """8,000 + 4,096 tokens, budget 2,048: 8,000 + 2,049 slots, in whole steps of 64, in 32 layers of 8 KV
    heads of 128."""
    made = f.footprint(
        settings(decode__budget=2048, sampling__max_new_tokens=4096), published(LLAMA_8B), 8000
    )
    slots = 10112  # 158 * 64, the least that 8,000 + 2,049 fit into
    per_slot = 8 * 128 * 2 * 2 + 8 * (4 + 2)  # key and value; position and bias of each KV head
    per_layer = slots * per_slot + 8 * 2049 * 4 + 32 * 128 * 2  # list of free slots; ring of one query
    assert made.cache_bytes == made.lane_bytes == 32 * per_layer + 5 * 8
    assert made.weight_bytes == 16_060_522_496
    assert made.full_end_bytes == (8000 + 4095) * 131_072
    assert made.held_peak_bytes == (8000 + 2048) * 131_072
    assert made.staging_bytes == 0


def test_llama_70b_by_hand():
    """2,000 + 513 slots: 40 steps of 64."""
    made = f.footprint(
        settings(decode__budget=512, sampling__max_new_tokens=1000), published(LLAMA_70B), 2000, 4
    )
    lane = 80 * (2560 * (8 * 128 * 4 + 8 * 6) + 8 * 513 * 4 + 64 * 128 * 2) + 5 * 8
    assert (made.lane_bytes, made.cache_bytes) == (lane, 4 * lane)
    assert made.weight_bytes == 141_107_412_992


def test_qwen3_8b_by_hand():
    """900 + 100 slots: 16 steps of 64."""
    made = f.footprint(
        settings(decode__strategy="full", sampling__max_new_tokens=100), published(QWEN3_8B), 900
    )
    assert made.cache_bytes == 36 * (1024 * (8 * 128 * 4 + 8 * 6) + 8 * 100 * 4 + 32 * 128 * 2) + 5 * 8


def test_gemma3_27b_by_hand():
    """52 of 62 layers have a window of 1,024 tokens; the budget governs the other ten: 3,000 + 513 slots."""
    made = f.footprint(
        settings(decode__budget=512, sampling__max_new_tokens=2000), published(GEMMA3_27B), 3000
    )
    per_slot = 16 * 128 * 4 + 16 * 6
    full = 10 * (3520 * per_slot + 16 * 513 * 4 + 32 * 128 * 2)
    assert made.cache_bytes == full + 52 * 1024 * per_slot + 5 * 8
    assert made.full_end_bytes == 4999 * 10 * 16 * 128 * 4 + 52 * 1024 * 16 * 128 * 4


# One slot of a KV head. plain: 2 bytes for each number of key and value; int8: one, and a float16 scale for
# each of both; K8V4: that key, and half a byte for each number of the value, with 4 bytes (scale, minimum)
# for 32 of them.
#   head_dim 128: 512, 2 * (128 + 2) = 260, 130 + 64 + 4 * 4 = 210
#   head_dim 256: 1,024, 2 * (256 + 2) = 516, 258 + 128 + 8 * 4 = 418
# A token takes layers * 8 KV heads * that: Llama and Mistral 32 * 8 = 256 times, Qwen3 36 * 8 = 288 times,
# Gemma 3 in its 8 full layers 64 times; its 40 windows hold 1,024 tokens of the prompt, 327,680 slots.
ON_A_CARD = {  # weights; by format a prompt of 4,096 tokens, and 2,048 tokens of the output
    "llama-3.1-8b": (
        16_060_522_496,
        {
            "plain": (536_870_912, 268_435_456),
            "int8": (272_629_760, 136_314_880),
            "k8v4": (220_200_960, 110_100_480),
        },
    ),
    "qwen3-8b": (
        16_381_470_720,
        {
            "plain": (603_979_776, 301_989_888),
            "int8": (306_708_480, 153_354_240),
            "k8v4": (247_726_080, 123_863_040),
        },
    ),
    "mistral-7b": (
        14_496_047_104,
        {
            "plain": (536_870_912, 268_435_456),
            "int8": (272_629_760, 136_314_880),
            "k8v4": (220_200_960, 110_100_480),
        },
    ),
    "gemma-3-12b": (
        23_532_068_352,
        {
            "plain": (268_435_456 + 335_544_320, 134_217_728),
            "int8": (135_266_304 + 169_082_880, 67_633_152),
            "k8v4": (109_576_192 + 136_970_240, 54_788_096),
        },
    ),
}


@pytest.mark.parametrize("name", ON_A_CARD)
@pytest.mark.parametrize("kv", ["plain", "int8", "k8v4"])
def test_the_models_of_the_card_by_hand(name, kv):
    """What is planned without a card, in bfloat16: weights, and keys and values of prompt and output."""
    weights, by_format = ON_A_CARD[name]
    prompt, output = by_format[kv]
    chosen = settings(
        model__name=f"random:{name}", decode__budget=2048, sampling__max_new_tokens=8000, cache__kv=kv
    )
    target = f.Target(shape_of(CONFIGS[name]), "cuda", "bfloat16")
    held = f.held_by_token(chosen, target, 4096, 1)
    assert target.weight_bytes == weights
    assert (held[0], max(held) - held[0]) == (prompt, output)


CASES = {
    "slide": {"decode__strategy": "slide"},
    "slide, every token": {"decode__strategy": "slide", "decode__interval": 1},
    "adaptive": {"decode__strategy": "adaptive"},
    "discontinuous": {"decode__strategy": "discontinuous"},
    "rpc": {"decode__strategy": "rpc", "decode__interval": 8},
    "full": {"decode__strategy": "full"},
    "unprotected": {"decode__protect_prompt": False, "decode__sinks": 2},
    "total budget": {"decode__protect_prompt": False, "decode__total_budget": 30},
    "snapkv": {"prefill__method": "snapkv", "prefill__budget": 20, "prefill__window": 8},
    "pyramidkv": {"prefill__method": "pyramidkv", "prefill__budget": 20, "prefill__window": 8},
    "window scorer": {"decode__scorer": {"name": "window", "memory": 0.8}},
}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("case", CASES)
def test_kv_bytes_of_the_plan_are_those_of_the_run_to_the_byte(case, family, tmp_path):
    chosen = settings(
        **{"decode__budget": 16, "decode__recent": 4, "sampling__max_new_tokens": 60, **CASES[case]}
    )
    loaded = loaded_tiny(tmp_path, family)
    ids = list(range(2, 50))
    events = list(generate(loaded, chosen.profile, [new_work(chosen, loaded.geometry, ids)]))
    readings = [event.reading for event in events if isinstance(event, Token)]
    dtype = str(loaded.dtype).removeprefix("torch.")
    shape = ModelShape("tiny", family, loaded.geometry, 48, dtype, {})
    made = f.footprint(chosen, f.Target(shape, "cpu", dtype), len(ids))
    held, full = ([getattr(one, key) for one in readings] for key in ("held_bytes", "full_bytes"))
    assert made.cache_bytes == events[-1].reading.allocated_bytes
    assert (made.held_peak_bytes, made.held_end_bytes) == (max(held), held[-1])
    assert made.held_mean_bytes == sum(held) / len(held)
    assert (made.full_end_bytes, made.full_mean_bytes) == (full[-1], sum(full) / len(full))


def test_adaptive_holds_about_half_the_heavy_hitters_less_than_slide():
    """SCOPE, section 3.3: the allowance grows from R to W over the output, which is much longer than W."""
    target, sizes = (
        published(LLAMA_8B),
        {"decode__budget": 1024, "decode__recent": 256, "decode__interval": 1},
    )
    mean = {
        strategy: f.footprint(
            settings(decode__strategy=strategy, sampling__max_new_tokens=60_000, **sizes), target, 100
        ).held_mean_bytes
        for strategy in ("slide", "adaptive")
    }
    less = (mean["slide"] - mean["adaptive"]) / target.shape.geometry.token_bytes(2)
    assert less == pytest.approx((1024 - 256) / 2, rel=0.03)


def tried(fits, most):
    """The slow way: every number."""
    found = 0
    while found < most and fits(found + 1):
        found += 1
    return found


@pytest.mark.parametrize("limit", [0, 1, 37, 100])
def test_largest_is_what_trying_every_number_finds(limit):
    assert f.largest(lambda n: n <= limit, 100) == tried(lambda n: n <= limit, 100) == limit


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_limits_fit_and_one_more_does_not(device):
    target = published(LLAMA_8B, device)
    chosen = settings(decode__budget=512, sampling__max_new_tokens=40_000)
    memory = 18 * GIB
    most = f.limits(chosen, target, 4000, 1, memory)

    def total(one=chosen, prompt=4000, lanes=1):
        return f.footprint(one, target, prompt, lanes).total_bytes

    assert total(prompt=most.prompt_tokens) <= memory < total(prompt=most.prompt_tokens + 1)
    assert total(lanes=most.lanes) <= memory < total(lanes=most.lanes + 1)
    budget = most.budget
    assert total(f.changed(chosen, budget=budget)) <= memory < total(f.changed(chosen, budget=budget + 1))
    assert most.output_tokens == 131_072 - 4000 and not most.budget_is_output
    full = f.runs_out_at(chosen, target, 4000, 1, memory)
    endless = f.full_cache(chosen)
    assert total(f.changed(endless, full)) <= memory < total(f.changed(endless, full + 1))


def test_a_full_cache_with_sliding_windows_runs_out_where_it_does():
    chosen = settings(sampling__max_new_tokens=100)
    target, memory = published(GEMMA3_27B), 56 * GIB
    full = f.runs_out_at(chosen, target, 500, 1, memory)
    endless = f.full_cache(chosen)

    def total(output):
        return f.footprint(f.changed(endless, output), target, 500).total_bytes

    assert total(full) <= memory < total(full + 1)


def test_nothing_fits_where_the_weights_do_not():
    chosen = settings(sampling__max_new_tokens=100)
    most = f.limits(chosen, published(LLAMA_70B), 100, 1, 24 * GIB)
    assert (most.prompt_tokens, most.lanes, most.output_tokens, most.budget) == (0, 0, 0, 0)
    assert f.runs_out_at(chosen, published(LLAMA_70B), 100, 1, 24 * GIB) == -1


def test_beyond_the_context_is_refused_as_it_is_when_generating():
    with pytest.raises(UsageError, match="context of 131,072"):
        f.footprint(settings(sampling__max_new_tokens=131_072), published(LLAMA_8B), 1)


def test_a_longer_chunk_needs_more():
    small, large = (
        f.footprint(
            settings(prefill__chunk=chunk, sampling__max_new_tokens=100), published(LLAMA_8B), 8000
        ).prefill_peak_bytes
        for chunk in (512, 4096)
    )
    assert large - small > 3 * (4096 - 512) * 14336 * 2  # the feed-forward layer alone


def test_dtype_halves_what_is_made_of_numbers():
    chosen = settings(decode__budget=2048, sampling__max_new_tokens=4096)
    wide, narrow = (
        f.footprint(chosen, published(LLAMA_8B, "cuda", dtype), 8000) for dtype in ("float32", "bfloat16")
    )
    assert wide.weight_bytes == 2 * narrow.weight_bytes
    assert wide.full_end_bytes == 2 * narrow.full_end_bytes
    assert torch.float32.itemsize == f.Target(shape_of(LLAMA_8B), "cuda", "float32").dtype_bytes


def test_a_plan_counts_less_where_the_native_library_computes(monkeypatch):
    """The mask of a prompt's last chunk and the space to unpack slots in, where weights are packed; the keys
    that an eviction looks at."""
    chosen = settings(decode__budget=64, decode__recent=16, sampling__max_new_tokens=200, cache__kv="int8")

    def planned(load_in, native):
        monkeypatch.setenv("SCOPE_NATIVE", native)
        return f.footprint(chosen, f.Target(shape_of(LLAMA_8B), "cpu", "float32", load_in), 20_000)

    off, plain, packed = planned("int4", "off"), planned(None, "plain"), planned("int4", "plain")
    assert off.cache_bytes == plain.cache_bytes == packed.cache_bytes
    assert off.prefill_peak_bytes == plain.prefill_peak_bytes > packed.prefill_peak_bytes
    assert off.decode_peak_bytes > plain.decode_peak_bytes > packed.decode_peak_bytes
