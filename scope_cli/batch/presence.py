"""Which processes work on an output folder: each holds a lock for as long as it lives, however it ends."""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from scope_cli.errors import BusyError, ScopeError
from scope_cli.units import as_duration

FOLDER = ".scope"
JOIN_WAIT_S = 600.0  # another process may be reading ten thousand prompts
TOLD_AFTER_S = 5.0
HOST, PID = socket.gethostname(), os.getpid


class Presence:
    """This process, as others see it."""

    def __init__(self, out: Path) -> None:
        self.owner = uuid.uuid4().hex
        self._folder = out / FOLDER
        self._own = FileLock(self._lock_of(self.owner))

    def _lock_of(self, owner: str) -> Path:
        return self._folder / f"{owner}.lock"

    @contextmanager
    def starting(self, join: bool = False) -> Iterator[None]:
        """One process at a time looks at the others, at the inputs, and enters; who joins waits for that."""
        wait_s = JOIN_WAIT_S if join else TOLD_AFTER_S
        lock = FileLock(self._folder / "start.lock", timeout=wait_s)
        try:
            with self._told():
                self._folder.mkdir(exist_ok=True)
                lock.acquire()
        except Timeout as error:
            raise BusyError(
                f"another process has been starting on {self._folder.parent} for {as_duration(wait_s)}",
                "" if join else "--join waits for it, and shares the prompts",
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Timeout:
            raise
        except OSError as error:
            raise ScopeError(
                f"cannot lock {self._folder}: {error.strerror}", "is the output folder there, and writable?"
            ) from error

    def enter(self) -> None:
        with self._told():
            self._own.acquire(timeout=0)

    def leave(self) -> None:
        self._own.release()
        with suppress(OSError):  # the folder may be gone
            self._lock_of(self.owner).unlink()

    def others(self) -> list[str]:
        """Owners that are alive; the locks of the dead are cleared away."""
        alive = []
        for file in sorted(self._folder.glob("*.lock")):
            if file.stem in ("start", self.owner):
                continue
            lock = FileLock(file)
            try:
                lock.acquire(timeout=0)
            except OSError:  # Timeout is one; a lock that is not ours to take is somebody's
                alive.append(file.stem)
            else:
                lock.release()
                file.unlink(missing_ok=True)
        return alive
