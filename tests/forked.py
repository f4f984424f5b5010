"""`scope` as processes of their own that start in milliseconds: forked from one that has imported torch."""

import faulthandler
import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.patience import PATIENCE_S

HANGS_S = PATIENCE_S - 20  # then it says where
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.forked_preload"])


class Forked:
    """One command line in a process of its own; stdout and stderr go to files."""

    def __init__(self, folder: Path, *argv: object) -> None:
        self._outputs = folder / "stdout", folder / "stderr"
        folder.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in argv]
        self._process: BaseProcess = CONTEXT.Process(target=_run, args=(words, *map(str, self._outputs)))
        self._process.start()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """The exit code; minus the number of the signal that ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.stderr}")
        return self._process.exitcode

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def stdout(self) -> str:
        return _read(self._outputs[0])

    @property
    def stderr(self) -> str:
        return _read(self._outputs[1])


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _run(argv: list[str], stdout: str, stderr: str) -> None:
    from scope_cli import cli

    for number, name in ((1, stdout), (2, stderr)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.dump_traceback_later(HANGS_S, file=sys.stderr)
    code = cli.main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
