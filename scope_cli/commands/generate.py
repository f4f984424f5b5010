"""scope generate: prompts in, their texts streamed to the terminal and to files."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_cli.commands import options as o
from scope_cli.commands.early import check_model
from scope_cli.commands.io import Asked, argument_names_file, no_word, prompts_of, read_into, tell
from scope_cli.console import streams
from scope_cli.console.phases import Phases
from scope_cli.console.safe import printable
from scope_cli.console.signals import Interruption
from scope_cli.errors import (
    AuditError,
    OutOfMemoryError,
    ScopeError,
    UsageError,
    is_out_of_memory,
)
from scope_cli.events import Busy, Event, Failed, Finished, Started

if TYPE_CHECKING:
    from scope_cli.cache.shape import CacheShape
    from scope_cli.engine.run import Work
    from scope_cli.engine.run_plan import RunPlan
    from scope_cli.models.model import LoadedModel, OpenedModel
    from scope_cli.settings.load import LoadedProfile
    from scope_cli.settings.schema import Profile
    from scope_cli.sinks.base import Sink
    from scope_cli.sinks.several import Every
    from scope_cli.sinks.states import States
    from scope_cli.sinks.textfile import FileMode
    from scope_cli.sinks.thinking import Shown

PROMPT, OUTPUT = "Prompt", "Output"
FILES_OF_OTHERS = 100  # that a run opens besides: libraries, weights, sockets
MOST_SAMPLES = 10_000  # scope batch takes more
ENDING = "ending after this step; again: at once"
AUDIT_HINT = "this is a bug in scope: the text may be wrong; please report it with the run record"


@o.with_settings(*o.SETTINGS)
def generate_command(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads standard input.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        list[str],
        o.option(
            "--prompt-file",
            "-f",
            panel=PROMPT,
            help="Read a prompt from a file; - is standard input. Repeatable: they are written side by side.",
        ),
    ] = [],  # noqa: B006  typer copies it
    prompt_cache: Annotated[
        Path | None,
        o.option(
            "--prompt-cache", panel=PROMPT, help="Start from a file of scope prompt save: nothing is read."
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            "-n",
            min=1,
            max=MOST_SAMPLES,
            rich_help_panel=PROMPT,
            help="Write so many texts for each prompt, the seeds counting up from --seed.",
        ),
    ] = 1,
    lanes: Annotated[
        int | None,
        o.option("--lanes", panel=PROMPT, help="Texts written side by side (all of them).", min=1),
    ] = None,
    system_file: Annotated[
        str | None, o.option("--system-file", panel=PROMPT, help="Read the system message from a file.")
    ] = None,
    continue_file: Annotated[
        str | None,
        o.option(
            "--continue-file", panel=PROMPT, help="Read that from a file, such as an output that stopped."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        o.option(
            "--output",
            "-o",
            panel=OUTPUT,
            help="Write the text to a file as well, as it comes; of several texts, FILE-1.txt and so on.",
        ),
    ] = None,
    append: Annotated[bool, o.option("--append", panel=OUTPUT, help="Add to the output file.")] = False,
    force: Annotated[bool, o.option("--force", panel=OUTPUT, help="Overwrite the output file.")] = False,
    checkpoint_every: o.CheckpointEvery = None,
    no_checkpoint: Annotated[
        bool, o.option("--no-checkpoint", panel=OUTPUT, help="Keep no state for scope resume.")
    ] = False,
    keep_checkpoint: o.KeepCheckpoint = False,
    json: Annotated[
        bool, o.option("--json", panel=OUTPUT, help="One JSON object per event on stdout.")
    ] = False,
    quiet: Annotated[
        bool, o.option("--quiet", "-q", panel=OUTPUT, help="Text and errors, nothing else.")
    ] = False,
    thinking: o.Thinking = "show",
    stats_file: o.StatsFile = None,
    metrics_port: o.MetricsPort = None,
    metrics_address: o.MetricsAddress = None,
    verbose: Annotated[
        bool,
        o.option("--verbose", panel=OUTPUT, help="At the end, how near to the memory's bandwidth it came."),
    ] = False,
    profile: o.Profile = "default",
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Write a long text, or several side by side: prompts, the SCOPE cache, one model.

    Text goes to stdout as it comes, everything else to stderr.

        scope generate --prompt-file report.txt --budget 2048
    """
    if prompt_cache is not None and (prompt is not None or prompt_file):
        raise UsageError("--prompt-cache holds the prompt: it goes without another one")
    prompts = prompts_of(prompt, prompt_file) if prompt_cache is None else [Asked("", str(prompt_cache))]
    read_into(given, "system", system_file, "--system-file")
    read_into(given, "continue_text", continue_file, "--continue-file")
    typed = o.overrides(**given)
    if append and force:
        raise UsageError("--append and --force exclude each other")
    output = output.expanduser() if output else None
    if output is None and (append or force):
        flag = "--append" if append else "--force"
        raise UsageError(f"{flag} needs --output", "for example --output story.txt")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")

    from scope_cli.settings.load import load_profile
    from scope_cli.sinks.several import Every

    settings = load_profile(profile, typed)
    if prompt_cache is not None:
        from scope_cli.commands.prompt import settings_with

        settings = settings_with(settings, prompt_cache)
    notes = [*o.notes_on(profile, settings), *idle_here(prompts, samples, lanes, settings)]
    if argument_names_file(prompt):
        notes.append(f"the prompt is the text {prompt!r}; --prompt-file {prompt} reads the file of that name")
    for note in [] if quiet else notes:
        tell(f"note: {note}")
    mode: FileMode = "append" if append else "overwrite" if force else "new"
    about = [about_of(asked, ctx.obj) for asked in prompts for _ in range(samples)]
    files = outputs_of(output, len(about))
    outputs = [Output(file, mode, about[number]) for number, file in enumerate(files)]
    shows = o.thinking(thinking)
    states = None if no_checkpoint else new_states(outputs, checkpoint_every, keep_checkpoint)
    sinks = open_sinks(outputs, json, quiet, states, shows)
    sinks += o.live_sinks(stats_file, metrics_port, metrics_address)
    with Every(*sinks) as everything:
        texts = [asked.text for asked in prompts for _ in range(samples)]
        watch = Watch(everything, output is not None, ending_of(json, quiet), states, quiet)
        code = run(settings, texts, samples, lanes, watch, offline, quiet, verbose, prompt_cache)
    raise typer.Exit(code)


