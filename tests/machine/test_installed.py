"""Without bitsandbytes, Triton and matplotlib: a run does without, and what needs one says so at once."""

import subprocess
import sys

import pytest

HIDDEN = ("bitsandbytes", "triton", "matplotlib")
HIDE = f"""
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in {HIDDEN} else find(name, *more)
from scope_cli import cli
code = cli.main(sys.argv[1:])
sys.exit(code or bool(set({HIDDEN}) & set(sys.modules)))
"""


def test_a_text_is_written_without_any_of_them(tiny_folder, tmp_path):
    argv = ["generate", "hi", "--model", tiny_folder, "--max-new-tokens", "3", "--load-in", "none"]
    out = ["--output", tmp_path / "text.txt", "--quiet"]
    ran = subprocess.run([sys.executable, "-c", HIDE, *map(str, argv + out)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "text.txt").read_text() == ran.stdout


@pytest.mark.parametrize(
    "argv",
    [
        ["profile", "--plan", "--plot", "p.png"],
        ["profile", "--plan", "--plot", "p.html"],
        ["evaluate", "compare", "a.json", "--plot", "p.png"],
        ["bench", "hi", "--plot", "p.png"],
        ["batch", "prompts", "--output-dir", "out", "--report"],
        ["batch", "--status", "out", "--report"],
    ],
    ids=" ".join,
)
def test_a_picture_that_cannot_be_drawn_is_told_at_once(scope, monkeypatch, tmp_path, argv):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = scope(*argv)
    assert run.code == 2
    assert f"error: {'--report' if '--report' in argv else '--plot'} needs matplotlib" in run.stderr
    assert "hint: pip install matplotlib" in run.stderr


def test_a_plot_in_the_terminal_needs_no_matplotlib(scope, monkeypatch, tiny_folder):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = scope("profile", "--plan", "--model", tiny_folder, "--max-new-tokens", "8", "--plot", "-")
    assert run.code == 0


def test_weights_that_need_bitsandbytes_name_it(scope, monkeypatch, tiny_folder):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    run = scope("generate", "hi", "--model", tiny_folder, "--load-in", "8bit")
    assert run.code == 2 and "needs bitsandbytes" in run.stderr
