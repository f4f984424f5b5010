"""argv in, exit code out: registers the commands and shows what went wrong, in one place.

Nothing here imports torch; a command does when it runs.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import scope_cli
from scope_cli.commands import generate, models, profiles, scorers
from scope_cli.errors import ScopeError

app = typer.Typer(
    name="scope",
    help="Long texts from a language model on one GPU: the prompt's cache is kept, the output's is bounded.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate_command)
app.add_typer(profiles.app, name="profiles")
app.add_typer(models.app, name="models")
app.command("scorers")(scorers.scorers_command)
app.command("prefills")(scorers.prefills_command)


def _version(asked: bool) -> None:
    if asked:
        print(f"scope {scope_cli.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit codes are listed in docs/cli.md."""
    try:
        code = app(args=list(sys.argv[1:] if argv is None else argv), standalone_mode=True)
    except SystemExit as end:
        code = end.code
    except ScopeError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    return code if isinstance(code, int) else 0


def run() -> None:
    """The `scope` command."""
    sys.exit(main())
