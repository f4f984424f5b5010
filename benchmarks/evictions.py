# ruff: noqa: E402
"""What does an eviction at every token, as the paper's `slide` has it, add to a step?

    python benchmarks/evictions.py [--prompt N] [--budget N] [--kv plain|int8] [--scorer NAME] [--turns N]

The embedded model with one thread. Two caches have read the same prompt and written past the budget; one
evicts a token at every step, the other nothing. They take turns; CPU seconds of step and eviction together,
and of the end of a step alone: where something is evicted, that is the eviction.
"""

import argparse
import statistics
import time

from scope_cli.machine.setup import wait_briefly

wait_briefly()  # as `scope` does, before torch is imported

import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.engine.prefill import read_prompt, read_to_end
from scope_cli.engine.run import new_cache
from scope_cli.engine.run_plan import make_plan
from scope_cli.engine.step import Step, new_step
from scope_cli.models.model import open_model
from scope_cli.settings.load import load_profile

TEXT = "The keeper of the lighthouse wrote every evening what the sea had brought. "


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--kv", default="int8")
    parser.add_argument("--scorer", default="attention")
    parser.add_argument("--turns", type=int, default=100)
    args = parser.parse_args()
    loaded = open_model(load_profile("default", {"model.threads": 1}).profile.model).load()
    ids = loaded.tokenizer(TEXT * (args.prompt // 10))["input_ids"][: args.prompt]
    slide = {"decode.scorer": args.scorer, "decode.budget": args.budget, "decode.recent": args.budget // 4}
    policies = {"full": {}, "slide": {"decode.interval": 1, **slide}}
    contenders: list[tuple[ScopeCache, Step]] = []
    for strategy, more in policies.items():
        tokens = {"sampling.max_new_tokens": args.budget + args.turns + 10, "cache.kv": args.kv}
        settings = load_profile("default", {"decode.strategy": strategy, **more, **tokens})
        plan = make_plan(settings, loaded.geometry, len(ids))
        cache = new_cache(loaded, settings.profile, plan.shape)
        read_to_end(read_prompt(loaded.model, cache, torch.tensor([ids]), plan.schedule))
        contenders.append((cache, new_step(loaded.model, cache, False, print, native=True)))
    taken: list[list[float]] = [[], []]
    ends: list[list[float]] = [[], []]
    for written in range(1, args.budget + args.turns + 1):
        for times, own, (cache, step) in zip(taken, ends, contenders, strict=True):
            began = time.process_time()
            step(torch.tensor([[ids[-1]]]))
            stepped = time.process_time()
            cache.end_step()
            if written > args.budget:
                times.append(1000 * (time.process_time() - began))
                own.append(1000 * (time.process_time() - stepped))
    whole, evicting = map(statistics.median, taken)
    print(f"prompt {args.prompt:,}, budget {args.budget:,}, slots {args.kv}, scorer {args.scorer}; CPU ms:")
    print(f"{evicting:.1f} ms with an eviction at every token, {whole:.1f} without: {evicting / whole:.2f}x")
    without, alone = map(statistics.median, ends)
    print(f"{alone:.1f} ms for an eviction alone, {without:.1f} for a step's end without one")


if __name__ == "__main__":
    main()
