"""Events in, notes at the start and a block of numbers at the end out: stderr, whatever stdout is."""

import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from scope_cli.console.safe import printable
from scope_cli.events import Audit, Busy, Event, Failed, Finished, Loop, Started, TakenBack
from scope_cli.models.catalogue import next_to_take
from scope_cli.models.embedded import EMBEDDED
from scope_cli.models.sampling import in_words
from scope_cli.sinks.record import record_of
from scope_cli.units import as_bytes, as_duration, as_rate, as_ratio

NEXT = (  # after a run of the model that is there for trying
    "a text of your own: scope generate --prompt-file FILE --output story.txt --max-new-tokens 5000",
    "what a run will cost, before it runs: scope profile --plan --max-new-tokens 5000",
)


class Summary:
    """Of several outputs each gets a heading, above its text where both go to one place.

    files: by prompt, where its text is written as well
    animated: stdout is a terminal that shows by itself what is going on
    """

    def __init__(self, console: Console, files: Sequence[Path] = (), animated: bool = False) -> None:
        self._console, self._files, self._animated = console, files, animated
        self._outputs = 1
        self._ended = 0
        self._next: tuple[str, ...] = ()
        self._on_loop = "ignore"
        self._busy: set[str] = set()

    def receive(self, event: Event) -> None:
        if isinstance(event, Started):
            self._outputs = len(event.prompt_tokens)
            self._on_loop = event.profile.get("sampling", {}).get("on_loop", "ignore")
            for note in event.notes:
                self._print("note:", note, "yellow")
            model = event.model
            self._next = NEXT if model["name"] in EMBEDDED else ()
            parts = [model["name"], _machine(model), event.policy]
            if event.from_model:
                parts.append(f"sampling as the model asks: {in_words(event.from_model)}")
            self._print("", ", ".join(parts), "")
            self._head(0)
        elif isinstance(event, Busy) and not self._animated and event.what not in self._busy:
            self._busy.add(event.what)
            self._print("", f"{event.what} ...", "")
        elif isinstance(event, TakenBack):
            self._print(f"{'loop:':<10}", event.in_words, "dim")
        elif isinstance(event, Failed):
            if self._outputs > 1:  # the only one is told at the end, as the run's error
                self._print("failed:   ", event.error, "bold red")
            self._head(event.prompt + 1)
        elif isinstance(event, Finished):
            for label, value in summary_lines(event, self._on_loop):
                failed = label == "audit:" and not event.audit.passed
                self._print(f"{label:<10}", value, "bold red" if failed else "dim")
            if event.prompt < len(self._files):
                self._print(f"{'written:':<10}", written(self._files[event.prompt]), "dim")
            if self._outputs == 1 and event.output_tokens:
                self._print("in short: ", in_short(event), "bold")
            self._ended += 1
            if self._ended == self._outputs and event.reason != "interrupted":
                for suggestion in (larger(), *self._next) if self._next else ():
                    self._print("next:     ", suggestion, "dim")
            self._head(event.prompt + 1)

    def close(self) -> None:
        """Nothing is held back."""

    def _head(self, prompt: int) -> None:
        if self._outputs > 1 and prompt < self._outputs:
            self._print("", f"output {prompt + 1} of {self._outputs}", "")

    def _print(self, label: str, value: str, style: str) -> None:
        """One line, broken between words on a terminal; Text all through: markup in a name is only text."""
        line = Text.assemble((label, style), " " if label else "", printable(value))
        self._console.print(line, soft_wrap=not self._console.is_terminal)


def written(file: Path) -> str:
    """'story.txt, 1.20 KiB, and story.txt.run.json'"""
    record = record_of(file)
    with suppress(OSError):
        if stat.S_ISREG(file.stat().st_mode):
            also = f", and {record.name}" if record.is_file() else ""
            return f"{file}, {as_bytes(file.stat().st_size)}{also}"
    return str(file)


def _machine(model: dict[str, Any]) -> str:
    """Where and with what weights it runs: "cpu float32, int4 weights, 2 threads"."""
    parts = [f"{model['device']} {model['dtype']}"]
    if model.get("load_in"):
        loss = model.get("packing_loss")
        cost = "" if loss is None else f" ({loss:.1%} off {model.get('packed_from') or 'the plain ones'})"
        parts.append(f"{model['load_in']} weights{cost}")
    if threads := model.get("threads"):
        parts.append(f"{threads} thread{'s' * (threads > 1)}")
    return ", ".join(parts)


