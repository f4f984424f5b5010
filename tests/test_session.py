"""On a real terminal: what docs/session.py records and draws."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SESSION = Path(__file__).parents[1] / "docs" / "session.py"


@pytest.fixture(scope="module")
def session():
    spec = importlib.util.spec_from_file_location("session", SESSION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_recorded_is_what_make_runs(session):
    assert session.command_of_make()[:2] == ["scope", "generate"]
    assert "--budget" in session.command_of_make()


def test_a_terminal_shows_both_lines_while_it_writes_and_the_summary_at_the_end(session, tiny_folder):
    # many times longer than the pause between two pictures, on the fastest machine too
    # fmt: off
    command = [
        sys.executable, "-m", "scope_cli", "generate", "hi", "--model", str(tiny_folder), "--budget", "16",
        "--max-new-tokens", "2000", "--ignore-eos", "--kv", "int8",
    ]
    # fmt: on
    frames, rows = session.record(command)
    moving = "\n".join(frames[-1])
    assert re.search(r"\d+/2,000 tokens", moving)
    assert re.search(r"KV .*% of full +evicted [\d,]+ +held \d+/16 +int8 slots", moving)
    assert not any("evicted " in row and "held" in row for row in rows), "the moving lines have gone"
    assert any(row.startswith("audit:     policy active, budget held") for row in rows)
    svg = session.draw(command, frames, rows)
    assert svg.startswith("<svg") and "@font-face" not in svg
