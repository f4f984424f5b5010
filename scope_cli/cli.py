"""argv in, exit code out: registers the commands and shows what went wrong, in one place.

A command's module is imported when it is run or asked for help: `scope --help` needs none of them.
"""

import errno
import gc
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import scope_cli
from scope_cli.commands.menu import HELP_NAMES, Later, Menu
from scope_cli.console import crash, streams
from scope_cli.console.safe import printable
from scope_cli.console.signals import broken_off
from scope_cli.errors import OutOfMemoryError, ScopeError, is_out_of_memory
from scope_cli.settings.problems import about_value

EPILOG = """Examples: \b

    scope generate "Write a long letter from a lighthouse." --budget 256

    scope generate --prompt-file report.txt --output summary.txt

    scope batch prompts/ --output-dir texts

    scope profile --plan --model llama.gguf --memory 24GiB

For reading: README.md, and docs/reference: profiles.md has every setting, readings.md every number."""

app = typer.Typer(
    cls=Menu,
    name="scope",
    help="Long texts from a language model: the prompt's cache is kept, the output's is bounded.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP_NAMES},
)


def command() -> Menu:
    """All of it; its own options are switches, which take no value."""
    top = get_command(app)
    assert isinstance(top, Menu)
    asks = top.get_help_option(typer.Context(top, help_option_names=HELP_NAMES))
    for switch in [*top.params, *([asks] if asks else [])]:
        switch.metavar = ""
    return top


def _version(asked: bool) -> None:
    if asked:
        print(f"scope {scope_cli.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # of a stream that takes no more
READER_LEFT = 141  # 128 + SIGPIPE
GARBAGE = 100_000  # new objects between two looks for garbage: an import makes a million, and none is


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit codes are listed in docs/reference/cli.md."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    broken_off.signal = 0
    try:
        code = command()(args=arguments, prog_name="scope", standalone_mode=False, obj=arguments) or 0
        if not broken_off.signal:
            return code
        print("interrupted", file=sys.stderr)  # typer knows of Ctrl-C alone
        return broken_off.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return broken_off.exit_code
    except (Exception, SystemExit) as error:
        if broken_off.signal:  # whatever that into which it came has made of it
            print("interrupted", file=sys.stderr)
            return broken_off.exit_code
        with suppress(BrokenPipeError):
            return _told(error, arguments)
        streams.leave_stdout()
        return READER_LEFT


def _told(error: Exception | SystemExit, argv: Sequence[str]) -> int:
    """Say what went wrong, in one line and a hint; the exit code."""
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, SystemExit):
        if streams.reader_left(error):
            raise BrokenPipeError
        return error.code if isinstance(error.code, int) else 1
    if crash.wanted():
        print(crash.traceback_of(error), end="", file=sys.stderr)
    if isinstance(error, typer.TyperException):  # a command line that cannot be understood
        said = _in_words(error) or error.format_message()
        if not said:  # no command was named, and the help was the answer
            return 2
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else _named(argv)
        return _tell(said[0].lower() + said[1:].rstrip("."), f"{command} --help", 2)
    if is_out_of_memory(error) and not isinstance(error, ScopeError):
        error = OutOfMemoryError.of(error)
    elif isinstance(error, OSError) and error.filename is None and error.errno in FULL:
        streams.leave_stdout()
        error = streams.StdoutError(error)
    if isinstance(error, ScopeError):
        return _tell(str(error), error.hint, error.exit_code)
    return _tell_of_a_bug(error, argv)


def _named(argv: Sequence[str]) -> str:
    """The command that a command line names, as 'scope models list'."""
    found: Any = command()
    words = ["scope"]
    for word in argv:
        if not isinstance(found, TyperGroup) or word not in found.commands:
            break
        found = found.commands[word]
        found = found.real if isinstance(found, Later) else found
        words.append(word)
    return " ".join(words)


def _in_words(error: typer.TyperException) -> str:
    """'--budget: is 'abc'; it must be a whole number'; '' where a value is not what is wrong."""
    problems: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    param = getattr(error, "param", None)
    if not problems or param is None:
        return ""
    one = problems[0]
    words = about_value(one["type"], one.get("input"), one.get("ctx", {}))
    return f"{max(param.opts, key=len)}: {words}" if words else ""


def _tell_of_a_bug(error: Exception, argv: Sequence[str]) -> int:
    """Nobody foresaw it: the traceback goes into a file, or where no file can be written, to stderr."""
    kind, said = type(error).__name__, next(iter(str(error).strip().splitlines()), "")
    message = f"unexpected {kind}: {said}" if said else f"unexpected {kind}"
    file = None if crash.wanted() else crash.write(error, argv)
    if file is not None:
        return _tell(message, f"this is a bug in scope; please report it with {file}", 1)
    if not crash.wanted():
        print(crash.traceback_of(error), end="", file=sys.stderr)
    return _tell(message, "this is a bug in scope; please report it with the traceback above", 1)


def _tell(message: str, hint: str, code: int) -> int:
    print(f"error: {printable(message, lines=True)}", file=sys.stderr)
    if hint:
        print(f"hint: {printable(hint, lines=True)}", file=sys.stderr)
    return code


def run() -> None:
    """One process's whole life: streams that may be closed, signals at any time, what is still to flush."""
    gc.set_threshold(GARBAGE)
    streams.mend()
    broken_off.watch()
    code = main()
    broken_off.leave()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        streams.leave_stdout()
        code = code or READER_LEFT
    except OSError as error:
        streams.leave_stdout()
        code = code or _tell(str(streams.StdoutError(error)), "", 1)
    try:
        sys.stderr.flush()
    except BrokenPipeError:
        streams.leave_stderr()
    gc.freeze()  # else the interpreter looks for garbage among all that was imported, before it ends
    sys.exit(code)
