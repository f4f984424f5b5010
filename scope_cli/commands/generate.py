"""scope generate: prompts in, their texts streamed to the terminal and to files."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_cli.cache.shape import CacheShape
from scope_cli.commands import options as o
from scope_cli.commands.io import TypedPrompt, argument_names_file, prompts_of, read_into, tell
from scope_cli.commands.live import MetricsAddress, MetricsPort, StatsFile, live_sinks
from scope_cli.commands.outputs import OutputFile, about_of, new_states, open_sinks, outputs_of
from scope_cli.commands.overrides import notes_on, overrides_of
from scope_cli.commands.prompt import settings_with, work_from
from scope_cli.commands.write import Watch, ending_of, write
from scope_cli.console.phases import Phases
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run_plan import RunPlan
from scope_cli.errors import UsageError
from scope_cli.files import cache_folder
from scope_cli.models.opening import opened_model
from scope_cli.native.build import SWITCH, is_kept, will_build
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.sinks.several import Every
from scope_cli.sinks.textfile import FileMode
from scope_cli.units import as_bytes

if TYPE_CHECKING:
    from scope_cli.engine.run import Work
    from scope_cli.models.model import LoadedModel, OpenedModel

PROMPT, OUTPUT = "Prompt", "Output"
MOST_SAMPLES = 10_000  # scope batch takes more


@o.with_settings(*o.SETTINGS)
def generate_command(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads standard input.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        list[str],
        o.option(
            PROMPT,
            "Read a prompt from a file; - is standard input. Repeatable: the texts are written side by side.",
            "-f",
        ),
    ] = [],  # noqa: B006  typer copies it
    prompt_cache: Annotated[
        Path | None, o.option(PROMPT, "Start from a prompt that `scope prompt save` has read.")
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            "-n",
            min=1,
            max=MOST_SAMPLES,
            rich_help_panel=PROMPT,
            help="Texts to write for each prompt; their seeds count up from --seed.",
        ),
    ] = 1,
    lanes: Annotated[
        int | None, o.option(PROMPT, "Texts to write side by side (default: all).", min=1)
    ] = None,
    system_file: Annotated[str | None, o.option(PROMPT, "Read the system message from a file.")] = None,
    continue_file: Annotated[
        str | None, o.option(PROMPT, "Read --continue-text from a file, such as an interrupted output.")
    ] = None,
    output: Annotated[
        Path | None,
        o.option(
            OUTPUT,
            "Also write the text to a file, as it comes; several texts go to FILE-1.txt and so on.",
            "-o",
        ),
    ] = None,
    append: Annotated[bool, o.option(OUTPUT, "Append to the output file.")] = False,
    force: Annotated[bool, o.option(OUTPUT, "Overwrite the output file.")] = False,
    checkpoint_every: o.CheckpointEvery = None,
    no_checkpoint: Annotated[bool, o.option(OUTPUT, "Keep no state for scope resume.")] = False,
    keep_checkpoint: o.KeepCheckpoint = False,
    json: Annotated[bool, o.option(OUTPUT, "Print one JSON object per event.")] = False,
    quiet: Annotated[bool, o.option(OUTPUT, "Print nothing but the text and errors.", "-q")] = False,
    thinking: o.Thinking = "show",
    stats_file: StatsFile = None,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = None,
    verbose: Annotated[
        bool, o.option(OUTPUT, "Also print the seconds to the first word, and the bandwidth.")
    ] = False,
    profile: o.Profile = "default",
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Write a long text, or several side by side.

    Text goes to stdout as it comes, everything else to stderr.

        scope generate --prompt-file report.txt --budget 2048
    """
    if prompt_cache is not None and (prompt is not None or prompt_file):
        raise UsageError("--prompt-cache already holds the prompt: give no other")
    prompts = (
        prompts_of(prompt, prompt_file) if prompt_cache is None else [TypedPrompt("", str(prompt_cache))]
    )
    read_into(given, "system", system_file, "--system-file")
    read_into(given, "continue_text", continue_file, "--continue-file")
    typed = overrides_of(**given)
    if append and force:
        raise UsageError("--append and --force cannot be combined")
    output = output.expanduser() if output else None
    if output is None and (append or force):
        flag = "--append" if append else "--force"
        raise UsageError(f"{flag} needs --output", "for example --output story.txt")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose cannot be combined")

    settings = load_profile(profile, typed)
    if prompt_cache is not None:
        settings = settings_with(settings, prompt_cache)
    notes = [*notes_on(profile, settings), *idle_here(prompts, samples, lanes, settings)]
    if argument_names_file(prompt):
        notes.append(f"the prompt is the text {prompt!r}; --prompt-file {prompt} reads the file of that name")
    for note in [] if quiet else notes:
        tell(f"note: {note}")
    mode: FileMode = "append" if append else "overwrite" if force else "new"
    about = [about_of(asked, ctx.obj) for asked in prompts for _ in range(samples)]
    files = outputs_of(output, len(about))
    outputs = [OutputFile(file, mode, about[number]) for number, file in enumerate(files)]
    shows = o.thinking(thinking)
    states = None if no_checkpoint else new_states(outputs, checkpoint_every, keep_checkpoint)
    sinks = open_sinks(outputs, json, quiet, states, shows)
    sinks += live_sinks(stats_file, metrics_port, metrics_address)
    with Every(*sinks) as everything:
        texts = [asked.text for asked in prompts for _ in range(samples)]
        watch = Watch(everything, output is not None, ending_of(json, quiet), states, quiet)
        code = run(settings, texts, samples, lanes, watch, offline, quiet, verbose, prompt_cache)
    raise typer.Exit(code)


