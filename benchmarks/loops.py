"""Ten prompts that loop at temperature 0: what becomes of them with `--on-loop rollback`?

    python benchmarks/loops.py [--tokens N] [--rows FILE]

The embedded model writes each twice, in five lanes. Prints the table of docs/results/quality.md; `--rows`
keeps what it is made of.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from scope_cli.engine.loops import LoopWatch
from scope_cli.engine.run import Work, generate, new_work
from scope_cli.engine.run_plan import RunPlan
from scope_cli.events import Finished, Token
from scope_cli.measure.evaluate.loops import unique_ngrams
from scope_cli.models.model import open_model
from scope_cli.settings.load import load_profile

PROMPTS = (
    "Write a long report on the state of the harbour.",
    "Write a report in sections about the rebuilding of the bridge at the old mill, with findings and "
    "recommendations.",
    "Tell a long story about a lighthouse keeper and a storm.",
    "Explain, step by step and at length, how bread is baked.",
    "List the duties of a ship's captain, one by one, with explanations.",
    "Write a diary of a winter in the mountains, day by day.",
    "Write a dialogue between a teacher and a student about the sea.",
    "Write a guide for new gardeners with many chapters.",
    "Write an essay about the value of patience.",
    "Write the minutes of a council meeting about a new road.",
)
LANES = 5


def written(on_loop: str, tokens: int) -> list[dict[str, Any]]:
    asked = {"sampling.temperature": 0.0, "sampling.ignore_eos": True, "sampling.max_new_tokens": tokens}
    settings = load_profile(
        "default", {**asked, "cache.kv": "plain", "decode.budget": 512, "sampling.on_loop": on_loop}
    )
    opened = open_model(settings.profile.model, offline=True, lanes=LANES)
    works: list[Work] = [
        new_work(settings, opened.geometry, opened.chat.prompt(text, settings.profile.prompt).ids)
        for text in PROMPTS
    ]
    shape = RunPlan.of(settings.profile, [work.plan for work in works], "cpu", LANES).shape
    ids: dict[int, list[int]] = {}
    rows: list[dict[str, Any]] = [{} for _ in works]
    for event in generate(opened.load(), settings.profile, works, shape):
        if isinstance(event, Token):
            ids.setdefault(event.prompt, []).append(event.token_id)
        elif isinstance(event, Finished):
            watch = LoopWatch()
            looping = sum(watch.feed(one) is not None for one in ids[event.prompt])
            rows[event.prompt] = {
                "prompt": event.prompt,
                "on_loop": on_loop,
                "reason": event.reason,
                "tokens": event.output_tokens,
                "loops": looping > 0,
                "unique_ngrams": round(unique_ngrams(ids[event.prompt]), 4),
                "taken_back": [one.tokens for one in event.taken_back],
            }
            print(rows[event.prompt], file=sys.stderr)
    return rows


def table(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    heads = [
        "prompt",
        "before",
        "taken back",
        "tokens after, and the end",
        "distinct 4-grams before",
        "after",
    ]
    lines = [f"| {' | '.join(heads)} |", "|--:|---|--:|---|--:|--:|"]
    for a, b in zip(before, after, strict=True):
        back = f"{len(b['taken_back'])} times, {sum(b['taken_back']):,} tokens"
        ends = f"{b['tokens']:,}, {b['reason']}{', with a loop' if b['loops'] else ''}"
        shares = f"{a['unique_ngrams']:.3f} | {b['unique_ngrams']:.3f}"
        lines.append(
            f"| {a['prompt'] + 1} | {'a loop' if a['loops'] else 'none'} | {back} | {ends} | {shares} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rows", type=Path)
    args = parser.parse_args()
    before, after = written("ignore", args.tokens), written("rollback", args.tokens)
    if args.rows:
        args.rows.write_text("".join(json.dumps(row) + "\n" for row in [*before, *after]))
    print(table(before, after))


if __name__ == "__main__":
    main()