def idle_here(
    prompts: list[Asked], samples: int, lanes: int | None, settings: "LoadedProfile"
) -> Iterator[str]:
    """What was typed for this command and has no effect."""
    texts = len(prompts) * samples
    if lanes is not None and lanes > texts:
        yield f"--lanes {lanes:,} has no effect beyond {texts:,}: so many texts are written"
    if samples > 1 and settings.profile.sampling.temperature == 0:
        yield "the samples of a prompt will be the same: temperature 0 takes the most probable token"


def about_of(asked: Asked, argv: list[str] | None) -> dict[str, Any]:
    """What the record says of where a text comes from: a file's name and hash, or the prompt itself."""
    from hashlib import sha256

    prompt: dict[str, Any] = {"sha256": sha256(asked.text.encode()).hexdigest()}
    if asked.file not in (None, "-"):
        prompt["file"] = str(Path(str(asked.file)).expanduser().absolute())
    else:
        prompt["text"] = asked.text
    return {"command": ["scope", *(argv or [])], "prompt": prompt}


@dataclass(frozen=True)
class Output:
    """A text's file, and what its record says of where it comes from."""

    file: Path
    mode: "FileMode"
    about: dict[str, Any]
    start: int = 0  # where it goes on, in bytes
    state: dict[str, Any] = field(default_factory=dict)  # what its state says, where it has one
    just_thought: bool = False  # it goes on between a thought, which is not written, and its answer


def new_states(outputs: list[Output], every_s: float | None = None, keeps: bool = False) -> "States | None":
    """Who keeps the states; nobody where no text goes to a file."""
    from scope_cli.sinks.states import States

    return States(every_s, keeps, tell) if outputs else None


def open_sinks(
    outputs: list[Output],
    json: bool,
    quiet: bool,
    states: "States | None" = None,
    thinking: "Shown" = "show",
) -> "list[Sink]":
    """Where the events go; a file that cannot be written is known before the model is loaded.

    thinking: where what the model thinks goes; JSON has it marked, whatever it says
    """
    from rich.console import Console

    from scope_cli.sinks.jsonl import JsonLines
    from scope_cli.sinks.plain import PlainText
    from scope_cli.sinks.record import RunRecord
    from scope_cli.sinks.several import Every, InOrder, Only
    from scope_cli.sinks.summary import Summary
    from scope_cli.sinks.terminal import Terminal
    from scope_cli.sinks.textfile import TextFile
    from scope_cli.sinks.thinking import WithoutThinking

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
        raise UsageError("--output - is no file: stdout has the text anyway", "leave --output away")
    if output is None or outputs == 1:
        return [output] if output else []
    return [output.with_name(f"{output.stem}-{number + 1}{output.suffix}") for number in range(outputs)]