def summary_lines(run: Finished, on_loop: str = "ignore") -> Iterator[tuple[str, str]]:
    """(label, value), one per line."""
    reading = run.reading
    yield "prompt:", _prompt(run)
    yield "output:", _phase(f"{run.output_tokens:,}", run.output_tokens, run.decode_s, run.decode_peak_bytes)
    if run.thinking_tokens:
        answer = run.output_tokens - run.thinking_tokens
        yield "thinking:", f"{run.thinking_tokens:,} of them, and {answer:,} of the answer"
    yield "finish:", f"{run.reason} {run.stopped_by!r}" if run.stopped_by else run.reason
    held, full = reading.held_bytes, reading.full_bytes
    yield "KV held:", f"{as_bytes(held)} / {as_bytes(full)} full cache ({as_ratio(held, full)})"
    yield (
        "KV memory:",
        f"{as_bytes(reading.allocated_bytes)} allocated, {as_bytes(reading.overhead_bytes)} overhead, "
        f"{as_bytes(reading.read_bytes)} read per step",
    )
    if reading.padding_bytes:
        yield "padding:", f"{as_bytes(reading.padding_bytes)} in slots that hold no prompt token"
    moved, reference = reading.moved_bytes, reading.reference_moved_bytes
    yield (
        "transfer:",
        f"{as_bytes(moved)} moved, {as_bytes(reference - moved)} saved of {as_bytes(reference)}, "
        f"{as_bytes(reading.host_bytes)} host",
    )
    written = max(0, run.output_tokens - 1)  # the last token was not needed again
    yield (
        "kept:",
        f"{reading.kept_prompt:,} of {run.prompt_tokens:,} prompt tokens, "
        f"{reading.kept_generated:,} of {written:,} generated, in {reading.slots:,} slots",
    )
    yield "evicted:", f"{reading.evicted_tokens:,} tokens in {reading.evictions:,} evictions"
    if run.loop:
        yield "loop:", _loop(run.loop, on_loop)
    yield "audit:", _audit(run.audit)


def larger() -> str:
    """Which model comes after the embedded one, on this machine."""
    one = next_to_take()
    if one is None:
        return "a larger model: `scope models list` says what each needs; none of them fits this machine now"
    size = as_bytes(one.weight_bytes)
    return (
        f"a larger model that fits here: --model {one.name} ({size} to fetch); `scope models list` has more"
    )


def in_short(run: Finished) -> str:
    """For somebody who has never heard of a KV cache: what stayed, and what all would take."""
    reading, written = run.reading, max(0, run.output_tokens - 1)
    if not reading.evicted_tokens:
        all_of_it = reading.kept_prompt + reading.kept_generated
        fits = f"the model remembers all {all_of_it:,} tokens that it has read and written"
        return f"{fits}: nothing had to be forgotten. Memory is saved once the output is longer than --budget"
    whole = reading.kept_prompt >= run.prompt_tokens
    prompt = f"{'all ' * whole}{reading.kept_prompt:,}{f' of {run.prompt_tokens:,}' * (not whole)}"
    return (
        f"the model wrote {run.output_tokens:,} tokens, and remembers {prompt} of your prompt and "
        f"{reading.kept_generated:,} of the {written:,} that it wrote: {as_bytes(reading.held_bytes)}, where "
        f"remembering everything would take {as_bytes(reading.full_bytes)}. "
        "The text itself is whole: only the model forgets"
    )


def _prompt(run: Finished) -> str:
    """What was read of it: all, a part where Ctrl-C came, nothing where another sample has read the same."""
    count = f"{run.prompt_tokens:,}"
    if not run.read_tokens and run.output_tokens:
        return f"{count} tokens, read once for all samples"
    if run.read_tokens < run.prompt_tokens:
        count = f"{run.read_tokens:,} of {count}"
    return _phase(count, run.read_tokens, run.prefill_s, run.prefill_peak_bytes)


def _phase(count: str, tokens: int, seconds: float, peak_bytes: int) -> str:
    rate = as_rate(tokens / seconds) if seconds else "-"
    return f"{count} tokens in {as_duration(seconds)}, {rate}, peak {as_bytes(peak_bytes)}"


def _loop(loop: Loop, on_loop: str) -> str:
    end = "the end" if loop.to_the_end else f"token {loop.start + loop.tokens:,}"
    where = f"from token {loop.start + 1:,} to {end} ({loop.tokens:,} tokens)"
    advice = "; --on-loop stop ends such a run, rollback takes it back" if on_loop == "ignore" else ""
    how = "repeats itself, but for a few tokens" if loop.near else "repeats itself"
    return f"{how}: period {loop.period:,}, {where}{advice}"


def _audit(audit: Audit) -> str:
    if not audit.passed:
        return f"failed: {'; '.join(audit.problems)}"
    policy = {True: "policy active", False: "policy not active", None: "nothing had to be evicted"}
    if audit.evicted_by_age and not audit.evicted_by_score:
        policy[True] = "evicted by age alone, the scorer had no choice"
    return f"{policy[audit.policy_active]}, budget held, bytes accounted for"
