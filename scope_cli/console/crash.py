"""An exception that nobody foresaw in, a file with its traceback out."""

import os
import platform
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from scope_cli import __version__
from scope_cli.console.safe import printable

WISH = "SCOPE_TRACEBACK"  # an environment variable: 1 prints tracebacks
MOST_OF_A_COMMAND = 4096  # characters: a prompt may be part of it


def wanted() -> bool:
    """Does the user want to see tracebacks?"""
    return os.environ.get(WISH, "") not in ("", "0")


def traceback_of(error: BaseException) -> str:
    return printable("".join(traceback.format_exception(error)), lines=True)


def write(error: BaseException, argv: Sequence[str]) -> Path | None:
    """The file, in the cache folder; None where there is no writing."""
    from scope_cli.files import cache_folder

    command = printable(shlex.join(["scope", *argv]))[:MOST_OF_A_COMMAND]
    about = f"scope {__version__}, Python {platform.python_version()}, {platform.platform()}"
    try:
        folder = cache_folder() / "tracebacks"
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now().strftime("%Y%m%d-%H%M%S-")
        number, name = tempfile.mkstemp(prefix=now, suffix=".txt", dir=folder)
        with open(number, "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor has no path
            file.write(f"{about}\n{command}\n\n{traceback_of(error)}")
    except (OSError, RuntimeError):  # a full disk, a folder that is not ours, no home
        return None
    return Path(name)