def run(
    settings: "LoadedProfile",
    texts: list[str],
    samples: int,
    lanes: int | None,
    watch: "Watch",
    offline: bool,
    quiet: bool,
    verbose: bool = False,
    prompt_cache: Path | None = None,
) -> int:
    """Open the model, plan, load, generate; the exit code. `texts` has every prompt `samples` times."""
    phases = Phases(quiet)
    check_model(settings.profile.model)

    from scope_cli.models.registry import find

    find(
        settings.profile.model.name, offline, phases.say
    )  # what is not there is told before torch is imported
    phases.begin(f"loading {settings.profile.model.name}")
    try:
        found = load(settings, texts, samples, lanes, offline, phases, prompt_cache)
        loaded, works, shape, settings, from_model = found
    finally:
        phases.end()

    return write(settings, loaded, works, shape, watch, phases, verbose, from_model)


def write(
    settings: "LoadedProfile",
    loaded: "LoadedModel",
    works: "list[Work]",
    shape: "CacheShape",
    watch: "Watch",
    phases: Phases,
    verbose: bool = False,
    from_model: dict[str, Any] | None = None,
) -> int:
    """Generate, and say what went wrong; the exit code."""
    from scope_cli.engine.run import generate
    from scope_cli.engine.thinking import Tags, Thinking

    tags = Tags.of(loaded.tokenizer.added_tokens_encoder)
    thinking = Thinking(tags, [work.prompt_ids for work in works])
    for number, work in enumerate(works):
        if tags is not None and work.state is not None:
            thinking.go_on_after(number, work.state().output_ids)
    states = watch.states
    if states is not None:
        states.begin(facts_of_run(settings, loaded, shape), works)
    ends: dict[int, Finished] = {}
    failures: dict[int, Failed] = {}
    with Interruption(watch.ending) as interruption:
        audience = Audience(watch, interruption)
        try:
            for event in generate(
                loaded, settings.profile, works, shape, interruption, phases.say, True, audience.be_busy,
                states,
            ):  # fmt: skip
                if isinstance(event, Started):
                    event = replace(event, from_model=from_model or {})
                event = thinking.mark(event)
                audience.receive(event)
                if isinstance(event, Finished):
                    if not event.audit.passed:
                        raise AuditError("the audit failed: " + "; ".join(event.audit.problems), AUDIT_HINT)
                    ends[event.prompt] = event
                elif isinstance(event, Failed):
                    failures[event.prompt] = event
        except Exception as error:
            known = memory_ended(error, settings.profile) if is_out_of_memory(error) else error
            audience.fail(known, [number for number in range(len(works)) if number not in ends | failures])
            raise known from error
    if states is not None and states.left and not watch.quiet:
        first_left = states.left[0]
        tell(f"resume:    `scope resume {first_left}` goes on")
    if failures and not interruption.exit_code:
        first = next(iter(failures.values()))
        which = f"output {first.prompt + 1} of {len(works)}: " if len(works) > 1 else ""
        raise ScopeError(f"{which}{first.error}", first.hint)
    if verbose:
        tell(str(loaded.self_test))
    if verbose and ends:
        tell(limit_of(loaded, list(ends.values()), shape.lanes))
    if audience.lost is not None:
        raise audience.lost
    return interruption.exit_code


def load(
    settings: "LoadedProfile",
    texts: list[str],
    samples: int,
    lanes: int | None,
    offline: bool,
    phases: Phases,
    prompt_cache: Path | None = None,
) -> "tuple[LoadedModel, list[Work], CacheShape, LoadedProfile, dict[str, Any]]":
    """The model with its weights, what is to be written, and the cache's shape; the profile with the model's
    own sampling where nobody said another, and what that is."""
    from scope_cli.engine.run import Work, new_work
    from scope_cli.engine.run_plan import RunPlan
    from scope_cli.files import cache_folder
    from scope_cli.models.model import open_model
    from scope_cli.native.build import will_build
    from scope_cli.native.library import SWITCH, library
    from scope_cli.units import as_bytes

    profile = settings.profile
    side_by_side = min(lanes or len(texts), len(texts))
    opened = open_model(profile.model, offline, phases.say, side_by_side)
    settings, from_model = settings.with_model_sampling(opened.sampling)
    profile = settings.profile
    opened.stops(profile.sampling)  # what never comes is told now
    firsts: dict[str, Work] = {}  # samples of one prompt are encoded and planned once
    if prompt_cache is not None:
        from scope_cli.commands.prompt import work_from

        firsts[texts[0]] = work_from(prompt_cache, settings, opened)
    for text in texts:
        if text not in firsts:
            prompt = opened.chat.prompt(text, profile.prompt)
            firsts[text] = new_work(settings, opened.geometry, prompt.ids, notes=prompt.notes)
    works = [
        replace(firsts[text], seed=firsts[text].seed + index % samples) for index, text in enumerate(texts)
    ]
    plan = RunPlan.of(profile, [work.plan for work in works], opened.device.type, side_by_side)
    check_memory(opened, plan)
    if opened.device.type == "cpu" and os.environ.get(SWITCH) != "off" and will_build(cache_folder()):
        phases.begin("building the native step with this machine's C++ compiler, once")
        library()
    form = f" as {opened.load_in}" if opened.load_in else ""
    phases.begin(f"reading the weights, {as_bytes(opened.weight_bytes)}{form}")
    return opened.load(), works, plan.shape, settings, from_model


