"""One job of twelve prompts and a bad one, whose texts do not depend on how often it is stopped."""

from collections import Counter
from pathlib import Path

import pytest

from scope_cli import cli
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.outputs import PART, RECORD

TOKENS = 100


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Twelve prompts of two lengths, so that there are two groups, and one that cannot be run."""
    folder = tmp_path_factory.mktemp("prompts")
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"{number} " + "lighthouse " * (3 if number % 2 else 20))
    (folder / "empty.txt").write_text("")
    return folder


def argv(prompts, out, tiny_folder, *more):
    """Sampled, so that each text depends on its own seed; a small budget, so that tokens are evicted."""
    return [
        "batch", prompts, "-o", out, "--model", tiny_folder, "--ignore-eos", "--max-new-tokens", TOKENS,
        "--temperature", 1, "--budget", 48, "--recent", 16, "--interval", 8, "--scorer", "random",
        "--lanes", 4, "--checkpoint-every", 0.05, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(prompts, tiny_folder, tmp_path_factory) -> Path:
    """The job, run without any interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert cli.main([str(part) for part in argv(prompts, out, tiny_folder, "--quiet")]) == 1
    return out


def texts(out):
    skipped = (PART, RECORD, "results.jsonl", "scope.db", ".lock", "-wal", "-shm")
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file() and not file.name.endswith(skipped)
    }


def check_it_is_whole(out, whole):
    found, expected = texts(out), texts(whole)
    other = [name for name in expected | found if found.get(name) != expected.get(name)]
    assert not other, f"{len(found)} texts, other than in the whole run: {other}"
    assert len(expected) == 12
    assert not list(out.rglob("*.state*"))
    assert not list(out.rglob(f"*{PART}")) and not list((out / ".scope").glob("[0-9a-f]*.lock"))
    ledger = Ledger(out)
    assert ledger.sound() and not ledger.processes()
    assert Counter(row.state for row in ledger.rows()) == {"done": 12, "failed": 1}
    lines = (out / "results.jsonl").read_text().splitlines()
    assert len(lines) == 13
    assert len(list(out.rglob(f"*{RECORD}"))) == 12
