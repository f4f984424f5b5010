"""A path and a text in, the file whole out."""

import os
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a part; OSError leaves the old one."""
    partial = path.with_name(f".{os.getpid()}.new")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
