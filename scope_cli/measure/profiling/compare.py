"""Two result files in, what became worse out: a regression is a figure that changed beyond a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scope_cli.errors import UsageError
from scope_cli.measure.profiling.result import Result, figures

LESS_IS_BETTER = (
    "prefill_peak_bytes",
    "decode_peak_bytes",
    "kv_allocated_bytes",
    "kv_held_peak_bytes",
    "kv_held_mean_bytes",
    "read_bytes_per_1000",
    "moved_bytes_per_1000",
)
MORE_IS_BETTER = ("prefill_tokens_per_s", "decode_tokens_per_s")


@dataclass(frozen=True)
class FigureChange:
    label: str
    figure: str
    before: float
    after: float
    worse_percent: float  # of `before`; above 0: worse, whichever direction that is
    regression: bool


@dataclass(frozen=True)
class Comparison:
    changes: list[FigureChange]
    only_before: list[str]  # labels
    only_after: list[str]
    notes: list[str]  # what else differs

    @property
    def worse(self) -> int:
        return sum(one.regression for one in self.changes)


def compare(
    before: list[Result], after: list[Result], memory_percent: float, speed_percent: float
) -> Comparison:
    """Every figure of every label that both have.

    Raises UsageError where they share none, a label stands twice in a file, or for different lengths.
    """
    old, new = _by_label(before, "before"), _by_label(after, "after")
    shared = [label for label in new if label in old]
    if not shared:
        raise UsageError(
            f"the two files have no profile in common: {', '.join(old)} before, {', '.join(new)} after",
            "labels are compared: the profile's name, its strategy and its budget",
        )
    changes = [
        change
        for label in shared
        for change in _changes(old[label], new[label], memory_percent, speed_percent)
    ]
    notes = dict.fromkeys(note for label in shared for note in _differences(old[label], new[label]))
    return Comparison(
        changes, [label for label in old if label not in new], [label for label in new if label not in old],
        list(notes),
    )  # fmt: skip


def _by_label(results: list[Result], which: str) -> dict[str, Result]:
    found = {one.label: one for one in results}
    if len(found) < len(results):
        labels = [one.label for one in results]
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UsageError(f"{twice} stands twice in the file of {which}", "labels are what is compared")
    return found


def _changes(was: Result, now: Result, memory_percent: float, speed_percent: float) -> Iterator[FigureChange]:
    if (was.prompt_tokens, was.output_tokens) != (now.prompt_tokens, now.output_tokens):
        raise UsageError(
            f"{now.label}: {was.prompt_tokens:,} + {was.output_tokens:,} tokens before, "
            f"{now.prompt_tokens:,} + {now.output_tokens:,} after",
            "compare runs of the same lengths",
        )
    first, second = figures(was), figures(now)
    for figure in (*LESS_IS_BETTER, *MORE_IS_BETTER):
        more_is_better = figure in MORE_IS_BETTER
        worse = worse_percent(first[figure], second[figure], more_is_better)
        threshold = speed_percent if more_is_better else memory_percent
        yield FigureChange(now.label, figure, first[figure], second[figure], worse, worse > threshold)


def worse_percent(before: float, after: float, more_is_better: bool) -> float:
    """By how many percent of `before` it became worse; what was 0 and is not changed without end."""
    if before == after:
        return 0.0
    grown = 100 * (after - before) / before if before else float("inf")
    return -grown if more_is_better else grown


def _differences(was: Result, now: Result) -> Iterator[str]:
    """What makes two runs of one label hard to compare."""
    pairs: tuple[tuple[str, dict[str, Any], dict[str, Any], str], ...] = (
        ("model", was.model, now.model, "name"),
        ("dtype", was.model, now.model, "dtype"),
        ("weights' form", was.model, now.model, "load_in"),
        ("device", was.model, now.model, "device"),
        ("processor", was.machine, now.machine, "processor"),
        ("number of threads", was.machine, now.machine, "threads"),
    )
    for what, first, second, key in pairs:
        if first.get(key) != second.get(key):
            yield f"the {what} was {first.get(key)} and is {second.get(key)}"
    policies = {key: section for key, section in was.profile.items() if key in ("prefill", "decode")}
    if policies != {key: section for key, section in now.profile.items() if key in ("prefill", "decode")}:
        yield f"{now.label} has other settings than before"
