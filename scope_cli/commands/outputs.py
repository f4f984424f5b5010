"""Where texts go: files with their records and states, the terminal, a pipe."""

import sys
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

from rich.console import Console

from scope_cli.commands.io import TypedPrompt, no_word, tell
from scope_cli.console import streams
from scope_cli.console.safe import printable
from scope_cli.errors import ScopeError, UsageError
from scope_cli.models.registry import from_anywhere
from scope_cli.settings.schema import Profile
from scope_cli.sinks.base import Sink
from scope_cli.sinks.jsonl import JsonLines
from scope_cli.sinks.plain import PlainText
from scope_cli.sinks.record import RunRecord
from scope_cli.sinks.several import Every, InOrder, Only
from scope_cli.sinks.states import Outdated, States
from scope_cli.sinks.summary import Summary
from scope_cli.sinks.terminal import Terminal
from scope_cli.sinks.textfile import FileMode, TextFile
from scope_cli.sinks.thinking import Shown, WithoutThinking

FILES_OF_OTHERS = 100  # that a run opens besides: libraries, weights, sockets


@dataclass(frozen=True)
class OutputFile:
    """A text's file, and what its record says of where it comes from."""

    file: Path
    mode: FileMode
    about: dict[str, Any]
    start: int = 0  # where it goes on, in bytes
    state: dict[str, Any] = field(default_factory=dict)  # what its state says, where it has one
    just_thought: bool = False  # it goes on between a thought, which is not written, and its answer


def new_states(outputs: list[OutputFile], every_s: float | None = None, keeps: bool = False) -> States | None:
    """Who keeps the states; nobody where no text goes to a file."""
    return States(every_s, keeps, tell) if outputs else None


def open_sinks(
    outputs: list[OutputFile],
    json: bool,
    quiet: bool,
    states: States | None = None,
    thinking: Shown = "show",
) -> list[Sink]:
    """Where the events go; a file that cannot be written is known before the model is loaded.

    thinking: where what the model thinks goes; JSON has it marked, whatever it says
    """
    sinks: list[Sink] = []
    files = [output.file for output in outputs]
    if len(files) > (most := getrlimit(RLIMIT_NOFILE)[0] - FILES_OF_OTHERS):
        raise UsageError(
            f"{len(files):,} output files at once; this system allows {most:,}",
            "scope batch takes any number",
        )
    for prompt, output in enumerate(outputs):
        text = TextFile(output.file, output.mode, output.start)
        answer = WithoutThinking(text, just_thought=output.just_thought)
        if output.mode != "resume" and output.file.is_file():
            sinks.append(Only(prompt, Outdated(output.file, prompt, states)))
        sinks.append(Only(prompt, text if thinking == "show" else answer))
        if output.file.is_file():  # beside a pipe or a device there is no place for a record
            sinks.append(Only(prompt, RunRecord(output.file, output.about)))
            if states is not None:
                told = {"about": output.about, "thinking": thinking}
                states.add(prompt, text, output.file, told | output.state, answer)
    if states is not None:
        sinks.append(states)
    shown: list[Sink] = []  # in the order of the prompts
    animated = False
    if streams.is_closed(sys.stdout):
        if not outputs:
            raise ScopeError("standard output is closed", "--output FILE needs none")
    elif json:
        sinks.append(JsonLines(sys.stdout))
    elif animated := sys.stdout.isatty():
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that cannot show a character shows a ?
        shown.append(Terminal(Console(), stats=not quiet))
    else:
        beside = sys.stderr if streams.same_place(sys.stdout, sys.stderr) else None
        shown.append(PlainText(sys.stdout, beside, quiet))
    if shown and thinking != "show":
        aside = write_aside if thinking == "stderr" else no_word
        shown = [WithoutThinking(shown[0], aside)]
    if not quiet:
        shown.append(Summary(Console(stderr=True), files, animated))
    return [*sinks, InOrder(Every(*shown))]


def outputs_of(output: Path | None, outputs: int) -> list[Path]:
    """story.txt; of several, story-1.txt, story-2.txt, ..."""
    if output is not None and str(output) == "-":
        raise UsageError("--output - is not a file: the text goes to stdout anyway", "omit --output")
    if output is None or outputs == 1:
        return [output] if output else []
    return [output.with_name(f"{output.stem}-{number + 1}{output.suffix}") for number in range(outputs)]


def about_of(asked: TypedPrompt, argv: list[str] | None) -> dict[str, Any]:
    """What the record says of where a text comes from: a file's name and hash, or the prompt itself."""
    prompt: dict[str, Any] = {"sha256": sha256(asked.text.encode()).hexdigest()}
    if asked.file not in (None, "-"):
        prompt["file"] = str(Path(str(asked.file)).expanduser().absolute())
    else:
        prompt["text"] = asked.text
    return {"command": ["scope", *(argv or [])], "prompt": prompt}


def kept_profile(profile: Profile) -> dict[str, Any]:
    """A profile for a file that may be read in another folder: the files that it names have whole paths."""
    told = profile.as_dict()
    told["model"]["name"] = from_anywhere(profile.model.name)
    scorer = told["decode"]["scorer"]
    if isinstance(scorer, dict) and "calibration" in scorer:
        scorer["calibration"] = str(Path(scorer["calibration"]).absolute())
    return told


def write_aside(text: str) -> None:
    """On stderr, as it comes."""
    print(printable(text, lines=True), end="", file=sys.stderr, flush=True)
