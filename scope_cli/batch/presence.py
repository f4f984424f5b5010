"""Which processes work on an output folder: each holds a lock for as long as it lives, however it ends."""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from scope_cli.errors import BusyError
from scope_cli.units import as_duration

FOLDER = ".scope"
START_WAIT_S = 600.0  # another process may be reading ten thousand prompts
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
    def starting(self, wait_s: float = START_WAIT_S) -> Iterator[None]:
        """One process at a time looks at the others, at the inputs, and enters."""
        self._folder.mkdir(exist_ok=True)
        try:
            with FileLock(self._folder / "start.lock", timeout=wait_s):
                yield
        except Timeout as error:
            raise BusyError(
                f"another process has been starting on {self._folder.parent} for {as_duration(wait_s)}"
            ) from error

    def enter(self) -> None:
        self._own.acquire(timeout=0)

    def leave(self) -> None:
        self._own.release()
        self._lock_of(self.owner).unlink(missing_ok=True)

    def others(self) -> list[str]:
        """Owners that are alive; the locks of the dead are cleared away."""
        alive = []
        for file in sorted(self._folder.glob("*.lock")):
            if file.stem in ("start", self.owner):
                continue
            lock = FileLock(file)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                alive.append(file.stem)
            else:
                lock.release()
                file.unlink(missing_ok=True)
        return alive
