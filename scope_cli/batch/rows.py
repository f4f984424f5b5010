"""A row of the ledger in, a Row out: one prompt, its state, and how it ended.

SQLite has no checksums, so what is kept as JSON carries one of its own: a byte that a disk has turned is
noticed.
"""

import json
import re
import sqlite3
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from scope_cli.console.safe import as_json, printable

State = Literal["waiting", "running", "done", "failed", "interrupted"]
STATES: tuple[State, ...] = ("waiting", "running", "done", "failed", "interrupted")
DAMAGED = "what the ledger kept of it is damaged"
SEAL = re.compile("[0-9a-f]{8} ")  # a checksum before JSON


@dataclass(frozen=True)
class Row:
    number: int
    id: str
    source: str
    output: str
    content_hash: str
    state: State = "waiting"
    error: str | None = None
    detail: str | None = None
    prompt_ids: bytes | None = None
    prompt_tokens: int | None = None
    planned: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    meta: Any = None
    seed: int | None = None
    group_number: int | None = None
    turn: int | None = None
    attempts: int = 0
    owner: str | None = None
    profile_hash: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    record: dict[str, Any] | None = None

    @property
    def end(self) -> dict[str, Any]:
        """How it ended: tokens, times, readings; empty while it has not, and where it never ran."""
        found: list[dict[str, Any]] = (self.record or {}).get("results", [])
        return found[0] if found else {}


AS_JSON = ("sampling", "meta", "record")
COLUMNS = tuple(Row.__dataclass_fields__)
KINDS = get_type_hints(Row) | dict.fromkeys(AS_JSON, str | None) | {"state": str}


def row_of(found: sqlite3.Row) -> Row:
    """As it was put; one that cannot be read has failed, and the reason says so."""
    values = dict(found)
    try:
        for name, value in values.items():
            if not isinstance(value, KINDS[name]) or (name == "state" and value not in STATES):
                raise ValueError(name)
            if isinstance(value, str):
                value.encode()
        values |= {name: unsealed(values[name]) for name in AS_JSON if values[name] is not None}
    except ValueError:
        name, source, output = (printable(str(values[key])) for key in ("id", "source", "output"))
        return Row(values["number"], name, source, output, content_hash="", state="failed", error=DAMAGED)
    return Row(**values)


def to_json(value: Any) -> str | None:
    return None if value is None else sealed(value)


def sealed(value: Any) -> str:
    """JSON with its checksum in front."""
    text = as_json(value)
    return f"{zlib.crc32(text.encode()):08x} {text}"


def unsealed(text: Any) -> Any:
    """Raises ValueError where not every byte is as it was written; JSON alone is what older ledgers hold."""
    if not isinstance(text, str):
        raise ValueError("no text")
    if SEAL.match(text):
        seal, text = text[:8], text[9:]
        if f"{zlib.crc32(text.encode()):08x}" != seal:
            raise ValueError("the checksum differs")
    return json.loads(text)
