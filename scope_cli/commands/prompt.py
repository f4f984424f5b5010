"""scope prompt: a prompt in, read once and kept in a file; scope generate --prompt-cache starts from it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_cli.commands import options as o
from scope_cli.commands.io import check_writable, prompts_of, read_into, tell
from scope_cli.commands.outputs import about_of, kept_profile
from scope_cli.commands.overrides import overrides_of
from scope_cli.console.phases import Phases
from scope_cli.console.safe import printable
from scope_cli.console.signals import Interruption
from scope_cli.engine.checkpoint import Checkpoint, Refused, read_facts, write_checkpoint
from scope_cli.engine.run_plan import RunPlan
from scope_cli.errors import UsageError, WriteError
from scope_cli.models.fingerprint import fingerprint
from scope_cli.models.opening import opened_model
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.settings.schema import Profile
from scope_cli.units import as_bytes

if TYPE_CHECKING:
    from scope_cli.engine.run import Work
    from scope_cli.engine.state import LaneState
    from scope_cli.models.model import LoadedModel, OpenedModel

PROMPT = "Prompt"
SETTINGS = (
    "model", "dtype", "device", "load_in", "threads", "context", "system", "raw", "template_arg",
    "allow_control_tokens", "prefill", "prefill_budget", "scorer", "kv", "seed",
)  # fmt: skip
READ_WITH = ("prefill", "prompt", "cache")  # the sections of a profile that the file settles
READ_BY = ("name", "dtype", "load_in", "context")  # of the section `model`, unless typed
app = typer.Typer(
    name="prompt", help="Read a prompt once and keep its cache in a file.", no_args_is_help=True
)


@app.command("save")
@o.with_settings(*SETTINGS)
def save_command(
    ctx: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads standard input.", show_default=False)
    ] = None,
    prompt_file: Annotated[list[str], o.option(PROMPT, "Read the prompt from a file.", "-f")] = [],  # noqa: B006  typer copies it
    output: Annotated[Path, typer.Option("-o", help="The file to write.")] = Path("prompt.scope"),
    force: Annotated[bool, typer.Option(help="Overwrite the file.")] = False,
    system_file: Annotated[str | None, o.option(PROMPT, "Read the system message from a file.")] = None,
    quiet: Annotated[bool, typer.Option("-q", help="Print nothing but errors.")] = False,
    profile: o.Profile = "default",
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Read a prompt, whole or compressed, and keep its cache: every run that starts from it reads nothing.

    scope prompt save -f report.txt -o report.scope
    """
    asked = prompts_of(prompt, prompt_file)
    if len(asked) > 1:
        raise UsageError("one file holds one prompt", "give each a file of its own")
    read_into(given, "system", system_file, "--system-file")
    check_writable(output, None, force)

    typed = overrides_of(**given) | {"sampling.max_new_tokens": 1}
    settings = load_profile(profile, typed)
    loaded, settings, work = load(settings, asked[0].text, offline, Phases(quiet))
    state = read(settings, loaded, work)

    from scope_cli.engine.facts import versions

    facts = {
        "kind": "prompt",
        "model": fingerprint(loaded.opened.folder),
        "model_name": loaded.name,
        "profile": kept_profile(settings.profile),
        "about": about_of(asked[0], ctx.obj)["prompt"],
        "versions": versions(),
        "lane": state.numbers,
    }
    try:
        write_checkpoint(output, Checkpoint(facts, state.tensors))
    except OSError as error:
        raise WriteError(output, error) from error
    if not quiet:
        tell("\n".join(shown(output, facts)))


def load(
    settings: LoadedProfile, text: str, offline: bool, phases: Phases
) -> "tuple[LoadedModel, LoadedProfile, Work]":
    with opened_model(settings.profile.model, offline, phases) as opened:
        from scope_cli.engine.run import new_work
        from scope_cli.engine.slots_check import computed, settle

        prompt = opened.chat.prompt(text, settings.profile.prompt)
        foreseen = computed(opened).foreseen(settings)
        work = new_work(foreseen, opened.geometry, prompt.ids, notes=prompt.notes)
        RunPlan.of(settings.profile, [work.plan], opened.device.type).check_fits(opened)
        loaded = opened.load()
        settings, (work,) = settle(loaded, settings, [work])
        return loaded, settings, work


def read(settings: LoadedProfile, loaded: "LoadedModel", work: "Work") -> "LaneState":
    """The lane when its prompt has been read and nothing was written."""
    from scope_cli.engine.run import Run

    plan = RunPlan.of(settings.profile, [work.plan], loaded.device.type)
    with Interruption() as interruption, Run.of(plan, loaded) as run:
        reading = run.read(work, 0, 0, interruption)
        while True:
            try:
                next(reading)
            except StopIteration as end:
                lane = end.value
                break
        if lane is None:
            raise typer.Exit(interruption.exit_code)
        return run.state(lane)


@app.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `scope prompt save` wrote.")],
) -> None:
    """Describe a prompt file."""
    print("\n".join(shown(file, facts_of(file))))


def shown(file: Path, facts: dict[str, Any]) -> list[str]:
    lane, prefill = facts["lane"], facts["profile"]["prefill"]
    kept = lane["count"]["kept"]
    tokens = f"{lane['prompt_tokens']:,} tokens"
    if kept:
        governed = [one for one in kept if one]
        tokens += f", {round(sum(governed) / max(1, len(governed))):,} of them kept"
    source = facts["about"].get("file") or "typed"
    return [
        f"file:    {printable(str(file))}, {as_bytes(file.stat().st_size)}",
        f"prompt:  {tokens}, {printable(source)}",
        f"model:   {printable(facts['model_name'])}",
        f"prefill: {prefill['method'] if isinstance(prefill['method'], str) else prefill['method']['name']}",
        f"use:     scope generate --prompt-cache {printable(str(file))}",
    ]


def facts_of(file: Path) -> dict[str, Any]:
    """Raises Refused (UsageError) where the file is no prompt."""
    facts = read_facts(file)
    if facts.get("kind") != "prompt":
        raise Refused(f"{printable(str(file))} was not written by scope prompt save")
    return facts


def settings_with(settings: LoadedProfile, file: Path) -> LoadedProfile:
    """What is asked for now, with how the prompt was read then. Raises UsageError where both are given."""
    then = Profile.model_validate(facts_of(file)["profile"])
    if typed := sorted(key for key in settings.typed if key.split(".")[0] in READ_WITH):
        named = settings.names.get(typed[0], typed[0])
        raise UsageError(f"{named} belongs to scope prompt save: {file} already holds the prompt")
    update: dict[str, Any] = {section: getattr(then, section) for section in READ_WITH}
    model = {key: getattr(then.model, key) for key in READ_BY if f"model.{key}" not in settings.typed}
    update["model"] = settings.profile.model.model_copy(update=model)
    settings = replace(settings, profile=settings.profile.model_copy(update=update))
    return settings.with_slots("int8")  # what `auto` was in builds that kept it as that


def work_from(file: Path, settings: LoadedProfile, opened: "OpenedModel") -> "Work":
    """A text that starts from a prompt file. Raises UsageError where it is of another model."""
    from scope_cli.engine.run import new_work
    from scope_cli.engine.state import lane_in

    if facts_of(file)["model"] != fingerprint(opened.folder):
        raise UsageError(
            f"{file} was made with another model than {opened.name}", "scope prompt save reads it again"
        )
    work = new_work(settings, opened.geometry, lane_in(file).prompt_ids)
    return replace(work, state=partial(lane_in, file))
