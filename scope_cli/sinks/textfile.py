"""Events in, the text in a file out: a run that is killed keeps everything received so far."""

import os
import stat
import time
from io import FileIO
from pathlib import Path
from typing import Literal

from scope_cli.errors import ScopeError, UsageError
from scope_cli.events import Event, Finished, Token
from scope_cli.files import lock
from scope_cli.sinks.base import text_of
from scope_cli.units import as_bytes

FileMode = Literal["new", "append", "overwrite", "resume"]
SYNC_INTERVAL_S = 5


class TextFile:
    """Opens when made, before any model is loaded; FIFOs and devices are files too.

    Each piece of text is one write to an unbuffered file. "overwrite" keeps the old text until there
    is new text, so that a run that fails before that costs nothing. So does "resume", which goes on after the
    first `start` bytes.
    """

    def __init__(self, path: Path, mode: FileMode = "new", start: int = 0) -> None:
        self._path = path
        self._file = _open(path)
        status = os.fstat(self._file.fileno())
        self._is_regular = stat.S_ISREG(status.st_mode)
        lock(self._file, path)
        if mode == "new" and self._is_regular and status.st_size:
            self._file.close()
            hint = "--append writes behind what is there, --force replaces it"
            if path.with_name(f"{path.name}.state").is_file():
                hint = f"`scope resume {path}` continues it; {hint}"
            raise UsageError(f"cannot write {path}: it exists and holds {as_bytes(status.st_size)}", hint)
        self._replaces = mode in ("overwrite", "resume") and self._is_regular
        self._end = start if self._replaces else status.st_size  # of the last whole piece
        self._synced_at = time.monotonic()

    def receive(self, event: Event) -> None:
        text = text_of(event)
        if self._replaces and (text or isinstance(event, Token | Finished)):
            self._file.truncate(self._end)
            self._replaces = False
        if text:
            self._write(text.encode())

    def close(self) -> None:
        if not self._file.closed:
            with self._file:
                self._sync()

    @property
    def end(self) -> int:
        """Bytes of the file up to the last whole piece of text."""
        return self._end

    def sync(self) -> None:
        """Down to the disk, for a machine that loses power; a killed process needs no such help."""
        if not self._file.closed:
            self._sync()

    def _write(self, piece: bytes) -> None:
        rest = piece
        try:
            while rest:  # once, unless the disk takes only a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if self._is_regular:
                self._file.truncate(self._end)  # no half characters
            raise self._failed(error) from error
        self._end += len(piece)
        if time.monotonic() - self._synced_at >= SYNC_INTERVAL_S:
            self._sync()

    def _sync(self) -> None:
        try:
            if self._is_regular:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        self._synced_at = time.monotonic()

    def _failed(self, error: OSError) -> ScopeError:
        kept = f"the {as_bytes(self._end)} written before are kept" if self._is_regular else ""
        return ScopeError(f"cannot continue writing {self._path}: {error.strerror}", kept)


def _open(path: Path) -> FileIO:
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        hint = ""
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            hint = f"there is no folder {path.parent}; `mkdir -p {path.parent}` makes it"
        raise UsageError(f"cannot write {path}: {error.strerror}", hint) from error
