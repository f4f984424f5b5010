"""Are eight lanes three times as fast as one, and is the memory plan true? 40 prompts through scope batch.

    python benchmarks/batch.py OUT

Runs the same 40 prompts twice, with 8 lanes and with 1, each a job of its own below OUT. It can be stopped
and started again: finished prompts are not run twice, and times count only while something runs. Every output
has the same length and fills its budget, so that the plan is compared with a cache that is really used.
Prints total tokens per second of both, their ratio, and the planned peak beside the measured one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from scope_cli.batch.fit import Memory
from scope_cli.batch.groups import Group
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.report import busy_s
from scope_cli.units import as_bytes, as_rate

SUBJECTS = (
    "a lighthouse",
    "a railway",
    "bread",
    "a river",
    "clocks",
    "a school",
    "maps",
    "snow",
    "bees",
    "glass",
)
FORMS = ("Write a letter about", "Write a report about", "Explain to a child", "Tell a story about")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--lanes", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="more")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = args.out / "prompts.jsonl"
    lines = [
        {"id": f"{subject}, {form.split()[-2]}", "prompt": f"{form} {subject}. {words(subject, number)}"}
        for number, (form, subject) in enumerate((form, one) for form in FORMS for one in SUBJECTS)
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)) + "\n")
    rates = {}
    for lanes in args.lanes:
        out = args.out / f"lanes-{lanes}"
        command = [
            sys.executable, "-m", "scope_cli", "batch", str(prompts), "--output-dir", str(out),
            "--lanes", str(lanes), "--model", args.model,
            "--max-new-tokens", str(args.tokens), "--ignore-eos",
            "--budget", str(args.tokens // 2), "--recent", str(args.tokens // 4), "--log-every", "20",
        ]  # fmt: skip
        subprocess.run([*command, *(word for item in args.more for word in ("--set", item))], check=True)
        rates[lanes] = told(out, lanes)
    most, least = max(rates), min(rates)
    print(f"{most} lanes over {least}: {rates[most] / rates[least]:.2f}")


def words(subject: str, number: int) -> str:
    """Prompts of slightly different lengths."""
    return f"Mention what {subject} means to people who work with it every day. " * (1 + number % 3)


def told(out: Path, lanes: int) -> float:
    """Print the rate and the memory of one job; tokens per second."""
    ledger = Ledger(out, read_only=True)
    rows = ledger.rows("done")
    memory, groups = Memory(**ledger.get("memory")), [Group.of(plan) for plan in ledger.groups()]
    rate = sum(row.end["output_tokens"] for row in rows) / busy_s(rows)
    planned = max(memory.planned(group) for group in groups) + memory.base_bytes
    peak = max(row.end["decode_peak_bytes"] for row in rows)
    print(
        f"{lanes} lanes: {len(rows)} texts, {as_rate(rate)}; peak planned {as_bytes(planned)}, while writing "
        f"{as_bytes(peak)}: {100 * (planned - peak) / peak:+.1f}%"
    )
    return rate


if __name__ == "__main__":
    main()
