"""PROMPTS in, one Input per prompt out, in a fixed order; what is wrong with a prompt is said in its Input.

PROMPTS is a directory, a file of JSON lines, or standard input with JSON lines. Nothing here raises for a
bad prompt: a job goes on without it. Every Input has an id of its own.
"""

import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scope_cli import utf8
from scope_cli.batch.foreign import Unreadable, as_ours, asked_model, plain
from scope_cli.errors import UsageError
from scope_cli.names import did_you_mean
from scope_cli.settings.schema import SamplingSettings
from scope_cli.units import as_bytes

MOST_BYTES = 256 * 2**20  # a longer file is no prompt, and is not read
HALF = re.compile("[\ud800-\udfff]")
JSON_SUFFIXES = (".jsonl", ".ndjson")
MOST_NESTED = 100  # objects and lists in each other: what is read has to be written again, a little deeper
KEYS = ("id", "prompt", "messages", "system", "sampling", "template_args", "meta")


@dataclass(frozen=True)
class Input:
    """One prompt as it was found; with a `problem` it cannot be run, and the rest may be missing."""

    id: str  # the path below the directory, or what the line calls itself
    source: str  # where it stands, for people
    content_hash: str = ""
    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()  # in place of the text
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)  # lies over the profile's
    template_args: dict[str, Any] = field(default_factory=dict)  # likewise
    meta: Any = None  # handed through to the results
    model: str = ""  # that the line asks for; every line is run with the job's
    problem: str | None = None


@dataclass(frozen=True)
class Frame:
    """What goes around every text: a template with {text} in it, and something behind."""

    template: str | None = None
    suffix: str = ""

    def around(self, text: str) -> str:
        return (text if self.template is None else self.template.replace("{text}", text)) + self.suffix


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


# A directory


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
            yield found if problem else _fenced(found, _read_file, path)
    yield from _renamed(unnamed, taken)


def _fenced(found: Input, read: Callable[[Input, Any], Input], source: Any) -> Input:
    """What nobody thought of is the problem of one prompt as well."""
    try:
        return read(found, source)
    except Exception as error:
        return replace(found, problem=f"cannot be read: {type(error).__name__}: {error}")


def _renamed(inputs: Iterable[Input], taken: set[str]) -> Iterator[Input]:
    """Inputs whose ids were made up, each with one that nobody else has: 'line-3 (a)', 'line-3 (a)-2'.

    They come last: an id that somebody gave is never in the way of one that was made up.
    """
    for one in inputs:
        own, number = one.id, 1
        while own in taken:
            number += 1
            own = f"{one.id}-{number}"
        taken.add(own)
        yield replace(one, id=own)


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
    found = replace(found, content_hash=_hash(content))
    try:
        text = utf8.decode(content)
    except utf8.NotText as error:
        return replace(found, problem=f"{error}; {error.hint(path.name)}" if error.encoding else str(error))
    if not text.strip():
        return replace(found, problem="is empty" if not text else "holds nothing but white space")
    return replace(found, text=text)


# JSON lines


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[Input]:
    """One JSON object a line: id, prompt or messages, and what else `KEYS` names; empty lines are skipped."""
    seen, again = dict[str, int](), list[Input]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = Input(f"line-{number}", f"{name}, line {number}", content_hash=_hash(line))
        found = _fenced(found, _read_line, line)
        if found.id in seen:
            problem = f"has the id of line {seen[found.id]}: {found.id}"
            own = f"line-{number} ({found.id})"
            again.append(Input(own, found.source, content_hash=_hash(line), problem=problem))
        else:
            seen[found.id] = number
            yield found
    yield from _renamed(again, set(seen))


def _read_line(found: Input, line: bytes) -> Input:
    try:
        fields = json.loads(utf8.decode(line), parse_constant=_no_number)
    except utf8.NotText as error:
        return replace(found, problem=str(error).removesuffix(", line 1"))
    except ValueError as error:
        return replace(found, problem=f"is not JSON: {error}")
    except RecursionError:
        return replace(found, problem=NESTED)
    if problem := _unwritable(fields):
        return replace(found, problem=problem)
    if not isinstance(fields, dict):
        return replace(found, problem=f"is a JSON {type(fields).__name__}, and has to be an object")
    name = "id" if "id" in fields else "custom_id"
    given = fields.get(name, found.id)
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        return replace(found, problem=f"has {_brief(given)} for an id, and it has to be a text or a number")
    # The id and the place are not part of what is asked for: another line may carry it tomorrow.
    asked = json.dumps({key: fields[key] for key in fields if key != name}, sort_keys=True)
    found = replace(found, id=str(given), content_hash=_hash(asked.encode()))
    try:
        return replace(_asked_for(found, as_ours(fields)), model=asked_model(fields))
    except Unreadable as problem:
        return replace(found, problem=str(problem))


