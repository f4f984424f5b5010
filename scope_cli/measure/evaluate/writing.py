"""Prompts in, their outputs under one profile out, several lanes at once: the one place that writes here."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mean

from scope_cli.engine.run import generate, new_work
from scope_cli.engine.run_plan import RunPlan
from scope_cli.errors import AuditError
from scope_cli.events import Finished, PromptRead, Reading, Token
from scope_cli.measure.evaluate.fidelity import HeldBytes
from scope_cli.models.model import LoadedModel
from scope_cli.settings.load import LoadedProfile


@dataclass(frozen=True)
class Written:
    """One prompt's output; bytes are averages over the lanes that hold something while it is written."""

    prompt: int  # its number
    ids: list[int]
    text: str
    reason: str
    bytes: HeldBytes
    evictions: int


def write_all(
    loaded: LoadedModel,
    settings: LoadedProfile,
    prompts: Mapping[int, list[int]],
    lanes: int = 4,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Written]:
    """Every prompt's output, as soon as it ends; a finished lane takes the next prompt.

    prompts: number -> ids; a prompt samples with the profile's seed and its number added, whatever else runs
    Raises AuditError where a cache did not do what the profile promised.
    """
    numbers = sorted(prompts, key=lambda number: len(prompts[number]))  # like lengths side by side
    works = [new_work(settings, loaded.geometry, prompts[number], number) for number in numbers]
    plans = [work.plan for work in works]
    if any(plan.prompt.late for plan in plans):
        lanes = 1
    lanes = min(lanes, len(plans))
    shape = RunPlan.of(settings.profile, plans, loaded.device.type, lanes).shape
    outputs = [_Output() for _ in numbers]
    rows: set[int] = set()  # that hold a prompt: readings are sums over them
    for event in generate(loaded, settings.profile, works, shape, interrupted):
        if isinstance(event, PromptRead):
            rows.add(event.lane)
        elif isinstance(event, Token):
            outputs[event.prompt].take(event, len(rows))
        elif isinstance(event, Finished):
            if not event.audit.passed:
                raise AuditError("the audit failed: " + "; ".join(event.audit.problems), "a bug in scope")
            if event.reason != "interrupted":
                yield outputs[event.prompt].written(numbers[event.prompt], event, shape.lanes)


@dataclass
class _Output:
    """What has been heard of one prompt."""

    ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    held: list[float] = field(default_factory=list)  # per lane, at each token
    full: list[float] = field(default_factory=list)
    newest: Reading | None = None

    def take(self, token: Token, rows: int) -> None:
        self.ids.append(token.token_id)
        self.text.append(token.text)
        self.held.append(token.reading.held_bytes / rows)
        self.full.append(token.reading.full_bytes / rows)
        self.newest = token.reading

    def written(self, number: int, finished: Finished, lanes: int) -> Written:
        assert self.newest is not None, "an output has one token at least"
        held = HeldBytes(
            held_mean=mean(self.held),
            held_peak=round(max(self.held)),
            held_end=finished.reading.held_bytes,
            full_mean=mean(self.full),
            full_peak=finished.reading.full_bytes,
            overhead=self.newest.overhead_bytes // lanes,
            allocated=self.newest.allocated_bytes // lanes,
        )
        text = "".join(self.text) + finished.text
        return Written(number, self.ids, text, finished.reason, held, finished.reading.evictions)