@dataclass(frozen=True)
class Watch:
    """Who follows a run."""

    everything: "Every"  # all sinks; one that fails is left out by itself
    written: bool  # the text goes into a file as well
    ending: str  # what Ctrl-C is answered with
    states: "States | None" = None  # who keeps where the texts are
    quiet: bool = False


def ending_of(json: bool, quiet: bool) -> str:
    """On a terminal that shows the text, in the place of its status line, which is drawn anew after it."""
    if quiet:
        return ""
    if sys.stdout.isatty() and not json:
        return f"\r{ENDING}\x1b[K"
    in_a_line = sys.stderr.isatty() or streams.same_place(sys.stdout, sys.stderr)
    return f"{chr(10) * in_a_line}{ENDING}\n"


class Audience:
    """Events in, to everybody who listens; what is to be done where somebody does not any more."""

    def __init__(self, watch: Watch, interruption: Interruption) -> None:
        self._watch, self._interruption = watch, interruption
        self.lost: ScopeError | None = None  # what standard output could not take

    def receive(self, event: Event) -> None:
        try:
            self._watch.everything.receive(event)
        except (OSError, SystemExit) as error:  # of standard output: files say ScopeError
            streams.leave_stdout()
            if streams.reader_left(error):  # end in good order, and quietly
                self._interruption.signal = signal.SIGPIPE
            elif isinstance(error, SystemExit):
                raise
            elif self._interruption():  # its terminal is gone: SIGHUP said so
                pass
            elif self._watch.written:
                self.lost = streams.StdoutError(error)
            else:
                raise streams.StdoutError(error) from error

    def be_busy(self, what: str) -> None:
        """Called in the middle of a step, which must not end here."""
        with suppress(Exception, SystemExit):
            self._watch.everything.receive(Busy(what))

    def fail(self, error: Exception, prompts: list[int]) -> None:
        """What ends the run belongs into the records of the prompts that have not ended well."""
        for prompt in prompts:
            with suppress(Exception, SystemExit):
                self._watch.everything.receive(Failed(-1, str(error), prompt))


def facts_of_run(settings: "LoadedProfile", loaded: "LoadedModel", shape: "CacheShape") -> dict[str, Any]:
    """What the states of all texts say of their run, for scope resume."""
    from scope_cli.models.fingerprint import fingerprint

    sizes = {name: getattr(shape, name) for name in ("lanes", "prompt_slots", "evictable", "context")}
    return {
        "model": fingerprint(loaded.opened.folder),
        "profile": settings.profile.as_dict(),
        "typed": sorted(settings.typed),
        "shape": sizes,
    }


def memory_ended(error: Exception, profile: "Profile") -> OutOfMemoryError:
    """In the middle of a run: a sentence, and what to change."""
    known = OutOfMemoryError.of(error)
    form = "" if profile.model.load_in in ("int4", "4bit") else ", --load-in int4 (on a GPU 4bit)"
    known.hint = f"what was written is kept; try a smaller --budget, fewer --lanes or --samples{form}"
    return known


def limit_of(loaded: "LoadedModel", ends: list[Finished], lanes: int) -> str:
    """The last line of the summary: the longest output beside the memory's bandwidth, measured now."""
    from scope_cli.engine.roofline import bandwidth, limit_line, step_weight_bytes

    longest = max(ends, key=lambda end: end.output_tokens)
    weight_bytes = step_weight_bytes(loaded.model, lanes)
    return f"limit:     {limit_line(longest, weight_bytes, lanes, bandwidth(loaded.device))}"


def write_aside(text: str) -> None:
    """On stderr, as it comes."""
    print(printable(text, lines=True), end="", file=sys.stderr, flush=True)


def check_memory(opened: "OpenedModel", plan: "RunPlan") -> None:
    """Raises ModelError, before any weight is read, where the run does not fit what is free."""
    from scope_cli.engine import fit
    from scope_cli.machine.memory import free_bytes

    free = free_bytes(opened.device)
    fit.check(opened.target, plan.needs(opened.target), plan.shape.lanes, free, str(opened.device))
