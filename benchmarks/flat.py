"""Is token 8,000 as fast as token 700? Milliseconds per token of scope at --budget 512, beside transformers.

    python benchmarks/flat.py

Really writes 8,000 tokens after a short prompt. Then four contestants take turns, a block of 64 tokens each
(one eviction), so that all meet the same noise: scope at positions 700 and 8,000, and transformers'
DynamicCache at the same positions, its cache filled by reading the text that scope wrote. Prints medians,
means and the ratios of the means.
"""

import argparse
import statistics
import time

import torch
from transformers import DynamicCache

from scope_cli.engine.decode import step_on
from scope_cli.engine.prefill import read_prompt, read_to_end
from scope_cli.engine.run import new_cache, new_lane, new_work
from scope_cli.engine.step import EagerStep
from scope_cli.models.model import open_model
from scope_cli.settings.load import load_profile

BLOCK = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--positions", type=int, nargs=2, default=[700, 8000])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    near, far = args.positions
    settings = load_profile(
        "default",
        {
            "model.load_in": None,  # the same plain weights for all
            "decode.budget": args.budget,
            "decode.recent": 128,
            "sampling.ignore_eos": True,
            "sampling.temperature": 0.8,
            "sampling.max_new_tokens": None,
        },
    )
    opened = open_model(settings.profile.model, say=print)
    prompt = opened.encode("Write a very long novel about a lighthouse keeper.", settings.profile.prompt)
    loaded = opened.load()

    def scope_at(position):
        """A lane that has really written up to `position`, and how to write one token more."""
        work = new_work(settings, opened.geometry, prompt)
        cache = new_cache(loaded, settings.profile, work.plan.shape)
        ids, newest = torch.tensor([prompt]), torch.zeros(1, 1, dtype=torch.int64)
        logits = read_to_end(read_prompt(loaded.model, cache, ids, work.plan.schedule))
        lane = new_lane(loaded, work, ids, logits)
        step = EagerStep(loaded.model, cache)

        def write():
            lane.receive(int(lane.choose()[0]))
            step_on(step, cache, [lane], newest)

        with torch.no_grad():
            while len(prompt) + lane.written < position:
                write()
        print(f"written up to position {position:,}", flush=True)
        return lane, cache, write

    lane, far_cache, write_far = scope_at(far - BLOCK * args.rounds)
    _, _, write_near = scope_at(near)
    text = lane.ids[:, :far]

    plain = opened.load(attention="sdpa").model

    def dynamic_at(position):
        cache = DynamicCache(config=plain.config)
        for chunk in text[:, :position].split(512, 1):
            plain(chunk, past_key_values=cache, logits_to_keep=1)

        def write():
            logits = plain(text[:, :1], past_key_values=cache).logits[:, -1]
            return int(logits.argmax())

        return write

    with torch.no_grad():
        contestants = {
            f"scope at {near:,}": write_near,
            f"scope at {far:,}": write_far,
            f"DynamicCache at {near:,}": dynamic_at(near),
            f"DynamicCache at {far:,}": dynamic_at(far - BLOCK * args.rounds),
        }
        took = {name: [] for name in contestants}
        for _ in range(args.rounds):
            for name, write in contestants.items():
                for _ in range(BLOCK):
                    start = time.perf_counter()
                    write()
                    took[name].append(1000 * (time.perf_counter() - start))
    for name, times in took.items():
        print(f"{name:24} {statistics.median(times):7.1f} ms/token (mean {statistics.mean(times):.1f})")
    mean = {name: statistics.mean(times) for name, times in took.items()}
    scope_near, scope_far, dynamic_near, dynamic_far = mean.values()
    print(f"scope, {far:,} over {near:,}: {scope_far / scope_near:.3f}")
    print(f"DynamicCache, {far:,} over {near:,}: {dynamic_far / dynamic_near:.3f}")
    print(f"DynamicCache over scope at {far:,}: {dynamic_far / scope_far:.2f}")
    print(f"held by scope at {far:,}: {far_cache.reading().kept_generated} generated tokens")


if __name__ == "__main__":
    main()
