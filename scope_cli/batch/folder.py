"""PROMPTS in, one Input per prompt out, in a fixed order: a directory, JSON lines in a file or on stdin."""

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from scope_cli import utf8
from scope_cli.batch.inputs import Input, fenced, hash_of, renamed
from scope_cli.batch.lines import read_lines
from scope_cli.errors import UsageError
from scope_cli.units import as_bytes

MOST_BYTES = 256 * 2**20  # a longer file is no prompt, and is not read
JSON_SUFFIXES = (".jsonl", ".ndjson")


def read_inputs(prompts: str, globs: Iterable[str] = (), leave_out: Path | None = None) -> Iterator[Input]:
    """Every prompt. `leave_out` is not looked into: the outputs may lie among the prompts."""
    if prompts == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed", "name a directory or a .jsonl file")
        return _told(sys.stdin.buffer, "standard input")
    path = Path(prompts).expanduser()
    if path.is_dir():
        return read_directory(path, tuple(globs) or ("*",), leave_out)
    if not path.exists():
        raise UsageError(
            f"there is no {prompts}", "PROMPTS is a directory, a .jsonl file, or - for standard input"
        )
    if path.suffix.lower() not in JSON_SUFFIXES:
        raise UsageError(
            f"{prompts} is neither a directory nor a .jsonl file",
            f"for one prompt there is `scope generate --prompt-file {prompts}`",
        )
    return _read_file_of_lines(path)


def _read_file_of_lines(path: Path) -> Iterator[Input]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield from _told(file, str(path))


def _told(lines: Iterable[bytes], name: str) -> Iterator[Input]:
    """A disk or a pipe that breaks in the middle ends the reading: nobody knows what would have come."""
    try:
        yield from read_lines(lines, name)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error


def read_directory(root: Path, globs: tuple[str, ...], leave_out: Path | None = None) -> Iterator[Input]:
    """Every file below `root` that a pattern matches, by path; names that begin with a dot are left out.

    A pattern without a slash is compared with the file's name, one with a slash with its path below `root`.
    """
    outputs = leave_out.resolve() if leave_out is not None else None
    taken, unnamed = set[str](), list[Input]()
    for path, problem in _walk(root, outputs, (root.resolve(),)):
        name = path.relative_to(root).as_posix()
        if not problem and not any(fnmatchcase(name if "/" in glob else path.name, glob) for glob in globs):
            continue
        found = Input(_in_utf8(name), _in_utf8(str(path)), problem=problem)
        if found.id != name:
            unnamed.append(replace(found, problem=problem or "its name is not UTF-8"))
        else:
            taken.add(name)
            yield found if problem else fenced(found, _read_file, path)
    yield from renamed(unnamed, taken)


def _walk(folder: Path, leave_out: Path | None, above: tuple[Path, ...]) -> Iterator[tuple[Path, str | None]]:
    """Files in order, and what cannot be entered with the reason."""
    try:
        entries = sorted(folder.iterdir(), key=_in_natural_order)
    except OSError as error:
        yield folder, f"cannot be entered: {error.strerror}"
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            kind = entry.stat().st_mode
        except OSError as error:  # a link to nowhere, or to itself
            yield entry, f"cannot be read: {error.strerror}"
            continue
        if not stat.S_ISDIR(kind):
            yield entry, None if stat.S_ISREG(kind) else "is not a regular file"
            continue
        where = entry.resolve()
        if where == leave_out:
            continue
        if where in above:
            yield entry, "is a link back to a folder that it lies in"
        else:
            yield from _walk(entry, leave_out, (*above, where))


def _in_natural_order(entry: Path) -> tuple[list[bytes | int], bytes]:
    """p1, p2, p10: digits count as numbers, everything else as its bytes."""
    name = os.fsencode(entry.name)
    parts = re.split(rb"(\d+)", name)  # digits at every odd place
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _read_file(found: Input, path: Path) -> Input:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            return replace(
                found,
                problem=f"is too large for a prompt: {as_bytes(size)}, at most {as_bytes(MOST_BYTES)}",
            )
        content = path.read_bytes()
    except OSError as error:
        return replace(found, problem=f"cannot be read: {error.strerror}")
    found = replace(found, content_hash=hash_of(content))
    try:
        text = utf8.decode(content)
    except utf8.NotText as error:
        return replace(found, problem=f"{error}; {error.hint(path.name)}" if error.encoding else str(error))
    if not text.strip():
        return replace(found, problem="is empty" if not text else "holds nothing but white space")
    return replace(found, text=text)


def _in_utf8(name: str) -> str:
    """A file name may be any bytes; those that are no UTF-8 are spelt as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
