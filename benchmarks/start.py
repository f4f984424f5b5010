"""Seconds from the command line to the first word, and where they go; on a machine that does nothing else.

    python benchmarks/start.py                      # this checkout
    python benchmarks/start.py --other FOLDER       # and another one of it, in turn with this one

The embedded model is on disk and its native step is built: one run before those that count sees to it.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

HERE = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "scope_cli", "generate", "Write a long letter from a lighthouse."]
STAGE = re.compile(r"(?:s: |, )([a-z ]+) ([\d.]+)")


def start(checkout: Path) -> dict[str, float]:
    """Seconds to the first byte of the text, and to the end; of each stage, where the checkout says them."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    began = perf_counter()
    verbose = ["--verbose"] * (checkout == HERE)
    run = subprocess.Popen(
        [*COMMAND, "--max-new-tokens", "1", *verbose],
        env=environment,
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=0,
    )
    assert run.stdout is not None and run.stderr is not None
    run.stdout.read(1)
    first = perf_counter() - began
    said = run.communicate()[1]
    if run.returncode:
        raise SystemExit(said)
    line = next((line for line in said.splitlines() if line.startswith("start:")), "")
    stages = {stage: float(seconds) for stage, seconds in STAGE.findall(line)}
    return {"first word": first, **stages, "end": perf_counter() - began}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--other", type=Path, help="another checkout")
    asked.add_argument("--runs", type=int, default=9)
    options = asked.parse_args()
    checkouts = [HERE, *([options.other.resolve()] if options.other else [])]
    measured: dict[Path, list[dict[str, float]]] = {one: [] for one in checkouts}
    for number in range(options.runs + 1):
        for checkout in checkouts:
            times = start(checkout)
            if number:  # the first fills the caches
                measured[checkout].append(times)
    for checkout, runs in measured.items():
        print(f"{checkout.name}: seconds, median (least) of {options.runs}")
        for stage in runs[0]:
            seconds = [run[stage] for run in runs]
            print(f"  {stage:<20}{median(seconds):6.2f} ({min(seconds):.2f})")


if __name__ == "__main__":
    main()
