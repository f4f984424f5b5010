"""What keeping a text's state costs: its bytes while the text grows, and CPU seconds with and without it.

    PYTHONPATH=. python benchmarks/saving.py sizes
    PYTHONPATH=. python benchmarks/saving.py share [--rounds N] [--tokens N]

`sizes`: a tiny random model writes 8,000 tokens. `share`: the embedded model writes the same text with and
without `--no-checkpoint`, in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from kills import kill, start, states

from tests.helpers.tiny import tiny_model, tiny_tokenizer


def sizes(place: Path) -> str:
    """Bytes of the state's file at 1,000 and at 8,000 tokens."""
    tiny_model(dtype=torch.float32).save_pretrained(place / "tiny")
    tiny_tokenizer().save_pretrained(place / "tiny")
    argv = [
        "generate",
        "a",
        "-m",
        place / "tiny",
        "-o",
        place / "story.txt",
        "--ignore-eos",
        "--budget",
        48,
        "--kv",
        "plain",
    ]
    process, found = start(*argv, "--max-new-tokens", 8_050, "--checkpoint-every", 0.1), {}
    while process.poll() is None and 8_000 not in found:
        for file, written in states(place):
            for tokens in (1_000, 8_000):
                if written >= tokens:
                    found.setdefault(tokens, file.stat().st_size)
        time.sleep(0.01)
    kill(process)
    return ", ".join(f"{size:,} bytes at {tokens:,} tokens" for tokens, size in sorted(found.items()))


def share(place: Path, rounds: int, tokens: int) -> str:
    """CPU seconds of whole runs, medians."""
    took: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        for name, more in (("with", []), ("without", ["--no-checkpoint"])):
            argv = [
                "generate",
                "Tell a long story.",
                "-o",
                place / f"{name}.txt",
                "--force",
                "--ignore-eos",
                *more,
            ]
            words = [sys.executable, "-m", "scope_cli", *map(str, argv), "--max-new-tokens", str(tokens)]
            before = os.times()
            subprocess.run(words, check=True, capture_output=True)
            after = os.times()
            took[name].append(after[2] + after[3] - before[2] - before[3])
    a, b = statistics.median(took["with"]), statistics.median(took["without"])
    return f"{a:.2f} s with, {b:.2f} s without: {(a - b) / b:+.2%} ({rounds} rounds of {tokens:,} tokens)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["sizes", "share"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if args.what == "sizes":
            print(sizes(Path(place)))
        else:
            print(share(Path(place), args.rounds, args.tokens))


if __name__ == "__main__":
    main()
