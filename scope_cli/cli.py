"""argv in, exit code out: registers the commands and shows what went wrong, in one place.

Nothing here imports torch; a command does when it runs.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import scope_cli
from scope_cli.commands import (
    batch,
    bench,
    calibrate,
    evaluate,
    generate,
    models,
    profile,
    profiles,
    scorers,
    tune,
)
from scope_cli.errors import ScopeError

app = typer.Typer(
    name="scope",
    help="Long texts from a language model on one GPU: the prompt's cache is kept, the output's is bounded.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate_command)
app.add_typer(profile.app, name="profile")
app.command("batch")(batch.batch_command)
app.add_typer(profiles.app, name="profiles")
app.add_typer(models.app, name="models")
app.command("scorers")(scorers.scorers_command)
app.command("prefills")(scorers.prefills_command)
app.add_typer(evaluate.app, name="evaluate")
app.command("tune")(tune.tune_command)
app.command("calibrate")(calibrate.calibrate_command)
app.command("bench")(bench.bench_command)


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
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return app(args=arguments, prog_name="scope", standalone_mode=False) or 0
    except ScopeError as error:
        return _tell(str(error), error.hint, error.exit_code)
    except typer.TyperException as error:  # a command line that cannot be understood
        said = error.format_message()
        if not said:  # no command was named, and the help was the answer
            return 2
        return _tell(said[0].lower() + said[1:].rstrip("."), "scope --help, scope COMMAND --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130


def _tell(message: str, hint: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code


def run() -> None:
    """The `scope` command."""
    sys.exit(main())
