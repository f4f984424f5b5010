"""scope evaluate: is the text as good as with the full cache? One file per kind of measurement."""

import typer

from scope_cli.commands.evaluate import compare, fidelity, longgenbench, loops, recall

app = typer.Typer(
    help="Measure quality: profiles against the full cache, and against each other.", no_args_is_help=True
)
app.command("fidelity")(fidelity.fidelity_command)
app.command("recall")(recall.recall_command)
app.command("loops")(loops.loops_command)
app.command("longgenbench")(longgenbench.longgenbench_command)
app.command("compare")(compare.compare_command)
