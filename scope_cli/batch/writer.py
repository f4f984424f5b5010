"""A row's text in, NAME.part out, which becomes NAME once the ledger says `done`."""

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from scope_cli.batch.outputs import PART, RECORD
from scope_cli.console.safe import as_json, printable
from scope_cli.errors import ScopeError
from scope_cli.files import replace_file

SYNC_INTERVAL_S = 5.0
DISK_IS_GONE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # no other row will fare better


class OutputError(ScopeError):
    """One output cannot be written; others may."""


class DiskError(ScopeError):
    """Nothing more can be written; what is done is done."""


class PartFile:
    """The text of one row as it comes, each piece one write."""

    def __init__(self, out: Path, output: str, start: int = 0) -> None:
        """start: bytes of an earlier attempt that it goes on behind"""
        self.path = out / output
        self.part = part_of(self.path)
        self.bytes = start
        self._synced_at = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if start:
                self._file = self.part.open("ab", buffering=0)
                self._file.truncate(start)
            else:  # a link of an earlier attempt would lead to somebody's file
                self.part.unlink(missing_ok=True)
                self._file = self.part.open("xb", buffering=0)
        except OSError as error:
            raise told(self.part, error) from error

    def write(self, text: str) -> None:
        rest = text.encode()
        try:
            while rest:
                written = self._file.write(rest)
                self.bytes += written
                rest = rest[written:]
            if time.monotonic() - self._synced_at >= SYNC_INTERVAL_S:
                self.sync()
        except OSError as error:
            raise told(self.part, error) from error

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """The text stays in NAME.part, down to the disk."""
        if self._file.closed:
            return
        try:
            with self._file:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise told(self.part, error) from error


def part_of(path: Path) -> Path:
    return path.with_name(path.name + PART)


def publish(out: Path, output: str, record: dict[str, Any]) -> None:
    """A row is done: NAME.part becomes NAME, and its record is written. Doing it again changes nothing.

    Another process may do the same at the same time. Raises OutputError where there is no text in the end.
    """
    path = out / output
    part = path.with_name(path.name + PART)
    try:
        write_record(path, record)
        with suppress(FileNotFoundError):
            part.replace(path)
        path.stat()
    except OSError as error:
        raise told(path, error) from error


def write_record(path: Path, record: dict[str, Any]) -> None:
    text = as_json(record, indent=2)
    write_whole(path.with_name(path.name + RECORD), f"{text}\n")


def write_whole(path: Path, text: str) -> None:
    try:
        replace_file(path, text)
    except OSError as error:
        raise told(path, error) from error


def told(path: Path, error: OSError) -> Exception:
    said = f"cannot write {printable(str(path))}: {error.strerror}"
    if error.errno in DISK_IS_GONE:
        return DiskError(said, "every finished prompt is kept; make room, and the same command continues")
    return OutputError(said, "is the folder there, and writable?")
