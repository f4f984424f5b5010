"""scope resume: a text that was broken off in, its end behind it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_cli.cache.shape import CacheShape
from scope_cli.commands import options as o
from scope_cli.commands.io import tell
from scope_cli.commands.live import MetricsAddress, MetricsPort, StatsFile, live_sinks
from scope_cli.commands.outputs import OutputFile, new_states, open_sinks
from scope_cli.commands.write import Watch, ending_of, write
from scope_cli.console.phases import Phases
from scope_cli.console.safe import printable
from scope_cli.engine.checkpoint import read_checkpoint, read_facts
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run_plan import RunPlan
from scope_cli.engine.thinking import Tags, Thinking
from scope_cli.errors import UsageError
from scope_cli.events import Event, Token
from scope_cli.models.fingerprint import fingerprint
from scope_cli.models.opening import opened_model
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schema import Profile
from scope_cli.sinks.base import text_of
from scope_cli.sinks.record import RECORD, record_of
from scope_cli.sinks.several import Every
from scope_cli.sinks.states import STATE, state_of
from scope_cli.sinks.thinking import WithoutThinking

if TYPE_CHECKING:
    from scope_cli.engine.run import Work
    from scope_cli.engine.state import LaneState
    from scope_cli.models.model import LoadedModel, OpenedModel

OUTPUT = "Output"
ENDED = {"stop": "the model ended it", "loop": "it repeated itself", "context": "the model's context ended"}


def resume_command(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text, or its FILE.run.json.")],
    max_new_tokens: Annotated[
        int | None, o.option(OUTPUT, "Planned length, from the start.", "--max-new-tokens", min=1)
    ] = None,
    json: Annotated[bool, o.option(OUTPUT, "Print one JSON object per event.", "--json")] = False,
    quiet: Annotated[
        bool, o.option(OUTPUT, "Print nothing but the text and errors.", "--quiet", "-q")
    ] = False,
    checkpoint_every: o.CheckpointEvery = None,
    keep_checkpoint: o.KeepCheckpoint = False,
    stats_file: StatsFile = None,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = None,
    offline: o.Offline = False,
) -> None:
    """Continue a text that was interrupted: by Ctrl-C, a kill, a crash, a full disk.

    Model, profile and prompt come from FILE.state, which scope generate keeps beside a text while it writes.
    The text is cut back to that moment and continues as if nothing had happened. Of a run with several texts,
    every unfinished one continues. New text goes to stdout as well.

        scope resume story.txt
    """
    kept = [one for one in texts_of_run(file.expanduser()) if one.goes_on(max_new_tokens)]
    if not kept:
        raise finished(file)
    if lost := without_state(kept):
        if not any(one.lane for one in kept):
            raise UsageError(
                f"the run was killed before it began: there is no state yet of {lost}",
                "run its command again, with --force",
            )
        tell(f"warning: no state was kept of {lost}: nothing is written there")

    settings = settings_of(kept[0], max_new_tokens)
    outputs = [one.output(["scope", *(ctx.obj or [])]) for one in kept]
    for one in kept:
        one.check_size()
    states = new_states(outputs, checkpoint_every, keep_checkpoint)
    sinks = open_sinks(outputs, json, quiet, states, kept[0].facts["thinking"])
    sinks += live_sinks(stats_file, metrics_port, metrics_address)
    with Every(*sinks) as everything:
        watch = Watch(everything, True, ending_of(json, quiet), states, quiet)
        phases = Phases(quiet)
        loaded, works, shape = load(settings, kept, offline, phases)
        code = write(settings, loaded, works, shape, watch, phases)
    raise typer.Exit(code)


@dataclass(frozen=True)
class Kept:
    """A text and what its state says, without the lane itself."""

    path: Path
    facts: dict[str, Any]

    @property
    def lane(self) -> dict[str, Any]:
        """Its numbers; empty where its prompt has not been read."""
        return self.facts["lane"] or {}

    @property
    def end(self) -> int:
        """Bytes of the file that the state knows of."""
        return int(self.facts["text"]["end"])

    def goes_on(self, max_new_tokens: int | None) -> bool:
        """Is there anything to be written yet?"""
        reason = self.lane.get("reason")
        if reason == "length":
            return max_new_tokens is not None and max_new_tokens > self.lane["written"]
        return reason in (None, "interrupted")

    def check_size(self) -> None:
        """Raises UsageError where somebody has changed the file since; nothing is written before that."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}", "its state is there") from error
        rest, tail = self.lane.get("rest"), content[self.end :]
        known = rest is None or tail == rest.encode()  # a kill may leave any
        if rest is not None and self.facts["thinking"] != "show":  # a part of it may belong to a thought
            known = known or tail in rest.encode()
        if len(content) < self.end or not known:
            raise self.edited()

    def check_text(self, text: str) -> None:
        """text: what the lane's tokens say. Raises UsageError where the file says something else."""
        start = int(self.facts["text"]["start"])
        if self.path.read_bytes()[start : self.end] != text.encode():
            raise self.edited()

    def edited(self) -> UsageError:
        return UsageError(
            f"{self.path} has changed since it was written: its state no longer fits it",
            "restore it; or scope generate --continue-file continues any text",
        )

    def output(self, command: list[str]) -> OutputFile:
        about = self.facts["about"]
        told = {"command": command, "tokens": self.lane.get("written", 0)}
        about = about | {"resumed": [*about.get("resumed", []), told]}
        just_thought = bool(self.facts["text"]["just_thought"])
        return OutputFile(self.path, "resume", about, self.end, self.facts | {"about": about}, just_thought)


