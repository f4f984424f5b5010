"""JSON lines in, one Input per line out: id, prompt or messages, and what else `KEYS` names."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import isfinite
from typing import Any

from pydantic import ValidationError

from scope_cli import utf8
from scope_cli.batch.foreign import Unreadable, as_ours, asked_model, plain
from scope_cli.batch.inputs import Input, fenced, hash_of, renamed
from scope_cli.names import did_you_mean
from scope_cli.settings.schema import SamplingSettings

HALF = re.compile("[\ud800-\udfff]")
KEYS = ("id", "prompt", "messages", "system", "sampling", "template_args", "meta")
MOST_NESTED = 100  # objects and lists in each other: what is read has to be written again, a little deeper
LONGEST_SHOWN = 80  # characters of a value that is wrong
NESTED = f"is nested more than {MOST_NESTED} deep"


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[Input]:
    """One JSON object a line: id, prompt or messages, and what else `KEYS` names; empty lines are skipped."""
    seen, again = dict[str, int](), list[Input]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = Input(f"line-{number}", f"{name}, line {number}", content_hash=hash_of(line))
        found = fenced(found, _read_line, line)
        if found.id in seen:
            problem = f"has the id of line {seen[found.id]}: {found.id}"
            own = f"line-{number} ({found.id})"
            again.append(Input(own, found.source, content_hash=hash_of(line), problem=problem))
        else:
            seen[found.id] = number
            yield found
    yield from renamed(again, set(seen))


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
        return replace(found, problem=f"is a JSON {type(fields).__name__}; it must be an object")
    name = "id" if "id" in fields else "custom_id"
    given = fields.get(name, found.id)
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        return replace(found, problem=f"has {_brief(given)} for an id, and it has to be a text or a number")
    # The id and the place are not part of what is asked for: another line may carry it tomorrow.
    asked = json.dumps({key: fields[key] for key in fields if key != name}, sort_keys=True)
    found = replace(found, id=str(given), content_hash=hash_of(asked.encode()))
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
