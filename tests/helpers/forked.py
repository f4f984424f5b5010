"""`scope` as processes of their own that start in milliseconds: forked from one that has imported torch."""

import faulthandler
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from tests.helpers.patience import PATIENCE_S

HANGS_S = PATIENCE_S - 20  # then it says where
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.helpers.forked_preload"])


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


class Piped:
    """One command line in a process of its own, its streams at pipes; used like `subprocess.Popen`.

    stdin: a pipe, or nothing to read
    stdout: a file that it writes to in place of the pipe
    merged: stderr goes where stdout goes
    ignores: signals that it finds ignored, as under nohup
    """

    def __init__(
        self,
        *argv: object,
        stdin: bool = False,
        stdout: str = "",
        merged: bool = False,
        ignores: tuple[int, ...] = (),
    ) -> None:
        (given, stdin_end), (stdout_end, out), (stderr_end, err) = (os.pipe() for _ in range(3))
        self.stdin = os.fdopen(stdin_end, "wb", buffering=0)
        self.stdout, self.stderr = os.fdopen(stdout_end, "rb"), os.fdopen(stderr_end, "rb")
        if stdout:
            os.close(out)
            out = os.open(stdout, os.O_WRONLY)
        streams = [Descriptor(one) for one in (given, out, out if merged else err)]
        words = [str(word) for word in argv]
        self._process = CONTEXT.Process(target=_run_on, args=(words, *streams, dict(os.environ), ignores))
        self._process.start()
        for one in (given, out, err):
            os.close(one)
        if not stdin:
            self.stdin.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """The exit code; minus the number of the signal that ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s")
        return self._process.exitcode

    def communicate(self, given: bytes = b"", timeout: float = PATIENCE_S) -> tuple[bytes, bytes]:
        """What it says on both streams until its end."""
        with ThreadPoolExecutor() as readers:
            said = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            if not self.stdin.closed:
                self.stdin.write(given)
                self.stdin.close()
            self.wait(timeout)
            return said[0].result(), said[1].result()


class Descriptor:
    """A file's number, which is another one in the process that gets it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple:
        return _number, (DupFd(self.number),)


def _number(passed: Any) -> int:
    return passed.detach()


def _run_on(
    argv: list[str], stdin: int, stdout: int, stderr: int, env: dict[str, str], ignores: tuple[int, ...]
) -> None:
    os.environ.update(env)
    for number, stream in enumerate((stdin, stdout, stderr)):
        os.dup2(stream, number)
        os.close(stream)
    for ignored in ignores:
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["scope", *argv]
    faulthandler.dump_traceback_later(HANGS_S, file=sys.stderr)
    from scope_cli.__main__ import run

    try:
        run()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


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
