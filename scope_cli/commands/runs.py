"""scope runs: a folder in; its texts out, through or not, how far, and what goes on with them."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scope_cli.console.safe import as_json, printable
from scope_cli.engine.checkpoint import Refused, read_facts
from scope_cli.errors import UsageError
from scope_cli.files import is_locked
from scope_cli.sinks.record import RECORD
from scope_cli.sinks.states import state_of

COLOURS = {"finished": "green", "running": "yellow", "failed": "red"}


@dataclass(frozen=True)
class ListedRun:
    """One text, from its record and its state."""

    text: str
    status: str  # running, finished, interrupted, failed, or killed: nobody writes it any more
    tokens: int | None  # written, as far as is known
    planned: int | None
    goes_on: bool  # with scope resume
    started_at: str | None
    model: str
    policy: str


def runs_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder with the texts.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """List the texts in a folder: finished or not, how long, with which settings.

    scope runs texts/
    """
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}",
            "give one with texts; without one, this folder is listed",
        )
    found = runs_in(folder)
    if json:
        print(as_json([asdict(run) for run in found], indent=2))
    elif not found:
        hint = f"; `scope batch --status {folder}` shows the job there" * (folder / "scope.db").is_file()
        print(printable(f"no text of scope generate in {folder}{hint}"))
    else:
        _print(found)


def runs_in(folder: Path) -> list[ListedRun]:
    """By name; what cannot be read is left out."""
    found = []
    for file in sorted(folder.glob(f"*{RECORD}")):
        try:
            record = json_module.loads(file.read_bytes())
            found.append(_run_of(file.with_name(file.name.removesuffix(RECORD)), record))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            continue
    return found


def _run_of(text: Path, record: dict[str, Any]) -> ListedRun:
    status, results = record["status"], record["results"]
    tokens, goes_on = results[0].get("output_tokens") if results else None, False
    try:
        lane = read_facts(state_of(text))["lane"] or {"written": 0}
        tokens = lane["written"] if tokens is None else tokens
        goes_on = status != "finished" or lane.get("reason") == "length"
    except (Refused, KeyError):
        pass
    if status == "running" and not is_locked(text):
        status = "killed"
    planned, model = record["max_new_tokens"], record["model"]["name"]
    return ListedRun(
        text.name, status, tokens, planned, goes_on, record["started_at"], model, record["policy"]
    )


def _print(found: list[ListedRun]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("text", "status", "tokens", "begun", "model", "policy"):
        table.add_column(column, justify="right" if column == "tokens" else "left", overflow="fold")
    for run in found:
        how_far = "" if run.tokens is None else f"{run.tokens:,} of {run.planned:,}"
        status = Text(printable(run.status), COLOURS.get(run.status, "yellow"))
        begun = str(run.started_at or "")[:16].replace("T", " ")
        table.add_row(
            Text(printable(run.text)), status, how_far, begun, run.model, Text(printable(run.policy))
        )
    console = Console()
    console.print(table)
    if left := [run.text for run in found if run.goes_on and run.status not in ("running", "finished")]:
        console.print(Text(f"`scope resume {printable(left[0])}` continues the first of {len(left)}"))
