"""scope evaluate compare: results in, one table with paired differences out."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scope_cli.commands.evaluate.shared import Plot
from scope_cli.commands.io import check_writable, tell
from scope_cli.console import tables
from scope_cli.errors import UsageError
from scope_cli.measure.evaluate.results import read_result
from scope_cli.names import did_you_mean

FORMATS = ("markdown", "csv", "json")


def compare_command(
    results: Annotated[
        list[Path], typer.Argument(help="Results of one kind of evaluation.", show_default=False)
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The profile that others are compared with (full).")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="markdown, csv or json (a table that fits the terminal; piped: markdown)."
        ),
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="What --plot shows: the first one.")] = None,
    plot: Plot = None,
) -> None:
    """Compare the profiles of one or more results: means, intervals, paired differences to a baseline.

    scope evaluate compare a.json b.json --baseline slide --plot memory.png
    """
    if form not in (None, *FORMATS):
        raise UsageError(f"--format: there is no {form!r}{did_you_mean(str(form), FORMATS)}")
    check_writable(None, plot)

    from scope_cli.measure.evaluate.compare import (
        METRICS,
        as_csv,
        as_table,
        compare,
        differences,
        kind_of,
        verdict,
    )

    read = [(str(path), read_result(path)) for path in results]
    kind = kind_of(read)
    if metric is not None and metric not in METRICS[kind]:
        raise UsageError(f"--metric: there is no {metric!r}{did_you_mean(metric, METRICS[kind])}")
    lines = compare(read, baseline)
    if form == "json":
        print(json_module.dumps([asdict(line) for line in lines]))
    elif form == "csv":
        print(as_csv(lines), end="")
    else:
        say = (lambda table: print(tables.as_markdown(table))) if form else tables.show
        say(as_table(kind, lines))
        minus = differences(kind, lines)
        if minus.rows:
            print()
            say(minus)
    if found := verdict(kind, lines):
        tell(f"verdict: {found}")
    if plot is not None:
        from scope_cli.measure.evaluate import plots

        plots.against_bytes(lines, kind, metric or next(iter(METRICS[kind])), plot)
