"""PROMPTS in, one Input per prompt out, in a fixed order; what is wrong with a prompt is said in its Input.

PROMPTS is a directory, a file of JSON lines, or standard input with JSON lines. Nothing here raises for a
bad prompt: a job goes on without it.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scope_cli import utf8
from scope_cli.errors import UsageError
from scope_cli.names import did_you_mean
from scope_cli.profile import SamplingSettings
from scope_cli.units import as_bytes

MOST_BYTES = 256 * 2**20  # a longer file is no prompt, and is not read
JSON_SUFFIXES = (".jsonl", ".ndjson")
KEYS = ("id", "prompt", "messages", "system", "sampling", "meta")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Input:
    """One prompt as it was found; with a `problem` it cannot be run, and the rest may be missing."""

    id: str  # the path below the directory, or what the line calls itself
    source: str  # where it stands, for people
    content_hash: str = ""
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()  # in place of the text
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)  # lies over the profile's
    meta: Any = None  # handed through to the results
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
        return read_lines(sys.stdin.buffer, "standard input")
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
        yield from read_lines(file, str(path))


# A directory


def read_directory(root: Path, globs: tuple[str, ...], leave_out: Path | None = None) -> Iterator[Input]:
    """Every file below `root` that a pattern matches, by path; names that begin with a dot are left out.

    A pattern without a slash is compared with the file's name, one with a slash with its path below `root`.
    """
    outputs = leave_out.resolve() if leave_out is not None else None
    for path, problem in _walk(root, outputs, (root.resolve(),)):
        name = path.relative_to(root).as_posix()
        shown = _printable(name)
        if shown != name:
            problem = problem or "its name is not UTF-8"
        if problem or any(fnmatchcase(name if "/" in glob else path.name, glob) for glob in globs):
            found = Input(shown, str(root / shown))
            yield replace(found, problem=problem) if problem else _read_file(found, path)


def _walk(folder: Path, leave_out: Path | None, above: tuple[Path, ...]) -> Iterator[tuple[Path, str | None]]:
    """Files in order, and what cannot be entered with the reason."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: os.fsencode(entry.name))
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
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _read_line(line, f"line-{number}", f"{name}, line {number}")
        if found.id in seen:
            again = f"has the id of line {seen[found.id]}: {found.id}"
            found = Input(
                f"line-{number} ({found.id})", found.source, content_hash=_hash(line), problem=again
            )
        seen[found.id] = number
        yield found


def _read_line(line: bytes, default_id: str, source: str) -> Input:
    found = Input(default_id, source, content_hash=_hash(line))
    try:
        fields = json.loads(utf8.decode(line))
    except utf8.NotText as error:
        return replace(found, problem=str(error).removesuffix(", line 1"))
    except ValueError as error:
        return replace(found, problem=f"is not JSON: {error}")
    if not isinstance(fields, dict):
        return replace(found, problem=f"is a JSON {type(fields).__name__}, and has to be an object")
    try:  # half of a surrogate pair: JSON can spell it, UTF-8 cannot
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return replace(found, problem="holds half a character (a lone surrogate)")
    given = fields.get("id", default_id)
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        return replace(found, problem=f"has {given!r} for an id, and it has to be a text or a number")
    # The id and the place are not part of what is asked for: another line may carry it tomorrow.
    asked = json.dumps({key: fields[key] for key in fields if key != "id"}, sort_keys=True)
    found = replace(found, id=str(given), content_hash=_hash(asked.encode()))
    problem = next(_problems(fields), None)
    if problem is not None:
        return replace(found, problem=problem)
    return replace(
        found,
        text=fields.get("prompt", ""),
        messages=tuple(fields.get("messages", ())),
        system=fields.get("system"),
        sampling=fields.get("sampling", {}),
        meta=fields.get("meta"),
    )


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
    if "sampling" in fields:
        yield from _problems_of_sampling(fields["sampling"])


def _problems_of_messages(messages: Any) -> Iterator[str]:
    fine = isinstance(messages, list) and all(
        isinstance(one, dict)
        and set(one) == {"role", "content"}
        and one["role"] in ROLES
        and isinstance(one["content"], str)
        for one in messages
    )
    if not fine:
        yield f"has messages that are not a list of {{role, content}} with a role of {', '.join(ROLES)}"
    elif not messages:
        yield "has no messages"
    elif messages[-1]["role"] != "user":
        yield f"has messages that end with the {messages[-1]['role']}'s, and not with the user's"
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
        yield f"sampling.{first['loc'][0]} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
        return
    if sampling.get("max_new_tokens", 0) is not None:
        for key, text in settings.problems():
            yield f"sampling.{key} {text}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _printable(name: str) -> str:
    """A file name may be any bytes; those that are no UTF-8 are shown as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
