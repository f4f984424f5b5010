"""Where does a decode step's time go, and after how many tokens has compiling it paid for itself?

    python benchmarks/step.py                       # the embedded model, int4 and float32, one lane and eight
    python benchmarks/step.py --lanes 1 --weights int4

The prompt is read, the budget filled with known output, and then two steps take turns, plain and compiled:
each writes one token through the sampler of the default profile. Times are those of this process's CPU on one
thread (on a busy machine the clock says nothing), shares are torch.profiler's; it cannot see what is called
from C++, so the shares of the compiled step are those of one that is called from Python. An eviction comes in
64 steps, and its cost is spread over them. What compiling takes is read from the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch._inductor.compile_fx import compile_fx
from torch.profiler import ProfilerActivity, profile, record_function

from scope_cli.cache.cache import ScopeCache
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.prefill import read_prompt, read_to_end
from scope_cli.engine.replay import feed_known
from scope_cli.engine.run import Work, new_cache, new_lane
from scope_cli.engine.run_plan import make_plan
from scope_cli.engine.step import CompiledForget, CompiledStep, EagerStep, Step
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.settings.schema import SamplingSettings

PROMPT, BUDGET, STEPS = 1000, 512, 64
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "scope::product")
ATTENTION = ("aten::_scaled_dot_product_flash_attention_for_cpu",)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--weights", nargs="+", choices=["int4", "float32"], default=["int4", "float32"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| weights | lanes | step | ms | products | attention | sampling, text | eviction | the rest |")
    print("|---|---|---|---|---|---|---|---|---|")
    for weights in args.weights:
        load_in = "int4" if weights == "int4" else None
        settings = load_profile(
            "default",
            {"decode.budget": BUDGET, "sampling.ignore_eos": True, "model.load_in": load_in},
        )
        opened = open_model(settings.profile.model)
        loaded = opened.load()
        for lanes in args.lanes:
            compare(loaded, settings, weights, lanes)


@torch.no_grad()
def compare(loaded: LoadedModel, settings: LoadedProfile, weights: str, lanes: int) -> None:
    ids = loaded.tokenizer("The keeper of the lighthouse wrote every evening. " * 200)["input_ids"][:PROMPT]
    plan = make_plan(settings, loaded.geometry, len(ids))
    cache = new_cache(loaded, settings.profile, shared_shape([plan], lanes))
    writing = []
    for row in range(lanes):
        work = Work(ids, plan, settings.profile.sampling, seed=row)
        prompt = torch.tensor([ids])
        logits = read_to_end(read_prompt(loaded.model, cache, prompt, plan.schedule, lane=row))
        writing.append(new_lane(loaded, work, prompt, logits, row))
        *_, logits = feed_known(loaded.model, cache, row, ids[: BUDGET + 1])
        writing[-1].logits = logits[-1:]
    steps: dict[str, Step] = {
        "plain": EagerStep(loaded.model, cache),
        "compiled": CompiledStep(loaded.model, cache, print),
    }
    began = time.perf_counter()
    write(cache, writing, steps["compiled"])
    compiling_s = time.perf_counter() - began
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(STEPS):
        for name, step in steps.items():
            began = time.process_time()
            write(cache, writing, step)
            taken[name].append(time.process_time() - began)
    with called_from_python():
        visible = {"plain": steps["plain"], "compiled": CompiledStep(loaded.model, cache, print)}
        for _ in range(3):
            write(cache, writing, visible["compiled"])
    for name, step in visible.items():
        milliseconds = 1000 * statistics.median(taken[name])
        cells = [f"{share:.0%}" for share in shares(cache, writing, step)]
        print(
            f"| {weights} | {lanes} | {name} | {milliseconds:.1f} | " + " | ".join(cells) + " |", flush=True
        )
    saved = statistics.median(taken["plain"]) - statistics.median(taken["compiled"])
    pays = f"paid for after {compiling_s / saved:,.0f} steps" if saved > 0 else "never paid for"
    print(f"  compiling took {compiling_s:.1f} s, {pays}", flush=True)
    if lanes == 1:
        plain_ms = eviction_ms(cache)
        CompiledForget(CompiledStep(loaded.model, cache, print), cache, print)
        print(
            f"  an eviction alone takes {plain_ms:.1f} ms, compiled {eviction_ms(cache):.1f} ms", flush=True
        )
        for top_k in (work.sampling.top_k, None):
            lane = new_lane(
                loaded, replace(work, sampling=sampling_of(work, top_k)), prompt, writing[0].logits
            )
            print(f"  a token is sampled in {median_ms(lane.choose):.2f} ms with top_k {top_k}", flush=True)


@contextmanager
def called_from_python() -> Iterator[None]:
    """What is compiled meanwhile is called from Python, and compiled anew before and after."""
    torch._dynamo.reset()

    def plain(*args, config_patches=None, **more):
        return compile_fx(*args, **more)

    with patch("torch._inductor.compile_fx.compile_fx", plain):
        yield
    torch._dynamo.reset()


def eviction_ms(cache: ScopeCache) -> float:
    """Of one token, which is all that leaves at every step of the paper's `slide`; nothing leaves here."""
    nothing = torch.zeros(5, 1, 1, 1, dtype=torch.int64)
    for _ in range(3):
        cache.forget(nothing, 1)
    return median_ms(lambda: cache.forget(nothing, 1))


def sampling_of(work: Work, top_k: int | None) -> SamplingSettings:
    return work.sampling.model_copy(update={"top_k": top_k})


def median_ms(run: Callable[[], object], times: int = 20) -> float:
    taken = []
    for _ in range(times):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return 1000 * statistics.median(taken)


def write(cache: ScopeCache, writing: list, step: Step) -> None:
    """A token of every lane, as decode.py writes it."""
    with record_function("scope: sampling"):
        newest = [int(lane.choose()[0]) for lane in writing]
        for lane, token in zip(writing, newest, strict=True):
            lane.receive(token)
    logits = step(torch.tensor(newest).unsqueeze(1))
    with record_function("scope: eviction"):
        cache.end_step()
    for lane in writing:
        lane.logits = logits[lane.row : lane.row + 1]


def shares(cache: ScopeCache, writing: list, step: Step) -> list[float]:
    """Products, attention, sampling, eviction and the rest, of the time of some steps."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            write(cache, writing, step)
    events = {event.key: event for event in profiler.key_averages()}
    total = sum(event.self_cpu_time_total for event in events.values())
    inside = [events[f"scope: {part}"].cpu_time_total / total for part in ("sampling", "eviction")]
    products, attention = (
        sum(events[name].self_cpu_time_total for name in names if name in events) / total
        for names in (PRODUCTS, ATTENTION)
    )
    return [products, attention, *inside, 1 - products - attention - sum(inside)]


if __name__ == "__main__":
    main()
