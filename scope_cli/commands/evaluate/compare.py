"""scope evaluate compare: results in, one table with paired differences out."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scope_cli.commands.evaluate.shared import Plot, check_writable
from scope_cli.errors import UsageError


def compare_command(
    results: Annotated[
        list[Path], typer.Argument(help="Results of one kind of evaluation.", show_default=False)
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The profile that others are compared with (full).")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="markdown, csv or json.")] = "markdown",
    metric: Annotated[str | None, typer.Option("--metric", help="What --plot shows: the first one.")] = None,
    plot: Plot = None,
) -> None:
    """Profiles of one or several results: means, intervals, and paired differences to a baseline.

    scope evaluate compare a.json b.json --baseline slide --plot memory.png
    """
    from scope_cli.names import did_you_mean

    if form not in ("markdown", "csv", "json"):
        raise UsageError(f"--format: there is no {form!r}{did_you_mean(form, ['markdown', 'csv', 'json'])}")
    check_writable(None, plot)

    import json as json_module

    from scope_cli.evaluate.compare import METRICS, as_csv, as_markdown, compare, differences, kind_of
    from scope_cli.evaluate.results import read_result

    read = [(path.name, read_result(path)) for path in results]
    kind = kind_of(read)
    if metric is not None and metric not in METRICS[kind]:
        raise UsageError(f"--metric: there is no {metric!r}{did_you_mean(metric, METRICS[kind])}")
    lines = compare(read, baseline)
    if form == "json":
        print(json_module.dumps([asdict(line) for line in lines]))
    elif form == "csv":
        print(as_csv(lines), end="")
    else:
        print(as_markdown(kind, lines) + "\n\n" + differences(kind, lines))
    if plot is not None:
        from scope_cli.evaluate import plots

        plots.against_bytes(lines, kind, metric or next(iter(METRICS[kind])), plot)
