"""Every row of docs/results/performance.md that compares speed: one command, and it goes on where it stopped.

    python benchmarks/performance.py            # what has not been measured; about 25 minutes, two cores
    python benchmarks/performance.py flat lanes  # these parts, again
    python benchmarks/performance.py --table    # the table of what is there
    python benchmarks/performance.py --lines benchmarks/results/performance/far.json

Each part is one run of `scope bench`, in which the contenders take turns; its JSON and its plot lie in
benchmarks/results/performance/. llama.cpp and kvpress get environments of their own (peers/setup.sh), once.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "performance"
COMMON = "--prompt-file examples/report.txt --text examples/logbook.txt --offline --rounds 5"
PLAIN = "--dtype float32"
# What `scope generate` takes when nothing is said about weights.
CHOSEN = "chosen=default decode.budget=512 model.dtype=auto"
SLIDE = "slide=default decode.budget=512 decode.interval=64"
# A part for each position: the cache that never evicts is planned, and read, as long as the part's last one.
FAR = (
    f'{PLAIN} --prompt-tokens 1000 --profile "{SLIDE}" '
    '--profile "every-step=default decode.budget=512 decode.interval=1" --profile full --peer dynamic '
    f'--profile "{CHOSEN}" --baseline dynamic'
)

PARTS: dict[str, str] = {
    "far-5000": f"{FAR} --positions 5000",
    "far-8000": f"{FAR} --positions 8000",
    "flat": f'{PLAIN} --prompt-tokens 1000 --positions 1800,8000 --write --apart --profile "{SLIDE}"',
    "lanes": f"{PLAIN} --prompt-tokens 500 --positions 1500 "
    '--profile "one=default decode.budget=512" --profile "eight=default decode.budget=512 lanes=8" '
    "--baseline one",
    "llamacpp": '--rounds 3 --prompt-tokens 700 --positions 1000,5000,8000 --peer "llama.cpp={llamacpp}" '
    f'--profile "{CHOSEN}" --profile "float32=default decode.budget=512 model.dtype=float32" '
    "--baseline llama.cpp",
    "llamacpp-lanes": "--rounds 3 --prompt-tokens 1000 --positions 1300 --lanes 8 "
    f'--peer "llama.cpp={{llamacpp}}" --profile "{CHOSEN}" --baseline llama.cpp',
    "kvpress": f'{PLAIN} --prompt-tokens 1000 --positions 2500 --peer "kvpress={{kvpress}} --budget 512" '
    f'--profile "{SLIDE}" --baseline kvpress',
}


@dataclass(frozen=True)
class Goal:
    """A row of the table: what has to be reached, and where it stands."""

    what: str
    least: str
    part: str
    found: Callable[[dict], str]


def line(result: dict, contender: str, position: int) -> dict:
    return next(
        one for one in result["lines"] if (one["contender"], one["position"]) == (contender, position)
    )


def against(contender: str, position: int, other: str | None = None) -> Callable[[dict], str]:
    """Tokens/s of one over those of another (the baseline), round by round."""

    def found(result: dict) -> str:
        if other is None:
            one = line(result, contender, position)
            return f"{one['ratio']:.2f}x ({one['ratio_least']:.2f}-{one['ratio_most']:.2f})"
        ours, theirs = bursts(result, contender, position), bursts(result, other, position)
        return spread([b / a for a, b in zip(ours, theirs, strict=True)])

    return found


def bursts(result: dict, contender: str, position: int) -> list[float]:
    row = next(row for row in result["contenders"] if row["name"] == contender)
    return next(one["step_ms"] for one in row["positions"] if one["position"] == position)


def spread(ratios: list[float]) -> str:
    return f"{sorted(ratios)[len(ratios) // 2]:.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def flatness(result: dict) -> str:
    near, far = bursts(result, "slide", 1800), bursts(result, "slide", 8000)
    return spread([b / a for a, b in zip(near, far, strict=True)])


def prompt(contender: str) -> Callable[[dict], str]:
    return lambda result: f"{line(result, contender, 1000)['prefill_ratio']:.2f}x"


def share(result: dict) -> str:
    found = line(result, "slide", 5000)["share_of_limit"]
    return f"{100 * found:.0f}%" if found else "-"


GOALS = [
    Goal("position 5,000 against DynamicCache, same weights", "2.5x", "far-5000", against("slide", 5000)),
    Goal("position 8,000 against DynamicCache, same weights", "-", "far-8000", against("slide", 8000)),
    Goal(
        "position 8,000 against DynamicCache, our own choice of weights",
        "4x",
        "far-8000",
        against("chosen", 8000),
    ),
    Goal(
        "slide, interval 64, against full, position 5,000", "1.5x", "far-5000", against("slide", 5000, "full")
    ),
    Goal("ms/token at 8,000 over 1,800, really written", "at most 1.05", "flat", flatness),
    Goal(
        "slide at every step against full, 5,000", "above 1x", "far-5000", against("every-step", 5000, "full")
    ),
    Goal("eight lanes against one, total tokens/s, float32", "3x", "lanes", against("eight", 1500)),
    Goal("against llama.cpp, position 1,000", "1x", "llamacpp", against("chosen", 1000)),
    Goal("against llama.cpp, position 5,000", "2x", "llamacpp", against("chosen", 5000)),
    Goal("against llama.cpp, position 8,000", "3.5x", "llamacpp", against("chosen", 8000)),
    Goal("eight lanes against llama.cpp with 8 slots", "3x", "llamacpp-lanes", against("chosen", 1300)),
    Goal("reading the prompt, against llama.cpp", "8x", "llamacpp", prompt("float32")),
    Goal("against kvpress 0.5.5 DecodingPress", "1.4x", "kvpress", against("slide", 2500)),
    Goal("share of the bandwidth limit, one lane, float32", "60%", "far-5000", share),
    Goal(
        "bytes moved by eviction",
        "0",
        "far-8000",
        lambda result: str(line(result, "slide", 8000)["moved_bytes"]),
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what docs/results/performance.md says of speed.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; else what is missing"
    )
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    parser.add_argument("--lines", nargs="+", type=Path, metavar="FILE", help="print a table of JSON files")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--more", default="", help="options added to every `scope bench`")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if args.lines:
        print(lines_table([json.loads(file.read_text()) for file in args.lines]))
        return
    for part in [] if args.table else args.parts or PARTS:
        if args.parts or args.dry_run or not (RESULTS / f"{part}.json").is_file():
            measure(part, f"--threads {args.threads} {args.more}", args.dry_run)
    if not args.dry_run:
        print(table())


def measure(part: str, more: str, dry_run: bool) -> None:
    """One run of `scope bench`; its files are there only when it is through."""
    text = PARTS[part]
    for name in ("llamacpp", "kvpress"):
        if f"{{{name}}}" in text:
            text = text.replace(f"{{{name}}}", f"<{name}>" if dry_run else peer(name))
    argv = shlex.split(f"{COMMON} {text} {more}")
    unfinished = RESULTS / f"{part}.unfinished.json"
    argv += ["--output", str(unfinished), "--force", "--plot", str(RESULTS / f"{part}.png")]
    if dry_run:
        print(f"{part}: scope bench {shlex.join(argv)}")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    print(f"{part}: scope bench {shlex.join(argv)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "scope_cli", "bench", *argv])  # a failed peer is a row, and exit 1
    if unfinished.is_file():
        here = f"{HERE.resolve().parent}/"  # where this copy of the project lies is nobody's business
        (RESULTS / f"{part}.json").write_text(unfinished.read_text().replace(here, ""))
        unfinished.unlink()


def peer(name: str) -> str:
    made = subprocess.run([HERE / "peers" / "setup.sh", name], stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.strip()


def table() -> str:
    """Goals and findings, as markdown."""
    lines = ["| | at least | measured | command |", "|---|---|---|---|"]
    for goal in GOALS:
        file = RESULTS / f"{goal.part}.json"
        try:
            found = goal.found(json.loads(file.read_text()))
        except (FileNotFoundError, StopIteration):  # not measured, or that contender failed
            found = "-"
        lines.append(f"| {goal.what} | {goal.least} | {found} | `performance.py {goal.part}` |")
    return "\n".join(lines)


def lines_table(results: list[dict]) -> str:
    """Every contender at every position of some runs, as markdown."""
    head = ("run", "contender", "position", "tokens/s", "ms/step", "x", "of limit", "held MiB", "peak GiB")
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for result in results:
        for one in result["lines"]:
            cells = [
                result["course"]["job"]["model"],
                one["contender"],
                f"{one['position']:,}",
                f"{one['tokens_per_s']:.1f}",
                f"{one['step_ms']:.2f}",
                f"{one['ratio']:.2f}" if one["ratio"] else "-",
                f"{100 * one['share_of_limit']:.0f}%" if one["share_of_limit"] else "-",
                f"{one['held_bytes'] / 2**20:,.0f}" if one["held_bytes"] else "-",
                f"{one['decode_peak_bytes'] / 2**30:.2f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines += [
            f"| {row['name']} failed: {row['failed']} |" for row in result["contenders"] if row["failed"]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