def texts_of_run(file: Path) -> list[Kept]:
    """The texts of a run that have a state, in its order; one of them is named. Raises UsageError."""
    for end in (RECORD, STATE):
        if file.name.endswith(end) and len(file.name) > len(end):
            file = file.with_name(file.name.removesuffix(end))
    if not state_of(file).is_file():
        raise no_state(file)
    named = Kept(file, read_facts(state_of(file)))
    found = []
    for name in named.facts["names"]:
        other = file.with_name(name)
        if other == file:
            found.append(named)
        elif (
            state_of(other).is_file() and (facts := read_facts(state_of(other)))["run"] == named.facts["run"]
        ):
            found.append(Kept(other, facts))
    return found


def without_state(kept: list[Kept]) -> str:
    """The other texts of the run that are not through and cannot be gone on with, in words."""
    others = [kept[0].path.with_name(name) for name in kept[0].facts["names"]]
    lost = [one for one in others if not state_of(one).is_file() and not is_through(one)]
    return ", ".join(printable(one.name) for one in lost)


def is_through(text: Path) -> bool:
    """What its record says; without one it has not begun, unless somebody put it elsewhere."""
    import json

    try:
        return bool(json.loads(record_of(text).read_bytes())["status"] == "finished")
    except (OSError, ValueError, KeyError, TypeError):
        return not text.is_file() or text.stat().st_size > 0


