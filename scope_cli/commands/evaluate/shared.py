"""What the subcommands of scope evaluate share: options, the result as it grows, the table at its end."""

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_cli.commands.io import tell
from scope_cli.commands.variants import Variant
from scope_cli.console import tables
from scope_cli.console.tables import Table
from scope_cli.measure.evaluate.results import new_result, write_result
from scope_cli.models.opening import opened_model

if TYPE_CHECKING:
    from scope_cli.models.model import LoadedModel, OpenedModel

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write the result as JSON, for `scope evaluate compare`."),
]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw a plot: a .png, .svg or .pdf file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of the table.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
Lanes = Annotated[int, typer.Option("--lanes", min=1, help="Outputs to write at once.")]


def open_for(chosen: Sequence[Variant], offline: bool) -> "OpenedModel":
    """The one model of an evaluation."""
    with opened_model(chosen[0].settings.profile.model, offline) as opened:
        return opened


def load(opened: "OpenedModel", chosen: Sequence[Variant]) -> "tuple[LoadedModel, list[Variant]]":
    """The model with its weights, and the profiles with the slots that `auto` comes to for it."""
    from scope_cli.engine.slots_check import slots_of

    loaded, settled = opened.load(), []
    for variant in chosen:
        settings, why = slots_of(loaded, variant.settings)
        if why:
            tell(f"note: {variant.name}: {why}")
        settled.append(replace(variant, settings=settings))
    return loaded, settled


def start(
    kind: str, opened: "OpenedModel", chosen: Sequence[Variant], settings: dict[str, Any]
) -> dict[str, Any]:
    settings["sampling_seed"] = chosen[0].settings.profile.sampling.seed
    return new_result(kind, opened, settings)


def add_row(result: dict[str, Any], variant: Variant, row: dict[str, Any], output: Path | None) -> None:
    """One more measurement of a profile; the file has it at once."""
    from scope_cli.measure.evaluate.compare import mean_bytes

    entries = {entry["name"]: entry for entry in result["profiles"]}
    if variant.name not in entries:
        entries[variant.name] = {
            "name": variant.name,
            "profile": variant.settings.profile.as_dict(),
            "rows": [],
        }
        result["profiles"].append(entries[variant.name])
    entry = entries[variant.name]
    entry["rows"].append(row)
    entry["bytes"] = mean_bytes(entry["rows"])
    if output is not None:
        write(result, output)


def rows_of(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {entry["name"]: entry["rows"] for entry in result["profiles"]}


def write(result: dict[str, Any], output: Path) -> None:
    write_result(result, output)


def show(result: dict[str, Any], json: bool, found: Sequence["Table | str"] = ()) -> None:
    """The result on stdout: JSON where it was asked for, else tables, and words between them on stderr."""
    from scope_cli.measure.evaluate.compare import as_table, baseline_of, compare, differences, verdict

    if json:
        print(json_module.dumps(result, ensure_ascii=False))
    for one in () if json else found:
        if not one:
            print()
        elif isinstance(one, str):
            tell(one)
        else:
            tables.show(one)
    if found or not result["profiles"]:
        return
    kind, lines = result["scope_evaluate"], compare([("", result)])
    if not json:
        tables.show(as_table(kind, lines))
        if len(result["profiles"]) > 1:
            tell(f"* differs from {baseline_of(lines)}")
            tables.show(differences(kind, lines), sys.stderr)
    if said := verdict(kind, lines):
        tell(f"verdict: {said}")
