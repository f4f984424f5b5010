"""Is the plan true? `scope profile`'s plan against its measurement, over budgets, strategies and prompts.

    python benchmarks/memory.py            measures what is not yet in benchmarks/results/memory.jsonl
    python benchmarks/memory.py --table    prints the rows that are there, as Markdown

One process a row; a row is kept as soon as it is there, so the command can be stopped and started again.
"""

import argparse
import json
from pathlib import Path

from scope_cli.measure.profiling.result import Result, figures, from_dict
from scope_cli.measure.profiling.runner import run_job
from scope_cli.measure.profiling.worker import Job
from scope_cli.settings.load import load_profile
from scope_cli.units import as_bytes

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"
STRATEGIES = ("slide", "adaptive", "discontinuous", "full")
OUTPUT_PER_BUDGET = 1.25  # enough for evictions, and 4,000 + 2,560 tokens fit the context


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budgets", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--prompts", type=int, nargs="+", default=[200, 4000])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        measure(args)
    print(table(rows_of(args.results)))


def measure(args: argparse.Namespace) -> None:
    done = {row["label"] for row in rows_of(args.results)}
    for prompt in args.prompts:
        for budget in args.budgets:
            for strategy in args.strategies:
                label = f"{strategy} {budget}, prompt {prompt}"
                if label in done:
                    continue
                result = run_job(job_of(label, strategy, budget, prompt), lambda *_: None)
                print(one_line(result), flush=True)
                args.results.parent.mkdir(exist_ok=True)
                with args.results.open("a", encoding="utf-8") as file:
                    row = {key: value for key, value in result.as_dict().items() if key != "map"}
                    print(json.dumps({**row, "map": None}), file=file)


def job_of(label: str, strategy: str, budget: int, prompt: int) -> Job:
    settings = load_profile(
        "default",
        {
            "decode.strategy": strategy,
            "decode.budget": budget,
            "model.load_in": None,  # float32: what the plan says of packed weights is another row
            "sampling.ignore_eos": True,
            "sampling.max_new_tokens": int(OUTPUT_PER_BUDGET * budget),
        },
    )
    typed = sorted(settings.typed)
    return Job(label, settings.profile.as_dict(), settings.source, typed, None, prompt, offline=False)


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def one_line(result: Result) -> str:
    errors = ", ".join(f"{key} {value:+.2f}%" for key, value in result.errors().items())
    return f"{result.label}: {errors}"


def table(rows: list[dict]) -> str:
    lines = [
        "| strategy, budget | prompt + output | KV allocated | error | held, average | of full | error "
        "| prefill peak | error | decode peak | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    worst = 0.0
    for row in rows:
        result = from_dict(row)
        f, errors = figures(result), result.errors()
        worst = max(worst, abs(errors["prefill_peak"]), abs(errors["decode_peak"]))
        cells = [
            result.label.split(",")[0],
            f"{result.prompt_tokens:,} + {result.output_tokens:,}",
            as_bytes(f["kv_allocated_bytes"]),
            f"{errors['kv_allocated']:.2f}%",
            as_bytes(f["kv_held_mean_bytes"]),
            f"{100 * f['kv_held_mean_bytes'] / f['full_mean_bytes']:.1f}%",
            f"{errors['kv_held_mean']:.2f}%",
            as_bytes(f["prefill_peak_bytes"]),
            f"{errors['prefill_peak']:+.1f}%",
            as_bytes(f["decode_peak_bytes"]),
            f"{errors['decode_peak']:+.1f}%",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Largest error of a peak: {worst:.1f}%."])


if __name__ == "__main__":
    main()
