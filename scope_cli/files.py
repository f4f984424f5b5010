"""A path and a text in, the file whole out; a file in, nobody else who writes it."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from io import FileIO
from pathlib import Path
from typing import TextIO
from uuid import uuid4

from scope_cli.errors import BusyError

PARTIAL = ".scope-{}.new"  # a kill in the wrong moment leaves one


def replace_file(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a part; OSError leaves the old one."""
    with replacing(path) as file:
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file to write, which takes the place of `path` at the end; whatever is raised leaves the old one."""
    with replacing_by_name(path) as partial, partial.open("x", encoding="utf-8") as file:
        yield file


@contextmanager
def replacing_by_name(path: Path) -> Iterator[Path]:
    """The same for who opens the file by its name.

    The name is nobody else's: process ids are not enough where containers share a folder.
    """
    partial = path.with_name(PARTIAL.format(uuid4().hex))
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def lock(file: FileIO, path: Path) -> None:
    """Refuse a file that another run is writing. The system forgets the lock with the process that has it.

    Pipes and devices have many writers, and some file systems no locks: there nothing is refused.
    """
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(
            f"cannot write {path}: another run is writing it", "wait for its end, or name another file"
        ) from error
    except OSError:
        pass


def is_locked(path: Path) -> bool:
    """Is a run writing this file?"""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written; nobody else may be writing there."""
    for partial in folder.glob(PARTIAL.format("*")):
        with suppress(OSError):
            partial.unlink()


def cache_folder() -> Path:
    """Where everything lies that scope keeps between runs: $SCOPE_CACHE, else the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("SCOPE_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("scope")


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()
