import io
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from scope_cli.events import Audit, Finished, Loop, Reading, Token
from scope_cli.sinks.jsonl import EVENT_NAMES, TOKEN_READINGS, JsonLines

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "events.md"


def written(events) -> list[dict]:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    sink = JsonLines(stdout)
    for event in events:
        sink.receive(event)
    return [json.loads(line) for line in stdout.buffer.getvalue().decode().splitlines()]


def test_each_event_is_one_named_object_with_its_own_fields(events_of_a_run):
    events = events_of_a_run(["a\n", "漢"])
    for event, one in zip(events, written(events), strict=True):
        assert one.pop("event") == EVENT_NAMES[type(event)]
        expected = {field.name for field in fields(event)}
        if isinstance(event, Token):
            expected = expected - {"reading"} | set(TOKEN_READINGS)
        if isinstance(event, Finished):
            expected = expected | {"full_text"}
        assert set(one) == expected


def test_values_are_the_events_values(events_of_a_run):
    *_, token, finished = written(events_of_a_run(["a", "漢"], loop=Loop(6, 411, 1120, True)))
    assert (token["n"], token["text"], token["held_bytes"]) == (2, "漢", 12 * 2**20)
    assert finished["full_text"] == "a漢"
    assert finished["reading"]["host_bytes"] == 25680
    assert finished["loop"] == {"period": 6, "start": 411, "tokens": 1120, "to_the_end": True, "near": False}


@pytest.mark.parametrize(
    ("section", "kind"),
    [(name, kind) for kind, name in EVENT_NAMES.items()]
    + [("reading", Reading), ("audit", Audit), ("loop", Loop)],
)
def test_every_field_is_documented_and_nothing_else(section, kind):
    text = DOCS.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    known = {field.name for field in fields(kind)}
    if kind is Token:
        known = known - {"reading"} | set(TOKEN_READINGS)
    if kind is Finished:
        known = known | {"full_text"}
    assert set(re.findall(r"`(\w+)`", " ".join(first_cells))) == known
