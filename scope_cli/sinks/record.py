"""Events in, FILE.run.json out: the profile, versions and readings that belong to the text in FILE."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from scope_cli.console.safe import as_json
from scope_cli.errors import WriteError
from scope_cli.events import Event, Failed, Finished, Started
from scope_cli.files import replace_file

RECORD = ".run.json"


class RunRecord:
    """Written whole at the start ("running") and at the end, never in between.

    At the end it is "finished", "interrupted" (by a signal, or by a pipe's reader who left) or "failed", with
    the error. A run that was killed leaves the first version.

    about: where the text comes from: the command, the prompt
    """

    def __init__(self, output: Path, about: Mapping[str, Any] | None = None) -> None:
        self._about = dict(about or {})
        self.path = record_of(output)
        self._record: dict[str, Any] = {}

    def receive(self, event: Event) -> None:
        if isinstance(event, Started):
            self._record = {"status": "running", "started_at": _now(), "finished_at": None}
            self._record |= self._about | asdict(event) | {"results": []}
            self._write()
        elif isinstance(event, Finished | Failed):
            result = asdict(event)
            result.pop("text", None)  # the end of the text, and the text is in FILE
            results = self._record["results"] = [*self._record["results"], result]
            if len(results) >= len(self._record["prompt_tokens"]):
                self._end(_status(results))

    def close(self) -> None:
        """A second Ctrl-C broke off what was running."""
        if self._record.get("status") == "running":
            self._end("interrupted")

    def _end(self, status: str) -> None:
        self._record |= {"status": status, "finished_at": _now()}
        self._write()

    def _write(self) -> None:
        text = as_json(self._record, indent=2)
        try:
            replace_file(self.path, f"{text}\n")
        except OSError as error:
            raise WriteError(self.path, error) from error


def _status(results: list[dict[str, Any]]) -> str:
    if any("error" in one for one in results):
        return "failed"
    return "interrupted" if any(one["reason"] == "interrupted" for one in results) else "finished"


def record_of(output: Path) -> Path:
    """Beside a text, what is known of it."""
    return output.with_name(f"{output.name}{RECORD}")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
