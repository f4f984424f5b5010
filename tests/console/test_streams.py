"""Standard streams that are closed, full or left by their reader, and bugs: a sentence, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.patience import PATIENCE_S

ON_STDOUT = [
    ["--version"],
    ["--help"],
    ["profiles", "list"],
    ["profiles", "show"],
    ["scorers"],
    ["models", "list"],
]


def shell(redirections: str, *argv: object, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess:
    """`scope ARGV REDIRECTIONS`, as a shell starts it."""
    words = [sys.executable, "-m", "scope_cli", *[str(word) for word in argv]]
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirections}; exit ${{PIPESTATUS[0]}}', "bash", *words],
        input=stdin,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
    )


@pytest.mark.parametrize("argv", ON_STDOUT, ids=" ".join)
@pytest.mark.parametrize(("redirections", "why"), [(">&-", "it is closed"), ("> /dev/full", "No space left")])
def test_a_stdout_that_takes_nothing_is_a_sentence(argv, redirections, why):
    ran = shell(redirections, *argv)
    assert ran.returncode == 1
    assert ran.stderr.decode().strip().startswith("error: cannot write to standard output: ")
    assert why in ran.stderr.decode() and b"Traceback" not in ran.stderr


@pytest.mark.parametrize("redirections", ["2>&-", "2> /dev/full", "<&-", "2>&- <&-"])
def test_without_stderr_or_stdin_the_work_is_done(redirections):
    plain = shell("", "profiles", "show")
    ran = shell(redirections, "profiles", "show")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, plain.stdout, b"")


@pytest.mark.parametrize("redirections", ["2>&-", "2> /dev/full"])
def test_an_error_that_nobody_can_read_never_goes_to_stdout(redirections):
    ran = shell(redirections, "profiles", "show", "nosuch")
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, b"", b"")


@pytest.mark.parametrize("redirections", ["| true", "2>&1 | true", "2>&1 | head -c 1"])
@pytest.mark.parametrize("argv", [["profiles", "show"], ["scorers"]], ids=" ".join)
def test_a_reader_that_went_away_is_141_without_a_word(argv, redirections):
    ran = shell(redirections, *argv)
    assert ran.returncode in (0, 141)  # 0: all was in the pipe before the reader left
    assert ran.stderr == b""


def test_an_error_whose_reader_went_away_keeps_its_code_or_is_141():
    for redirections in ("2>&1 | true", "2>&1 | head -c 1"):
        ran = shell(redirections, "profiles", "show", "nosuch")
        assert ran.returncode in (2, 141) and ran.stderr == b""


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    """What is printed does not end in a file that happened to be opened first."""
    code = (
        "import sys; from scope_cli.console import streams; streams.mend(); "
        f"file = open({str(tmp_path / 'file')!r}, 'w'); sys.exit(file.fileno() < 3)"
    )
    script = f'{sys.executable} -c "$1" >&- 2>&- <&-'
    ran = subprocess.run(["bash", "-c", script, "bash", code], capture_output=True)
    assert (ran.returncode, (tmp_path / "file").read_text()) == (0, "")


def test_the_file_of_a_traceback_is_named(tmp_path):
    ran = shell("", "profiles", "show", SCOPE_CACHE=str(tmp_path), PYTHONPATH=str(_broken(tmp_path)))
    assert (ran.returncode, ran.stdout) == (1, b"")
    error, hint = ran.stderr.decode().splitlines()
    assert error == "error: unexpected ZeroDivisionError: division by\\x1b zero"
    file = Path(hint.partition(" with ")[2])
    assert file.parent == tmp_path / "tracebacks"
    said = file.read_text()
    assert (
        "scope profiles show" in said and "Traceback (most recent call last)" in said and "\x1b" not in said
    )


def test_a_traceback_that_cannot_be_written_is_printed(tmp_path):
    (tmp_path / "file").write_text("")
    ran = shell("", "profiles", "show", SCOPE_CACHE=str(tmp_path / "file"), PYTHONPATH=str(_broken(tmp_path)))
    *trace, error, hint = ran.stderr.decode().splitlines()
    assert ran.returncode == 1 and trace[0].startswith("Traceback") and "traceback above" in hint
    assert error.startswith("error: unexpected ZeroDivisionError")


def test_a_variable_prints_the_traceback(tmp_path):
    broken = {"SCOPE_CACHE": str(tmp_path), "PYTHONPATH": str(_broken(tmp_path)), "SCOPE_TRACEBACK": "1"}
    ran = shell("", "profiles", "show", **broken)
    assert (
        ran.returncode == 1 and ran.stderr.startswith(b"Traceback") and not (tmp_path / "tracebacks").exists()
    )
    known = shell("", "profiles", "show", "nosuch", SCOPE_TRACEBACK="1")
    assert known.returncode == 2 and b"Traceback" in known.stderr and b"hint: " in known.stderr


def _broken(folder: Path) -> Path:
    """A folder for PYTHONPATH with which `scope profiles show` has a bug."""
    (folder / "sitecustomize.py").write_text(
        f"import sys; sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "import yaml\n"
        "def safe_dump(*args, **more): raise ZeroDivisionError('division by\\x1b zero')\n"
        "yaml.safe_dump = safe_dump\n"
    )
    return folder


def test_ctrl_c_while_importing_is_130_without_a_traceback(tmp_path):
    """An import that takes for ever, interrupted: before the command line is read, and inside a command."""
    for module, argv in (("typer", ["--help"]), ("yaml", ["profiles", "show"])):
        folder = tmp_path / module
        folder.mkdir()
        (folder / f"{module}.py").write_text(
            "import sys, time\nprint('importing', flush=True)\n"
            "try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    raise ImportError('cut off')\n"
        )
        paths = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
        process = subprocess.Popen(
            [sys.executable, "-m", "scope_cli", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(2)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, stderr) == (130, b"interrupted\n")
