"""Prompts and texts in, from wherever they were named; lines for people out, on stderr."""

import errno
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scope_cli import utf8
from scope_cli.commands.options import Given
from scope_cli.commands.overrides import text_argument
from scope_cli.console import tables
from scope_cli.console.safe import printable
from scope_cli.errors import UsageError
from scope_cli.machine.installed import need

PICTURES = (".png", ".svg", ".pdf")
HOW_TO_PROMPT = "give it as an argument, with --prompt-file FILE, or pipe it in"


@dataclass(frozen=True)
class TypedPrompt:
    """A prompt, and where it stands."""

    text: str
    file: str | None = None  # "-" is standard input


def prompts_of(argument: str | None, files: list[str]) -> list[TypedPrompt]:
    """The prompts from the one place they were given in; without any, what is piped in."""
    if argument is not None and files:
        raise UsageError("a prompt and --prompt-file cannot be combined")
    if files.count("-") > 1:
        raise UsageError("--prompt-file - was given twice: standard input can be read once")
    if argument is not None and argument != "-":
        named = [TypedPrompt(text_argument(argument, "the prompt"))]
    else:
        if argument is None and not files and not is_piped():
            raise UsageError("there is no prompt", HOW_TO_PROMPT)
        named = [TypedPrompt(read_text(file, "--prompt-file"), file) for file in files or ["-"]]
    for asked in named:
        if not asked.text.strip():
            name = "standard input" if asked.file == "-" else asked.file
            hint = f"{name} has nothing but white space" if name else ""
            raise UsageError("the prompt is empty", hint)
    return named


def argument_names_file(prompt: str | None) -> bool:
    """Is a prompt that was typed the name of a file that is there?"""
    with suppress(OSError, ValueError):  # too long for a name
        return prompt is not None and len(prompt.split()) == 1 and Path(prompt).is_file()
    return False


def is_piped() -> bool:
    """Is standard input anything that may hold a prompt: no terminal, closed stream or /dev/null?"""
    try:
        nothing = os.path.samestat(os.fstat(sys.stdin.fileno()), Path(os.devnull).stat())
        return not nothing and not sys.stdin.isatty()
    except (OSError, ValueError, AttributeError):
        return False


def read_into(given: Given, name: str, file: str | None, option: str) -> None:
    """A setting that may be typed or read from a file."""
    if given[name] is not None and file is not None:
        raise UsageError(f"--{name.replace('_', '-')} and {option} cannot be combined")
    if file:
        given[name] = read_text(file, option)


def read_text(file: str, option: str) -> str:
    """A UTF-8 file, or standard input for "-"; says where it is not UTF-8."""
    name = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    except OSError as error:
        if file == "-" and error.errno == errno.EBADF:
            raise UsageError(
                "standard input is closed", "give the prompt as an argument or in a file"
            ) from error
        raise UsageError(
            f"{option}: cannot read {name}: {error.strerror}", "give a text file in UTF-8"
        ) from error
    try:
        return utf8.decode(content)
    except utf8.NotText as error:
        raise UsageError(f"{option}: {name} {error}", error.hint("" if file == "-" else file)) from error


def check_writable(output: Path | None, plot: Path | None = None, force: bool = True) -> None:
    """A file that cannot be written is known before anything is measured."""
    if output is not None and not force and output.is_file() and output.stat().st_size:
        raise UsageError(f"{output} exists already", "choose another --output, or add --force")
    if plot is not None and plot.suffix not in PICTURES:
        raise UsageError(
            f"--plot: {plot} is not a kind of picture that can be drawn", f"end it in {', '.join(PICTURES)}"
        )
    if plot is not None:
        need("matplotlib", "--plot")
    for file in (output, plot):
        if file is not None and not file.parent.is_dir():
            raise UsageError(
                f"cannot write {file}: there is no folder {file.parent}", f"`mkdir -p {file.parent}` makes it"
            )
        if file is not None and file.is_dir():
            raise UsageError(f"cannot write {file}: it is a folder")


def tell(line: str) -> None:
    """On stderr, folded between words where a terminal shows it."""
    print(tables.fitted(printable(line, lines=True), sys.stderr), file=sys.stderr)


def no_word(line: str) -> None:
    pass