def _asked_for(found: Input, fields: dict[str, Any]) -> Input:
    """Raises Unreadable."""
    problem = next(_problems(fields), None)
    if problem is not None:
        raise Unreadable(problem)
    return replace(
        found,
        text=fields.get("prompt", ""),
        messages=plain(fields.get("messages", [])),
        system=fields.get("system"),
        sampling=_sampling(fields),
        template_args=fields.get("template_args", {}),
        meta=fields.get("meta"),
    )


def _sampling(fields: dict[str, Any]) -> dict[str, Any]:
    """One stop text may stand without its list."""
    sampling = fields.get("sampling", {})
    stop = sampling.get("stop") if isinstance(sampling, dict) else None
    return {**sampling, "stop": [stop]} if isinstance(stop, str) else sampling


LONGEST_SHOWN = 80  # characters of a value that is wrong
NESTED = f"is nested more than {MOST_NESTED} deep"


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _unwritable(value: Any) -> str | None:
    """What Python reads as JSON and nobody can write again as such."""
    level = [value]
    for _ in range(MOST_NESTED):
        if not level:
            return None
        for one in level:
            if isinstance(one, float) and not isfinite(one):
                return "holds a number that is too large"
            texts = one if isinstance(one, dict) else [one]
            if any(isinstance(text, str) and HALF.search(text) for text in texts):
                return "holds half a character (a lone surrogate)"
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return NESTED if level else None


def _problems(fields: dict[str, Any]) -> Iterator[str]:
    for key in fields:
        if key not in KEYS:
            near = did_you_mean(key, KEYS)
            if key in SamplingSettings.model_fields:
                near = f'; write "sampling": {{"{key}": ...}}'
            yield f"has an unknown key {key!r}{near}"
    if "prompt" in fields and "messages" in fields:
        yield "has a prompt and messages, and takes one of them"
    elif "messages" in fields:
        yield from _problems_of_messages(fields["messages"])
        if "system" in fields:
            yield "has messages and a system message apart; put it first among the messages"
    elif "prompt" not in fields:
        yield "has neither prompt nor messages"
    elif not isinstance(fields["prompt"], str):
        yield "has a prompt that is not a text"
    elif not fields["prompt"].strip():
        yield "has an empty prompt"
    if not isinstance(fields.get("system", ""), str | None):
        yield "has a system message that is not a text"
    if not isinstance(fields.get("template_args", {}), dict):
        yield "has template_args that are not an object"
    if "sampling" in fields:
        yield from _problems_of_sampling(_sampling(fields))


def _problems_of_messages(given: Any) -> Iterator[str]:
    messages = plain(given)
    if not messages:
        yield "has no messages"
    elif messages[-1]["role"] in ("system", "developer"):
        yield f"has messages that end with the {messages[-1]['role']}'s: there is nothing to answer"
    elif not messages[-1]["content"].strip():
        yield "has an empty last message"


def _problems_of_sampling(sampling: Any) -> Iterator[str]:
    if not isinstance(sampling, dict):
        yield "has a sampling that is not an object"
        return
    for key in sampling:
        if key not in SamplingSettings.model_fields:
            yield f"sampling has an unknown key {key!r}{did_you_mean(key, SamplingSettings.model_fields)}"
            return
    try:
        settings = SamplingSettings.model_validate(sampling)
    except ValidationError as error:
        first = error.errors()[0]
        key, given, why = first["loc"][0], _brief(first["input"]), first["msg"]
        yield f"sampling.{key} is {given}: {why[0].lower()}{why[1:]}"
        return
    if sampling.get("max_new_tokens", 0) is not None:
        for key, text in settings.problems():
            yield f"sampling.{key} {text}"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _in_utf8(name: str) -> str:
    """A file name may be any bytes; those that are no UTF-8 are spelt as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
