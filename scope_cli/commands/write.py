"""A run's events in, to all who follow it; the exit code out."""

import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scope_cli.cache.shape import CacheShape
from scope_cli.commands.io import tell
from scope_cli.commands.outputs import kept_profile
from scope_cli.console import streams
from scope_cli.console.phases import Phases
from scope_cli.console.signals import Interruption
from scope_cli.engine.thinking import Tags, Thinking
from scope_cli.errors import AuditError, OutOfMemoryError, ScopeError, is_out_of_memory
from scope_cli.events import Busy, Event, Failed, Finished, PromptRead, Started, Token
from scope_cli.models.fingerprint import fingerprint
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schema import Profile
from scope_cli.sinks.several import Every
from scope_cli.sinks.states import States

if TYPE_CHECKING:
    from scope_cli.engine.run import Work
    from scope_cli.models.model import LoadedModel

ENDING = "ending after this step; again: at once"
AUDIT_HINT = "this is a bug in scope: the text may be wrong; please report it with the run record"


def write(
    settings: LoadedProfile,
    loaded: "LoadedModel",
    works: "list[Work]",
    shape: CacheShape,
    watch: "Watch",
    phases: Phases,
    verbose: bool = False,
    from_model: dict[str, Any] | None = None,
) -> int:
    """Generate, and say what went wrong; the exit code."""
    from scope_cli.engine.run import generate

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
                elif isinstance(event, PromptRead):
                    phases.reach("prompt")
                elif isinstance(event, Token):
                    phases.reach("first token")
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
        tell(f"resume:    `scope resume {first_left}` continues")
    if failures and not interruption.exit_code:
        first = next(iter(failures.values()))
        which = f"output {first.prompt + 1} of {len(works)}: " if len(works) > 1 else ""
        raise ScopeError(f"{which}{first.error}", first.hint)
    if verbose:
        tell(f"start:     {phases.times()}")
        tell(str(loaded.self_test))
    if verbose and ends:
        tell(limit_of(loaded, list(ends.values()), shape.lanes))
    if audience.lost is not None:
        raise audience.lost
    return interruption.exit_code


@dataclass(frozen=True)
class Watch:
    """Who follows a run."""

    everything: "Every"  # all sinks; one that fails is left out by itself
    written: bool  # the text goes into a file as well
    ending: str  # what Ctrl-C is answered with
    states: States | None = None  # who keeps where the texts are
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


def facts_of_run(settings: LoadedProfile, loaded: "LoadedModel", shape: CacheShape) -> dict[str, Any]:
    """What the states of all texts say of their run, for scope resume."""
    sizes = {name: getattr(shape, name) for name in ("lanes", "prompt_slots", "evictable", "context")}
    return {
        "model": fingerprint(loaded.opened.folder),
        "profile": kept_profile(settings.profile),
        "typed": sorted(settings.typed),
        "shape": sizes,
    }


def memory_ended(error: Exception, profile: Profile) -> OutOfMemoryError:
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
