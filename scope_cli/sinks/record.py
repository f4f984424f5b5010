"""Events in, FILE.run.json out: the profile, versions and readings that belong to the text in FILE."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from scope_cli.errors import ScopeError
from scope_cli.events import Event, Failed, Finished, Started
from scope_cli.files import replace_file
from scope_cli.safe import as_json


class RunRecord:
    """Written whole at the start ("running") and when every prompt is through ("finished" or "failed"), never
    in between.

    A run that was killed leaves the first version.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f"{output.name}.run.json")
        self._record: dict[str, Any] = {}

    def receive(self, event: Event) -> None:
        if isinstance(event, Started):
            self._record = {"status": "running", "started_at": _now(), "finished_at": None}
            self._record |= asdict(event) | {"results": []}
            self._write()
        elif isinstance(event, Finished | Failed):
            result = asdict(event)
            result.pop("text", None)  # the end of the text, and the text is in FILE
            results = self._record["results"] = [*self._record["results"], result]
            if len(results) == len(self._record["prompt_tokens"]):
                status = "failed" if any("error" in one for one in results) else "finished"
                self._record |= {"status": status, "finished_at": _now()}
                self._write()

    def close(self) -> None:
        """Everything was written when it was known."""

    def _write(self) -> None:
        text = as_json(self._record, indent=2)
        try:
            replace_file(self.path, f"{text}\n")
        except OSError as error:
            raise ScopeError(f"cannot write {self.path}: {error.strerror}") from error


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