def no_state(file: Path) -> UsageError:
    """Why there is nothing to go on from."""
    import json

    try:
        record = json.loads(record_of(file).read_bytes())
        results = record["results"]
        if record["status"] == "finished" and results:
            return finished(file, results[0]["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    what = "there is no such file" if not file.exists() else f"there is no {file.name}.state beside it"
    return UsageError(
        f"cannot continue {printable(str(file))}: {what}",
        "scope generate --output keeps one while it writes; --continue-file continues any text",
    )


def finished(file: Path, reason: str = "length") -> UsageError:
    why = ENDED.get(reason, "it is as long as was planned")
    return UsageError(
        f"{printable(str(file))} is finished: {why}",
        "after --keep-checkpoint, --max-new-tokens N makes a text longer" if reason == "length" else "",
    )


def settings_of(kept: Kept, max_new_tokens: int | None) -> LoadedProfile:
    """The profile that the run had, compiled or not as it was."""
    profile = Profile.model_validate(kept.facts["profile"])
    typed = set(kept.facts["typed"])
    compiled = "on" if kept.facts["depends_on"]["compiled"] else "off"
    model = profile.model.model_copy(update={"compile": compiled})
    sampling = profile.sampling
    if max_new_tokens is not None:
        sampling = sampling.model_copy(update={"max_new_tokens": max_new_tokens})
        typed.add("sampling.max_new_tokens")
    profile = profile.model_copy(update={"model": model, "sampling": sampling})
    settings = LoadedProfile(profile, "the state", frozenset(typed))
    return settings.with_slots("int8")  # what `auto` was in builds that kept it as that


def load(
    settings: LoadedProfile, kept: list[Kept], offline: bool, phases: Phases
) -> "tuple[LoadedModel, list[Work], CacheShape]":
    """The model, checked to be the one of the run; the lanes to go on with; the cache's shape, as it was."""
    lanes = int(kept[0].facts["shape"]["lanes"])
    with opened_model(settings.profile.model, offline, phases, lanes) as opened:
        if fingerprint(opened.folder) != kept[0].facts["model"]:
            raise UsageError(
                f"{opened.name} has changed: other weights, config or tokenizer than when the text was begun",
                "put the original model back",
            )
        works = [work_of(settings, opened, one) for one in kept]
        shape = shape_of(kept[0], works, lanes)
        plans = [work.plan for work in works]
        RunPlan.of(settings.profile, plans, opened.device.type, shape=shape).check_fits(opened)
        phases.begin("reading the weights")
        loaded = opened.load()
    for note in differences(kept[0], loaded, lanes):
        phases.say(note)
    return loaded, works, shape


def work_of(settings: LoadedProfile, opened: "OpenedModel", kept: Kept) -> "Work":
    """Where a text goes on. Raises UsageError where its file is not what its tokens say."""
    from scope_cli.engine.run import new_work
    from scope_cli.engine.state import lane_in

    file = state_of(kept.path)
    if not kept.lane:
        ids = read_checkpoint(file).tensors["ids"].tolist()
        return replace(new_work(settings, opened.geometry, ids), seed=kept.facts["seed"])
    state = lane_in(file)
    stops = opened.stops(settings.profile.sampling)
    kept.check_text(written(opened, state, stops.texts, kept.facts["thinking"] == "show"))
    note = f"continues after {kept.lane['written']:,} tokens"
    work = new_work(settings, opened.geometry, state.prompt_ids, notes=(note,))
    return replace(work, seed=kept.facts["seed"], state=partial(lane_in, file))


def written(opened: "OpenedModel", state: "LaneState", stops: tuple[str, ...], thoughts: bool) -> str:
    """What a lane's tokens have put into its file, thoughts among it or not."""
    from scope_cli.engine.state import pieces_of

    pieces = pieces_of(opened.tokenizer, state, stops)
    tags = Tags.of(opened.tokenizer.added_tokens_encoder)
    if thoughts or tags is None:
        return "".join(text for _, text in pieces)
    marks, found = Thinking(tags, [state.prompt_ids]), Collected()
    sink = WithoutThinking(found)
    for number, (token_id, text) in enumerate(pieces):
        sink.receive(marks.mark(Token(0, number + 1, token_id, text, 0.0, 0.0, None)))  # type: ignore[arg-type]
    return found.text


class Collected:
    """A sink that puts texts behind each other."""

    def __init__(self) -> None:
        self.text = ""

    def receive(self, event: Event) -> None:
        self.text += text_of(event)

    def close(self) -> None:
        """Nothing is open."""


def shape_of(kept: Kept, works: "list[Work]", lanes: int) -> CacheShape:
    """As it was, with room for a longer output: a lane's numbers depend on the rectangle it lies in."""
    now, before = shared_shape([work.plan for work in works], lanes), kept.facts["shape"]
    return replace(
        now,
        prompt_slots=tuple(before["prompt_slots"]),
        evictable=max(now.evictable, before["evictable"]),
        context=max(now.context, before["context"]),
    )


def differences(kept: Kept, loaded: "LoadedModel", lanes: int) -> Iterator[str]:
    """What rounds otherwise now than where the text was begun."""
    from scope_cli.engine.facts import depends_on, versions

    before, now = kept.facts["depends_on"], depends_on(loaded, lanes, kept.facts["depends_on"]["compiled"])
    pairs = {name: (before.get(name), one) for name, one in now.items()}
    pairs |= {name: (kept.facts["versions"].get(name), one) for name, one in versions().items()}
    changed = [f"{name} {old} then, {new} now" for name, (old, new) in pairs.items() if old != new]
    if changed:
        yield f"note: the text may differ from one that was never broken off: {'; '.join(changed)}"
