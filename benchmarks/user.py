# ruff: noqa: E402
"""How much of the bare step's speed do `scope generate` (terminal, file) and `scope batch` reach?

    python benchmarks/user.py [--tokens 400] [--rounds 3]

The embedded model with its default sampling and two threads, in turn with steps alone over the same
positions: of one lane for `generate`, of eight for `batch`. A command's tokens a second are those that it
says itself: from the first token of a text to its last, without start-up and prompt. Nothing else may run
meanwhile.
"""

import argparse
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from scope_cli.machine.setup import wait_briefly

wait_briefly()  # as `scope` does, before torch is imported

import torch
from step import write

from scope_cli.engine.plan import shared_shape
from scope_cli.engine.prefill import read_prompt, read_to_end
from scope_cli.engine.run import new_cache
from scope_cli.engine.run_plan import make_plan
from scope_cli.engine.step import new_step
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import load_profile

PROMPT = "Write a long letter from a lighthouse."
LANES = 8
COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
RATE = re.compile(r"^output: .* ([\d.,]+) tokens/s", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    loaded = open_model(load_profile("default", {"model.threads": args.threads}).profile.model).load()
    common = ["--max-new-tokens", args.tokens, "--threads", args.threads, "--offline"]
    common = [str(word) for word in [*common, "--set", "sampling.ignore_eos=true"]]
    rates: dict[str, list[float]] = {"terminal": [], "file": [], "batch": []}
    shares: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            one, many = bare(loaded, 1, args.tokens), bare(loaded, LANES, args.tokens)
            for name, rate, of in (
                ("terminal", in_terminal(common), one),
                ("file", to_file(Path(folder), common), one),
                ("batch", batch(Path(folder), common), many),
            ):
                rates[name].append(rate)
                shares[name].append(rate / of)
    print("| | tokens/s | of the bare step's |\n|---|--:|--:|")
    for name, label in (
        ("terminal", "`scope generate` in a terminal"),
        ("file", "`scope generate --output FILE`, stdout into a file"),
        ("batch", f"`scope batch --lanes {LANES}`, all lanes"),
    ):
        low, high = min(shares[name]), max(shares[name])
        print(f"| {label} | {median(rates[name]):.0f} | {median(shares[name]):.0%} ({low:.0%}-{high:.0%}) |")


@torch.no_grad()
def bare(loaded: LoadedModel, lanes: int, tokens: int) -> float:
    """Tokens a second, all lanes, of steps that do nothing with what they compute."""
    settings = load_profile("default", {"sampling.max_new_tokens": tokens, "cache.kv": "int8"})
    ids = loaded.tokenizer(PROMPT)["input_ids"]
    plan = make_plan(settings, loaded.geometry, len(ids))
    cache = new_cache(loaded, settings.profile, shared_shape([plan], lanes))
    read_to_end(read_prompt(loaded.model, cache, torch.tensor([ids]), plan.schedule, lane=0))
    for lane in range(1, lanes):
        cache.copy_prompt(0, lane)
    step = new_step(loaded.model, cache, False, print, native=True)
    next_ids = torch.tensor([[ids[-1]]] * lanes)
    took = [write(cache, step, next_ids) for _ in range(tokens - 1)]
    return lanes * len(took[1:]) / sum(took[1:])  # the first one makes itself ready


def scope(*words: str) -> list[str]:
    return [sys.executable, "-m", "scope_cli", *words]


def in_terminal(common: list[str]) -> float:
    """Both streams go to a terminal, which is read as fast as it is written."""
    ours, theirs = pty.openpty()
    run = subprocess.Popen(scope("generate", PROMPT, *common), stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 65536)
        except OSError:  # nobody has the other end any more
            break
    os.close(ours)
    assert run.wait() == 0, said.decode()
    return rate_in(COLOUR.sub("", said.decode()))


def to_file(folder: Path, common: list[str]) -> float:
    with (folder / "stdout.txt").open("w") as stdout:
        words = scope("generate", PROMPT, *common, "--output", str(folder / "text.txt"))
        run = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, text=True, check=True)
    return rate_in(run.stderr)


def rate_in(said: str) -> float:
    found = RATE.search(said)
    assert found, said
    return float(found[1].replace(",", ""))


def batch(folder: Path, common: list[str]) -> float:
    """All tokens, over the time from the first token to the last of the lane that took longest."""
    rows = [{"id": str(lane), "prompt": PROMPT, "sampling": {"seed": lane}} for lane in range(LANES)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "out"
    words = ("batch", str(folder / "rows.jsonl"), "--output-dir", str(out), "--lanes", str(LANES), *common)
    subprocess.run(scope(*words), capture_output=True, check=True)
    ends = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return sum(end["output_tokens"] for end in ends) / max(end["decode_s"] for end in ends)


if __name__ == "__main__":
    main()
