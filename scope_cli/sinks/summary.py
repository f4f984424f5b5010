"""Events in, notes at the start and a block of numbers at the end out: stderr, whatever stdout is."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from scope_cli.events import Audit, Event, Failed, Finished, Loop, Started
from scope_cli.units import as_bytes, as_duration, as_rate, as_ratio


class Summary:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._outputs = 1

    def receive(self, event: Event) -> None:
        if isinstance(event, Started):
            self._outputs = len(event.prompt_tokens)
            for note in event.notes:
                self._print("note:", note, "yellow")
            model = event.model
            self._print("", f"{model['name']}, {_machine(model)}, {event.policy}", "")
        elif isinstance(event, Failed):
            if self._outputs > 1:  # the only one is told at the end, as the run's error
                self._print("", f"output {event.prompt + 1} of {self._outputs}", "")
                self._print("failed:   ", event.error, "bold red")
        elif isinstance(event, Finished):
            if self._outputs > 1:
                self._print("", f"output {event.prompt + 1} of {self._outputs}", "")
            for label, value in summary_lines(event):
                failed = label == "audit:" and not event.audit.passed
                self._print(f"{label:<10}", value, "bold red" if failed else "dim")

    def close(self) -> None:
        """Nothing is held back."""

    def _print(self, label: str, value: str, style: str) -> None:
        """One line, never wrapped, and Text all through: markup in a name is only text."""
        self._console.print(Text.assemble((label, style), " " if label else "", value), soft_wrap=True)


def _machine(model: dict[str, Any]) -> str:
    """Where and with what weights it runs: "cpu float32, int4 weights, 2 threads"."""
    parts = [f"{model['device']} {model['dtype']}"]
    if model.get("load_in"):
        parts.append(f"{model['load_in']} weights")
    if threads := model.get("threads"):
        parts.append(f"{threads} thread{'s' * (threads > 1)}")
    return ", ".join(parts)


def summary_lines(run: Finished) -> Iterator[tuple[str, str]]:
    """(label, value), one per line."""
    reading = run.reading
    yield "prompt:", _phase(run.prompt_tokens, run.prefill_s, run.prefill_peak_bytes)
    yield "output:", _phase(run.output_tokens, run.decode_s, run.decode_peak_bytes)
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
        yield "loop:", _loop(run.loop)
    yield "audit:", _audit(run.audit)


def _phase(tokens: int, seconds: float, peak_bytes: int) -> str:
    rate = as_rate(tokens / seconds) if seconds else "-"
    return f"{tokens:,} tokens in {as_duration(seconds)}, {rate}, peak {as_bytes(peak_bytes)}"


def _loop(loop: Loop) -> str:
    end = "the end" if loop.to_the_end else f"token {loop.start + loop.tokens:,}"
    where = f"from token {loop.start + 1:,} to {end} ({loop.tokens:,} tokens)"
    return f"repeats itself: period {loop.period:,}, {where}; --stop-on-loop ends such a run"


def _audit(audit: Audit) -> str:
    if not audit.passed:
        return f"failed: {'; '.join(audit.problems)}"
    policy = {True: "policy active", False: "policy not active", None: "nothing had to be evicted"}
    return f"{policy[audit.policy_active]}, budget held, bytes accounted for"
