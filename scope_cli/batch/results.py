"""The ledger in, OUT/results.jsonl out: one JSON object per prompt, with its text."""

from pathlib import Path
from typing import Any

from scope_cli.batch.ledger import Ledger
from scope_cli.batch.rows import Row
from scope_cli.batch.writer import told
from scope_cli.console.safe import as_json
from scope_cli.files import replacing

NAME = "results.jsonl"


def append_result(out: Path, row: Row) -> None:
    """One row has ended: one line more, in the order in which they end."""
    line = as_json(as_result(out, row)) + "\n"
    try:
        with (out / NAME).open("ab", buffering=0) as file:
            file.write(line.encode())
    except OSError as error:
        raise told(out / NAME, error) from error


def write_results(ledger: Ledger, out: Path) -> None:
    """All of it anew, in the order of the inputs, from what the ledger knows."""
    try:
        with replacing(out / NAME) as file:
            for row in ledger.rows():
                file.write(as_json(as_result(out, row)) + "\n")
    except OSError as error:
        raise told(out / NAME, error) from error


def as_result(out: Path, row: Row) -> dict[str, Any]:
    """Everything about a row that somebody may want to compute with."""
    record = row.record or {}
    end = row.end
    return {
        "id": row.id,
        "state": row.state,
        "error": row.error,
        "output": row.output if row.state == "done" else None,
        "text": _text(out / row.output) if row.state == "done" else None,
        "reason": end.get("reason"),
        "prompt_tokens": row.prompt_tokens,
        "reused_prompt_tokens": end.get("reused_prompt_tokens"),
        "output_tokens": end.get("output_tokens"),
        "prefill_s": end.get("prefill_s"),
        "decode_s": end.get("decode_s"),
        "reading": end.get("reading"),
        "audit": end.get("audit"),
        "loop": end.get("loop"),
        "seed": row.seed,
        "sampling": row.sampling,
        "meta": row.meta,
        "attempts": row.attempts,
        "lanes": record.get("lanes"),
        "fewer_lanes": record.get("fewer_lanes"),
        "source": row.source,
        "content_hash": row.content_hash,
        "profile_hash": row.profile_hash,
        "started_at": record.get("started_at"),
        "finished_at": record.get("finished_at"),
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()  # byte for byte, line ends too
    except (OSError, UnicodeDecodeError):  # somebody took it away, or changed it
        return None
