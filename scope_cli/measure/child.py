"""A measurement in a process of its own: requests in, answers out, a line of JSON each.

Before an answer come any number of {"progress": ...}. A request that cannot be met is answered by
{"error": ...}, with a "hint" and an "exit_code" where they are known. Only the standard library is imported
here: the process may live in an environment without scope.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import TIMEOUT_MAX, Timer
from typing import IO, Any

import scope_cli
from scope_cli.console.safe import as_json

Message = dict[str, Any]
QUIT_S = 5.0  # that long a process may take to end when nothing more is asked of it
PR_SET_PDEATHSIG = 1  # of prctl(2)


class NoAnswer(Exception):
    """The process could not be started, ended, was late, or said something else. `code`: as it ended."""

    def __init__(self, why: str, code: int | None = None) -> None:
        super().__init__(why)
        self.code = code


class Child:
    """The process, for who asks.

    in_turn: it is stopped while nothing is asked of it; some programs keep a core busy as they wait
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        timeout_s: float = TIMEOUT_MAX,
        in_turn: bool = False,
    ) -> None:
        self.timeout_s, self.in_turn, self.late = timeout_s, in_turn, False
        self._words: IO[bytes] = TemporaryFile()  # noqa: SIM115  closed with the process
        ours = str(Path(scope_cli.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [ours, env.get("PYTHONPATH")]))
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self._words, env={**env, "PYTHONPATH": path},
                text=True, encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            raise NoAnswer(f"cannot start {command[0]}: {error.strerror}") from error

    def ask(self, request: Message, heard: Callable[[Message], None] = lambda told: None) -> Message:
        """`heard` gets what is told on the way. Raises NoAnswer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        watch, line = Timer(self.timeout_s, self._give_up), ""
        watch.start()
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(f"{as_json(request)}\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                told: Message = json.loads(line)
                if "progress" not in told:
                    self._signal(signal.SIGSTOP)
                    return told
                heard(told)
        except BrokenPipeError:
            pass
        except ValueError as error:
            raise NoAnswer(f"does not speak the protocol: {line.strip()[:80]!r}") from error
        finally:
            watch.cancel()
        code = self.process.wait()
        if self.late:
            raise NoAnswer(f"no answer to a request within {self.timeout_s:.0f} s", code)
        last = self.words().strip().rpartition("\n")[2].strip()
        raise NoAnswer(f"ended with exit code {code}" + (f": {last}" if last else ""), code)

    def _signal(self, number: int) -> None:
        if self.in_turn:
            self.process.send_signal(number)

    def _give_up(self) -> None:
        self.late = True
        self.kill()

    def words(self) -> str:
        """What it has said on stderr."""
        self._words.seek(0)
        return self._words.read().decode(errors="replace")

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        """Let it end, if it is in time."""
        self._signal(signal.SIGCONT)
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(QUIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._words.close()


def serve(
    answer: Callable[[Message, Callable[..., None]], Message], told: type[Exception] = Exception
) -> None:
    """Be such a process until stdin ends; whatever else is printed goes to stderr.

    answer: gets a request, and what tells of progress
    told: errors that are an answer; any other ends the process
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks hears it, and ends us
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # a line at a time: who is killed has said what it said

    def tell(**line: Any) -> None:
        print(as_json(line), file=answers, flush=True)

    for line in sys.stdin:
        try:
            tell(**answer(json.loads(line), tell))
        except told as error:
            traceback.print_exc()
            hint, code = getattr(error, "hint", ""), getattr(error, "exit_code", 1)
            tell(error=str(error).strip() or type(error).__name__, hint=hint, exit_code=code)


def end_with_parent() -> None:
    """Where the system is Linux: a process that is stopped would never learn that nobody asks any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
