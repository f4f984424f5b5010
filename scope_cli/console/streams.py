"""The three standard streams as the shell left them in; streams that fail in good order out.

A service or `>&-` starts a program with a descriptor closed. The next file that is opened would take its
number, and get what is written to the stream; so each gets an end of its own first.
"""

import errno
import fcntl
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from scope_cli.errors import ScopeError


class _Forgiving(io.FileIO):
    """stderr: where it is full or its terminal is gone, nobody can be told of it, and the work goes on."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise
        except OSError:
            return len(data)  # type: ignore[arg-type]


def mend() -> None:
    """Once, before anything else is opened. A closed stdin or stdout answers every use with EBADF."""
    for number, way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, way)  # takes the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  it is open for as long as we are
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    raw = io.BufferedWriter(_Forgiving(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True, write_through=True)


def is_closed(stream: object) -> bool:
    """Was standard output closed when we started, or is it open for reading alone?"""
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
        return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except (AttributeError, ValueError, OSError):  # a stream without a descriptor, as tests have them
        return False


def reader_left(error: BaseException) -> bool:
    """Did a pipe's reader go away? typer and rich make a SystemExit of it."""
    one: BaseException | None = error
    while one is not None and not isinstance(one, BrokenPipeError):
        one = one.__cause__ or one.__context__
    return one is not None


def same_place(one: object, other: object) -> bool:
    """Do two streams end in one pipe, file or terminal?"""
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))  # type: ignore[attr-defined]
    except (AttributeError, ValueError, OSError):
        return False


class StdoutError(ScopeError):
    """Standard output is closed or full."""

    def __init__(self, error: OSError) -> None:
        closed = error.errno == errno.EBADF
        super().__init__(f"cannot write to standard output: {'it is closed' if closed else error.strerror}")


def leave_stdout() -> None:
    """From now on what is written there goes nowhere: also what Python still holds, at the very end."""
    _leave(sys.stdout)


def leave_stderr() -> None:
    _leave(sys.stderr)


def _leave(stream: TextIO) -> None:
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
