"""Runs the commands that stand in docs/results/performance.md, and puts what they print below them.

    python benchmarks/fill.py             # the commands
    python benchmarks/fill.py step avx2   # runs those that have all these words, one after the other
    python benchmarks/fill.py 'python benchmarks/step.py'  # or the one command that is exactly this
    python benchmarks/fill.py --all

A command stands in the page as `<!-- fill: COMMAND -->`, and what is between it and `<!-- end -->` is what
it printed the last time, with the processor and the day. One that fails leaves the page as it was. Nothing
else may run meanwhile.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from scope_cli.machine.description import processor

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "performance.md"
BLOCK = re.compile(r"(<!-- fill: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="that a command has")
    parser.add_argument("--all", action="store_true", help="every command")
    args = parser.parse_args()
    commands = [command for _, command, _ in BLOCK.findall(PAGE.read_text())]
    one = args.words[0] if args.words and args.words[0] in commands else None
    for command in commands:
        if not (args.all or args.words):
            print(command)
        elif command == one if one else all(word in command for word in args.words):
            began = time.perf_counter()
            print(command, file=sys.stderr, flush=True)
            printed = run(command)
            print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            PAGE.write_text(filled(PAGE.read_text(), command, printed))


def run(command: str) -> str:
    """What it prints on stdout; `python` is the one that runs this."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    paths = {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=os.environ | paths, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def filled(page: str, command: str, printed: str) -> str:
    """The page with the command's figures in their place; what is no table stands as it was printed."""
    if "|" not in printed:
        printed = "\n".join(f"    {line}".rstrip() for line in printed.splitlines())
    where = f"Measured on: {processor()}, {os.cpu_count()} cores, {date.today()}."
    figures = f"\n    {command}\n\n{printed}\n\n{where}\n"
    return BLOCK.sub(
        lambda block: f"{block[1]}{figures}{block[3]}" if block[2] == command else block[0], page
    )


if __name__ == "__main__":
    main()
