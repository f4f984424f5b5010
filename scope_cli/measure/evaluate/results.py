"""Measurements in, one JSON file per evaluation out: profiles, versions, seeds, hardware; and back again."""

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.console.safe import as_json
from scope_cli.errors import UsageError, WriteError
from scope_cli.files import replace_file
from scope_cli.machine.description import machine

if TYPE_CHECKING:
    from scope_cli.models.model import OpenedModel

FORMAT = 1


def new_result(kind: str, opened: "OpenedModel", settings: dict[str, Any]) -> dict[str, Any]:
    """What every evaluation's JSON starts with; `profiles` is filled as they are measured."""
    from scope_cli.engine.facts import versions

    return {
        "scope_evaluate": kind,
        "format": FORMAT,
        "measured_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": machine(opened.device),
        "model": opened.describe(),
        "settings": settings,
        "profiles": [],
    }


def identity(*ids: list[int]) -> str:
    """A short name for token ids: two results with the same name were measured on the same text."""
    return hashlib.sha256(json.dumps(ids, allow_nan=False).encode()).hexdigest()[:16]


def write_result(result: dict[str, Any], path: Path) -> None:
    try:
        replace_file(path, f"{as_json(result)}\n")
    except OSError as error:
        raise WriteError(path, error) from error


def read_result(path: Path) -> dict[str, Any]:
    """Raises UsageError for what is no result of `scope evaluate`."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "give files that `scope evaluate ... --output` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(result, dict) or "scope_evaluate" not in result:
        raise UsageError(f"{path} is not a result of scope evaluate", "--output of scope evaluate writes one")
    if result.get("format") != FORMAT:
        raise UsageError(f"{path} has format {result.get('format')}; this version reads {FORMAT}")
    return result


class Rows:
    """Measurements that are kept one by one, one JSON object a line: what is there is not measured again."""

    def __init__(self, path: Path, key: Callable[[dict[str, Any]], Any]) -> None:
        self.path, self._key = path, key

    def read(self) -> list[dict[str, Any]]:
        """A line that a killed process left unfinished does not count."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def done(self) -> set[Any]:
        return {self._key(row) for row in self.read()}

    def add(self, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if unfinished else "") + as_json(row) + "\n")
