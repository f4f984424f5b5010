"""Every row of docs/results/performance.md that compares speed: one command, and it goes on where it stopped.

    python benchmarks/performance.py             # what has not been measured, then --write
    python benchmarks/performance.py flat lanes  # these parts, again
    python benchmarks/performance.py --isa avx2  # the contests, everybody as on a CPU without AVX-512
    python benchmarks/performance.py --on zen3   # the contests on this CPU, beside those of the first one
    python benchmarks/performance.py --write     # the tables and the picture of what is there
    python benchmarks/performance.py --dry-run   # the commands

Each part is one run of `scope bench`, in which the contenders take turns; its JSON lies in
benchmarks/results/performance/, or in avx2/ and zen3/ there. The peers get environments of their own
(peers/setup.sh), once. Nothing else may run meanwhile.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "performance"
PAGE = HERE.parent / "docs" / "results" / "performance.md"
COMMON = "--prompt-file examples/report.txt --text examples/logbook.txt --offline"

OURS = '--profile "scope=default decode.budget=512 cache.kv=int8"'
WHOLE = '--profile "whole=full cache.kv=int8"'  # nothing evicted
PEERS = {"llama.cpp": "{llamacpp}", "OpenVINO": "{openvino}", "onnxruntime": "{onnx}"}
RIVALS = " ".join(f'--peer "{name}={command}"' for name, command in PEERS.items())
# The best of each peer's own choices is above; these are the others.
OTHERS = (
    '--peer "llama.cpp-q8_0={llamacpp} --cache q8_0 --flash on" '
    '--peer "llama.cpp-no-flash={llamacpp} --flash off" --peer "OpenVINO-u8={openvino} --cache u8"'
)
AT = (1000, 3000, 5000, 8000)

# The cache that never evicts is planned, and read, as long as the last position: so a part has one position.
PARTS: dict[str, str] = {
    **{f"at-{at}": f"--rounds 3 --prompt-tokens 700 --positions {at} {OURS} {WHOLE} {RIVALS}" for at in AT},
    "lanes": f"--rounds 3 --prompt-tokens 1000 --positions 1300 --lanes 8 {OURS} {RIVALS}",
    # A burst of one step at each: the prompt is read anew for each of them.
    "prompt": "--rounds 1 --burst 1 --prompt-tokens 1500 --positions "
    f"{','.join(str(1502 + step) for step in range(6))} {OURS} {RIVALS}",
    "others": f"--rounds 2 --prompt-tokens 700 --positions 1000,5000 {OURS} {RIVALS} {OTHERS}",
    "flat": f"--rounds 5 --prompt-tokens 1000 --positions 1800,8000 --write --apart {OURS}",
    "transformers": "--rounds 3 --prompt-tokens 1000 --positions 8000 --dtype float32 --peer dynamic "
    '--profile "same=default decode.budget=512 cache.kv=plain" '
    f'{OURS[:-1]} model.dtype=auto" --baseline dynamic',
    "kvpress": "--rounds 3 --prompt-tokens 1000 --positions 2500 --dtype float32 "
    '--peer "kvpress={kvpress} --budget 512" '
    '--profile "scope=default decode.budget=512 cache.kv=plain" --baseline kvpress',
}


# With these we and PyTorch compute as on a CPU without AVX-512. The peers get a copy of their environment
# that finds none (peers/as_avx2.py): no variable does that.
AS_AVX2 = {
    "SCOPE_NATIVE": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


@dataclass(frozen=True)
class Contest:
    """A row of the first table: us against the best of the peers, and against llama.cpp."""

    what: str
    part: str
    at: int | None  # the position; None: reading the prompt
    goal: str  # times as fast as the best of them (as llama.cpp)
    ours: str = "scope"


CONTESTS = [
    Contest("position 1,000", "at-1000", 1000, "1.8x (2.3x)"),
    Contest("position 5,000, nothing evicted", "at-5000", 5000, "3x (4x)", "whole"),
    Contest("position 5,000, budget 512", "at-5000", 5000, "4.5x (6x)"),
    Contest("position 8,000, budget 512", "at-8000", 8000, "6x (10x)"),
    Contest("eight lanes, position 1,300", "lanes", 1300, "2.2x (3.3x)"),
    Contest("a prompt of 1,500 tokens, a token", "prompt", None, "1.3x (3x)"),
]


@dataclass(frozen=True)
class Claim:
    """A row of the second table."""

    what: str
    goal: str
    part: str
    found: Callable[[dict], str]


def bursts(result: dict, contender: str, position: int | None) -> list[float]:
    """Milliseconds of a step, burst by burst; without a position those of a token of the prompt."""
    row = next(row for row in result["contenders"] if row["name"] == contender and not row["failed"])
    if position is None:
        _warm_up, *reads = [took for one in row["positions"] for took in one["read_s"]]
        return [1000 * took / result["course"]["job"]["prompt_tokens"] for took in reads]
    return next(one["step_ms"] for one in row["positions"] if one["position"] == position)


def spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def against(result: dict, ours: str, other: str, position: int | None) -> str:
    """How often as fast, round by round."""
    pairs = zip(bursts(result, ours, position), bursts(result, other, position), strict=True)
    return spread([theirs / mine for mine, theirs in pairs])


def times(contender: str, other: str, position: int) -> Callable[[dict], str]:
    return lambda result: against(result, contender, other, position)


def flatness(result: dict) -> str:
    near, far = (bursts(result, "scope", at) for at in (1800, 8000))
    return spread([b / a for a, b in zip(near, far, strict=True)])


def share(result: dict) -> str:
    found = next(line for line in result["lines"] if line["contender"] == "scope")["share_of_limit"]
    return f"{found:.0%}" if found else "-"


def moved(result: dict) -> str:
    return str(next(line for line in result["lines"] if line["contender"] == "scope")["moved_bytes"])


CLAIMS = [
    Claim("ms a token at 8,000 over 1,800, really written", "at most 1.03", "flat", flatness),
    Claim("share of the bandwidth limit, position 1,000", "75%", "at-1000", share),
    Claim("bytes moved by eviction, position 8,000", "0", "at-8000", moved),
    Claim(
        "position 8,000 against DynamicCache, same weights",
        "2.5x",
        "transformers",
        times("same", "dynamic", 8000),
    ),
    Claim(
        "position 8,000 against DynamicCache, our own choice of weights",
        "4x",
        "transformers",
        times("scope", "dynamic", 8000),
    ),
    Claim(
        "position 2,500 against kvpress 0.5.5 DecodingPress, same weights",
        "1.4x",
        "kvpress",
        times("scope", "kvpress", 2500),
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what docs/results/performance.md says of speed.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; else what is missing"
    )
    parser.add_argument("--write", action="store_true", help="write the page's tables, measure nothing")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--isa", choices=["avx2"], help="the contests as a CPU without AVX-512 computes")
    other.add_argument("--on", choices=["zen3"], help="the contests on another CPU, kept apart")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--more", default="", help="options added to every `scope bench`")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    kept = args.on or args.isa  # the folder of results
    every = list(dict.fromkeys(contest.part for contest in CONTESTS)) if kept else PARTS
    for part in [] if args.write else args.parts or every:
        if args.parts or args.dry_run or result_of(part, kept) is None:
            more = f"--threads {args.threads} {args.more}"
            measure(part, file_of(part, kept), args.isa, more, args.dry_run)
    if not args.dry_run:
        PAGE.write_text(filled(PAGE.read_text()))
        draw()


def measure(part: str, file: Path, isa: str | None, more: str, dry_run: bool) -> None:
    """One run of `scope bench`; its file is there only when it is through."""
    command = re.sub(
        r"\{(\w+)\}",
        lambda found: f"<{found[1]}>" if dry_run else peer(found[1], isa),
        f"{COMMON} {PARTS[part]} {more}",
    )
    unfinished = file.with_suffix(".unfinished.json")
    argv = [*shlex.split(command), "--output", str(unfinished), "--force"]
    if dry_run:
        print(f"{part}: scope bench {shlex.join(argv)}")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"{part}: scope bench {shlex.join(argv)}", file=sys.stderr, flush=True)
    environment = os.environ | (AS_AVX2 if isa else {})
    # a failed peer is a row, and exit 1
    subprocess.run([sys.executable, "-m", "scope_cli", "bench", *argv], env=environment)
    if unfinished.is_file():
        # where this copy of the project lies is nobody's business
        text = unfinished.read_text().replace(f"{HERE.parent}/", "").replace(str(Path.home()), "~")
        file.write_text(text)
        unfinished.unlink()


def peer(name: str, isa: str | None) -> str:
    """The command that starts it."""
    made = subprocess.run(
        [HERE / "peers" / "setup.sh", name],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHON": sys.executable, "ISA": isa or ""},
    )
    return made.stdout.strip()


def file_of(part: str, kept: str | None = None) -> Path:
    return (RESULTS / kept if kept else RESULTS) / f"{part}.json"


def result_of(part: str, kept: str | None = None) -> dict | None:
    file = file_of(part, kept)
    return json.loads(file.read_text()) if file.is_file() else None


def contest_table(kept: str | None = None) -> str:
    """Milliseconds a step of everybody, and how often as fast as the best peer (as llama.cpp)."""
    heads = ["ms a step", "scope", *PEERS, "against the best (llama.cpp)", "goal"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for contest in CONTESTS:
        result, cells, found = result_of(contest.part, kept), ["-"] * (len(PEERS) + 1), "-"
        if result is not None:
            names = [contest.ours, *PEERS]
            took = {name: median(ms) for name in names if (ms := measured(result, name, contest.at))}
            cells = [f"{took[name]:.1f}" if name in took else "-" for name in names]
            best = min(took.keys() - {contest.ours}, key=took.__getitem__, default=None)
            if best and contest.ours in took:
                found = against(result, contest.ours, best, contest.at)
                if "llama.cpp" in took:
                    ratio = against(result, contest.ours, "llama.cpp", contest.at)
                    found += f"; ({ratio.split()[0]})"
        lines.append("| " + " | ".join([contest.what, *cells, found, contest.goal]) + " |")
    return "\n".join([*lines, "", machines(kept)])


def measured(result: dict, contender: str, position: int | None) -> list[float]:
    """Its bursts, none where it failed."""
    try:
        return bursts(result, contender, position)
    except (StopIteration, ValueError):
        return []


def claim_table() -> str:
    lines = ["| | goal | measured | command |", "|---|---|---|---|"]
    for claim in CLAIMS:
        result = result_of(claim.part)
        try:
            found = claim.found(result) if result is not None else "-"
        except StopIteration:  # that contender failed
            found = "-"
        lines.append(f"| {claim.what} | {claim.goal} | {found} | `performance.py {claim.part}` |")
    return "\n".join(lines)


def machines(kept: str | None) -> str:
    """On what the parts were measured, as far as they were."""
    results = [result["machine"] for part in PARTS if (result := result_of(part, kept))]
    found = sorted({f"{machine['processor']}, {machine['cores']} cores" for machine in results})
    return f"Measured on: {'; '.join(found) or '-'}."


def filled(page: str) -> str:
    """The page with each table between its marks."""
    tables = {
        "contests": contest_table(),
        "contests as AVX2": contest_table("avx2"),
        "contests on Zen 3": contest_table("zen3"),
        "claims": claim_table(),
        "others": others_table(),
    }
    for name, table in tables.items():
        marks = f"<!-- {name} of performance.py -->\n", "<!-- end -->"
        before, begin, rest = page.partition(marks[0])
        _, end, after = rest.partition(marks[1])
        assert begin and end, f"{PAGE} has no place for the table {name}"
        page = f"{before}{begin}{table}\n{end}{after}"
    return page


def others_table() -> str:
    """Every peer with each of its options, ms a step."""
    result = result_of("others")
    positions = result["course"]["positions"] if result else [1000, 5000]
    lines = ["| ms a step, at position |" + "".join(f" {at:,} |" for at in positions)]
    lines.append("|---" + "|--:" * len(positions) + "|")
    for row in result["contenders"] if result else []:
        cells = [measured(result, row["name"], at) for at in positions]
        shown = [f"{median(ms):.1f}" if ms else row["failed"] or "-" for ms in cells]
        lines.append(f"| {row['name']}: {row['policy']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw() -> None:
    if all(result_of(f"at-{at}") for at in AT):
        subprocess.run([sys.executable, HERE / "chart.py"], check=True)


if __name__ == "__main__":
    main()
