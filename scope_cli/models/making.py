"""What takes long and writes much, announced and shown; one process at a time makes a folder. No torch."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scope_cli.errors import ModelError
from scope_cli.files import cache_folder
from scope_cli.units import as_bytes

Say = Callable[[str], None]
ELSEWHERE = "SCOPE_CACHE names another folder for models"


@contextmanager
def making(needed: int, what: str, say: Say) -> Iterator[Callable[[int], None]]:
    """Around what writes `needed` bytes into our cache folder: says so beforehand, and shows how far it is.

    What is yielded is told how many bytes there are by now. Raises ModelError where they cannot be written.
    """
    where = cache_folder()
    try:
        where.mkdir(parents=True, exist_ok=True)
        if needed > (free := shutil.disk_usage(where).free):
            raise ModelError(
                f"{what} takes {as_bytes(needed)} in {where}, {as_bytes(free)} are free there",
                f"{ELSEWHERE}; `scope models rm` makes room",
            )
        say(f"{what}, once: {as_bytes(needed)} in {where}")
        with bar(what.partition(" ")[0], needed) as show:
            yield show
    except OSError as error:
        if error.errno is None:
            raise
        raise ModelError(f"{what} failed: {error.filename or where}: {error.strerror}", ELSEWHERE) from error


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal's stderr; what it yields is told how many there are by now."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=min(done, total))


@contextmanager
def alone(folder: Path, say: Say) -> Iterator[None]:
    """One process at a time makes `folder`; the lock ends with its process.

    Raises ModelError where none can be had: what cannot be locked cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            say(f"another scope is making {folder.name}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise ModelError(f"cannot write to {folder.parent}: {error.strerror}", ELSEWHERE) from error
    try:
        yield
    finally:
        lock.release()
