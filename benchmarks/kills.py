"""Forty SIGKILLs at random moments: is every text, resumed, that of a run that nobody disturbed?

    PYTHONPATH=. python benchmarks/kills.py [--kills N] [--seed N]

A tiny random model writes with `scope generate` (greedy, sampled, compiled, three texts in two lanes) and
`scope batch` (lanes; a second process that joins; Ray, where it is installed). Each is killed again and again
until it has ended, then the bytes are compared. Prints a row for each; exit code 1 where a byte
differs, a text is missing or a state file is left behind.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

from scope_cli.engine.checkpoint import Refused, read_facts
from tests.helpers.tiny import tiny_model, tiny_tokenizer

TOKENS = 400
POLICY = ["--ignore-eos", "--max-new-tokens", TOKENS, "--budget", 48, "--recent", 16, "--interval", 8]
SAVING = ["--checkpoint-every", 0.02]
WRITES = {
    "greedy, lru": ["--temperature", 0, "--scorer", "lru", "--compile", "off"],
    "sampled, random": ["--temperature", 1, "--scorer", "random", "--compile", "off"],
    "sampled, int8 slots": ["--temperature", 1, "--set", "cache.kv=int8", "--compile", "off"],
    "compiled": ["--temperature", 1, "--compile", "on"],
    "three texts, two lanes": ["-n", 3, "--lanes", 2, "--temperature", 1, "--strategy", "adaptive"],
}
JOBS = {
    "batch, four lanes": [],
    "batch, --join": ["--join"],
    "batch, Ray": ["--engine", "ray", "--workers", 2],
}


def start(*argv: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "scope_cli", *map(str, argv)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(words, start_new_session=True, **quiet)


def kill(process: subprocess.Popen[bytes]) -> None:
    """With what it has started: Ray's workers would go on."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def states(folder: Path) -> Iterator[tuple[Path, int]]:
    for file in sorted(folder.rglob("*.state")):
        with suppress(Refused):
            lane = read_facts(file)["lane"]
            yield file, lane["written"] if lane else 0


def texts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.txt")}


def wait_for_more(process: subprocess.Popen[bytes], folder: Path, seen: int) -> None:
    while process.poll() is None and sum(written for _, written in states(folder)) <= seen:
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        tiny_model(dtype=torch.float32).save_pretrained(place / "tiny")
        tiny_tokenizer().save_pretrained(place / "tiny")
        (place / "prompts").mkdir()
        for number in range(8):
            (place / "prompts" / f"{number}.txt").write_text(f"{number} " + "lighthouse " * (number % 3 + 1))
        scenes = {**WRITES, **JOBS}
        if find_spec("ray") is None:
            del scenes["batch, Ray"]
        share = -(-args.kills // len(scenes))
        print("| what was killed | kills | tokens kept | texts | equal | states left |")
        print("|---|--:|--:|--:|--:|--:|")
        failed = 0
        for name, more in scenes.items():
            failed += scene(place, name, [*more], share, draw)
        return 1 if failed else 0


def scene(place: Path, name: str, more: list[object], kills: int, draw: random.Random) -> bool:
    """One row of the table; was anything wrong?"""
    model, slug = ["--model", place / "tiny", *POLICY], name.replace(" ", "-").replace(",", "")
    is_job = name in JOBS
    done = kept = 0
    whole, folder = place / f"{slug}-whole", place / slug

    def command(out: Path, *extra: object) -> list[object]:
        if is_job:
            own = [one for one in more if one != "--join"]
            job = [
                "batch",
                place / "prompts",
                "-o",
                out,
                "--lanes",
                4,
                "--temperature",
                1,
                "--compile",
                "off",
            ]
            return [*job, *own, *model, *extra]
        out.mkdir(exist_ok=True)
        return ["generate", "the sea", "-o", out / "story.txt", *more, *model, *extra]

    if start(*command(whole)).wait():
        print(f"| {name} | cannot be run here | | | | |")
        return False
    wrong, equal = 0, len(texts(whole))  # texts that were equal in every round
    while done < kills:
        for file in sorted(folder.rglob("*"), reverse=True) if folder.exists() else []:
            file.rmdir() if file.is_dir() else file.unlink()
        argv = command(folder, *SAVING)
        while True:
            before = sum(written for _, written in states(folder)) if folder.exists() else 0
            processes = [start(*argv)]
            wait_for_more(processes[0], folder, before)
            if "--join" in more and processes[0].poll() is None:
                processes.append(start(*argv, "--join"))
            time.sleep(draw.uniform(0, 0.5))
            if done < kills and processes[0].poll() is None:
                kill(processes[0])
                done += 1
                kept += sum(written for _, written in states(folder))
            for process in processes:
                process.wait()
            left = [file for file, _ in states(folder)]
            if not left and not (is_job and unfinished(folder)):
                break
            if not is_job:
                argv = ["resume", str(left[0]).removesuffix(".state"), *SAVING]
        wrong += texts(folder) != texts(whole)
        equal = min(equal, sum(texts(folder).get(name) == content for name, content in texts(whole).items()))
    left = [file for file, _ in states(folder)]
    print(f"| {name} | {done} | {kept:,} | {len(texts(whole))} | {equal} | {len(left)} |", flush=True)
    return bool(wrong or left)


def unfinished(out: Path) -> bool:
    said = subprocess.run(
        [sys.executable, "-m", "scope_cli", "batch", "--status", str(out), "--json"], capture_output=True
    )
    return bool(said.returncode) or json.loads(said.stdout)["counts"]["done"] < 8


if __name__ == "__main__":
    sys.exit(main())