def idle_here(
    prompts: list[TypedPrompt], samples: int, lanes: int | None, settings: LoadedProfile
) -> Iterator[str]:
    """What was typed for this command and has no effect."""
    texts = len(prompts) * samples
    if lanes is not None and lanes > texts:
        yield f"--lanes {lanes:,} has no effect beyond {texts:,}, the number of texts"
    if samples > 1 and settings.profile.sampling.temperature == 0:
        yield "the samples of a prompt will be the same: temperature 0 takes the most probable token"


def run(
    settings: LoadedProfile,
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
    phases, side_by_side = Phases(quiet), min(lanes or len(texts), len(texts))
    with opened_model(settings.profile.model, offline, phases, side_by_side) as opened:
        found = load(opened, settings, texts, samples, side_by_side, phases, prompt_cache)
        loaded, works, shape, settings, from_model = found
    return write(settings, loaded, works, shape, watch, phases, verbose, from_model)


def load(
    opened: "OpenedModel",
    settings: LoadedProfile,
    texts: list[str],
    samples: int,
    side_by_side: int,
    phases: Phases,
    prompt_cache: Path | None = None,
) -> "tuple[LoadedModel, list[Work], CacheShape, LoadedProfile, dict[str, Any]]":
    """The model with its weights, what is to be written, and the cache's shape; the profile with the model's
    own sampling where nobody said another, and what that is."""
    from scope_cli.engine.run import Work, new_work
    from scope_cli.engine.slots_check import computed, settle
    from scope_cli.native.library import library

    settings, from_model = settings.with_model_sampling(opened.sampling)
    profile = settings.profile
    opened.stops(profile.sampling)  # what never comes is told now
    foreseen = computed(opened).foreseen(settings)
    firsts: dict[str, Work] = {}  # samples of one prompt are encoded and planned once
    if prompt_cache is not None:
        firsts[texts[0]] = work_from(prompt_cache, settings, opened)
    for text in texts:
        if text not in firsts:
            prompt = opened.chat.prompt(text, profile.prompt)
            firsts[text] = new_work(foreseen, opened.geometry, prompt.ids, notes=prompt.notes)
    works = [
        replace(firsts[text], seed=firsts[text].seed + index % samples) for index, text in enumerate(texts)
    ]
    plan = RunPlan.of(profile, [work.plan for work in works], opened.device.type, side_by_side)
    plan.check_fits(opened)
    if opened.device.type == "cpu" and os.environ.get(SWITCH) != "off" and will_build(cache_folder()):
        folder = cache_folder()
        often = "once" if is_kept(folder) else f"for this run: {folder} cannot be written"
        phases.begin(f"building the native step with this machine's C++ compiler, {often}")
        library()
    phases.reach("tokenizer and plan")
    form = f" as {opened.load_in}" if opened.load_in else ""
    phases.begin(f"reading the weights, {as_bytes(opened.weight_bytes)}{form}")
    loaded = opened.load()
    phases.reach("weights")
    settings, works = settle(loaded, settings, works, side_by_side)
    phases.reach("slots")
    shape = shared_shape([work.plan for work in works], side_by_side)
    return loaded, works, shape, settings, from_model
