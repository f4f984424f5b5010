"""Signals while a run goes on."""

import json
import os
import signal

import pytest

from scope_cli import cli
from scope_cli.console.signals import Interruption
from tests.helpers.forked import Piped
from tests.helpers.patience import until


def test_a_second_ctrl_c_is_one_whatever_it_comes_into(scope, monkeypatch):
    """pydantic makes an error of its own of what its callbacks raise."""

    def ends_badly(**_):
        with Interruption():
            os.kill(os.getpid(), signal.SIGINT)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as error:
                raise ValueError("the callback failed") from error

    with monkeypatch.context() as patch:
        patch.setattr(cli, "command", lambda: ends_badly)
        ended = scope("generate")
    assert (ended.code, ended.stderr) == (130, "interrupted\n")
    assert scope("scorers").stderr == "", "the next one knows nothing of it"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_measurement_that_is_broken_off_says_so_and_keeps_its_rows(tiny_folder, tmp_path, number, code):
    out, prompt = tmp_path / "loops.json", tmp_path / "prompt.txt"
    prompt.write_text("Write.")
    measuring = Piped(
        "evaluate", "loops", "-f", prompt, "-p", "full", "--repeat", 5000, "--max-new-tokens", 16,
        "--lanes", 1, "--output", out, "--model", tiny_folder, "--set", "cache.kv=plain",
    )  # fmt: skip
    until(lambda: out.exists() or measuring.returncode is not None, "a row")
    measuring.send_signal(number)
    _, stderr = measuring.communicate()
    assert (measuring.returncode, stderr.splitlines()[-1]) == (code, b"interrupted"), stderr
    assert json.loads(out.read_text())["profiles"][0]["rows"]
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_a_signal_that_was_ignored_stays_so(tiny_folder, tmp_path):
    """A script's `scope ... &` finds Ctrl-C ignored: it is meant for whoever is in the foreground."""
    out = tmp_path / "out.txt"
    run = Piped(
        "generate", "Write.", "--model", tiny_folder, "--ignore-eos", "--max-new-tokens", 8000,
        "--budget", 64, "--recent", 16, "--compile", "off", "--output", out,
        ignores=(signal.SIGINT, signal.SIGHUP),
    )  # fmt: skip
    until(lambda: (out.exists() and out.stat().st_size > 20) or run.returncode is not None, "text")
    for number in (signal.SIGINT, signal.SIGHUP):
        run.send_signal(number)
    here = out.stat().st_size
    until(lambda: out.stat().st_size > here + 50 or run.returncode is not None, "more text")
    run.send_signal(signal.SIGTERM)
    _, stderr = run.communicate()
    assert run.returncode == 143 and b"interrupted" in stderr
