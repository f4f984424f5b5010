"""Footprints or Results in, a table for people out: one column for each profile."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from math import isinf
from typing import Any

from scope_cli.console import tables
from scope_cli.measure.profiling.compare import FigureChange
from scope_cli.measure.profiling.footprint import Footprint, Limits
from scope_cli.measure.profiling.result import WORDS, Result, figures, in_words
from scope_cli.models.target import Target
from scope_cli.units import as_bytes, as_duration, as_rate, as_ratio


@dataclass(frozen=True)
class PlannedProfile:
    """One profile, planned: what it takes, and the most that would fit."""

    label: str
    footprint: Footprint
    full: Footprint  # the same run with nothing evicted
    held: list[int]  # bytes of keys and values, at each token of the output
    full_held: list[int]
    limits: Limits
    free: int
    runs_out_at: int  # the output token at which the full cache fills the memory
    context: int

    @property
    def fits(self) -> bool:
        return self.footprint.total_bytes <= self.free

    def as_dict(self, target: Target) -> dict[str, Any]:
        return {
            "label": self.label,
            "model": target.shape.name,
            "device": target.device,
            "dtype": target.dtype,
            "free_bytes": self.free,
            "fits": self.fits,
            "plan": self.footprint.as_dict(),
            "most": self.limits.as_dict(),
            "full": {
                "cache_bytes": self.full.cache_bytes,
                "total_bytes": self.full.total_bytes,
                "fits": self.full.total_bytes <= self.free,
                "runs_out_at": self.runs_out_at,
            },
        }


def plan_table(planned: list[PlannedProfile], target: Target, width: int | None = None) -> str:
    return _table(plan_title(target), [one.label for one in planned], plan_rows(planned), width)


def plan_title(target: Target) -> str:
    weights = f", {target.load_in} weights" if target.load_in else ""
    return f"{target.shape.name}, {target.dtype} on {target.device}{weights}: planned, nothing was loaded"


def plan_rows(planned: list[PlannedProfile]) -> list[tuple[str, list[str]]]:
    rows: list[tuple[str, list[str]]] = []

    def row(label: str, values: list[str]) -> None:
        rows.append((label, values))

    feet = [one.footprint for one in planned]
    row("prompt + output", [f"{f.prompt_tokens:,} + {f.output_tokens:,} tokens" for f in feet])
    if any(f.lanes > 1 for f in feet):
        row("lanes", [f"{f.lanes:,}" for f in feet])
    row("weights", [as_bytes(f.weight_bytes) for f in feet])
    row("libraries", [as_bytes(f.runtime_bytes) for f in feet])
    row("one lane of the cache", [as_bytes(f.lane_bytes) for f in feet])
    row("prefill peak", [as_bytes(f.prefill_peak_bytes) for f in feet])
    row("decode peak", [as_bytes(f.decode_peak_bytes) for f in feet])
    row("in all", [as_bytes(f.total_bytes) for f in feet])
    row("free", [as_bytes(one.free) for one in planned])
    row("fits", ["yes" if one.fits else "NO" for one in planned])
    row("", ["" for _ in planned])
    row("held, on average", [_of_full(f.held_mean_bytes, f.full_mean_bytes) for f in feet])
    row("held at the end", [_of_full(f.held_end_bytes, f.full_end_bytes) for f in feet])
    row("full cache, in all", [as_bytes(one.full.total_bytes) for one in planned])
    row("full cache runs out", [_runs_out(one) for one in planned])
    row("", ["" for _ in planned])
    row("longest prompt", [_most(one.limits.prompt_tokens, "tokens") for one in planned])
    row("longest output", [_longest(one) for one in planned])
    row("largest budget", [_budget(one.limits) for one in planned])
    row("most lanes", [_most(one.limits.lanes, "") for one in planned])
    return rows


def _of_full(held: float, full: float) -> str:
    return f"{as_bytes(held)}, {as_ratio(held, full)} of full"


def _runs_out(one: PlannedProfile) -> str:
    if one.runs_out_at < 0:
        return "with the prompt"
    beyond = ", beyond the context" if one.runs_out_at > one.context - one.footprint.prompt_tokens else ""
    return f"after {one.runs_out_at:,} tokens{beyond}"


def _most(number: int, unit: str) -> str:
    return f"{number:,} {unit}".strip() if number else "none fits"


def _longest(one: PlannedProfile) -> str:
    found = one.limits.output_tokens
    end = " (the context ends)" if found == one.context - one.footprint.prompt_tokens else ""
    return _most(found, "tokens") + end


def _budget(limits: Limits) -> str:
    if limits.budget is None:
        return "-"
    return _most(limits.budget, "tokens") + (" (nothing is evicted)" if limits.budget_is_output else "")


def result_table(results: list[Result], width: int | None = None) -> str:
    rows: list[tuple[str, list[str]]] = []

    def row(label: str, values: list[str]) -> None:
        rows.append((label, values))

    row("prompt + output", [f"{r.prompt_tokens:,} + {r.output_tokens:,} tokens" for r in results])
    own = [r.peaks.baseline_bytes - r.peaks.mapped_bytes for r in results]
    row("loaded and warm", [as_bytes(count) for count in own])
    row("mapped files beside it", [as_bytes(r.peaks.mapped_bytes) for r in results])
    for label, key in (("prefill peak", "prefill"), ("decode peak", "decode")):
        row(label, [_against(r, f"{key}_peak", getattr(r.peaks, f"{key}_bytes")) for r in results])
    numbers = [figures(r) for r in results]
    for figure in ("card_reserved_bytes", "card_fragmentation_bytes", "card_process_bytes"):
        said = [one.get(figure) for one in numbers]
        if any(count is not None for count in said):
            row(WORDS[figure], ["not listed" if count is None else as_bytes(count) for count in said])
    row("KV allocated", [_against(r, "kv_allocated", r.kv.allocated_bytes) for r in results])
    row("KV held, peak", [_against(r, "kv_held_peak", r.kv.held_peak_bytes) for r in results])
    row("KV held, average", [_against(r, "kv_held_mean", r.kv.held_mean_bytes) for r in results])
    row("full cache, average", [as_bytes(r.kv.full_mean_bytes) for r in results])
    row("held of full, average", [as_ratio(r.kv.held_mean_bytes, r.kv.full_mean_bytes) for r in results])
    row("", ["" for _ in results])
    row("read per 1,000 tokens", [as_bytes(r.transfer.read_bytes) for r in results])
    row("moved per 1,000", [as_bytes(r.transfer.moved_bytes) for r in results])
    row("gathering would move", [as_bytes(r.transfer.reference_moved_bytes) for r in results])
    row("host transfers", [as_bytes(r.transfer.host_bytes) for r in results])
    row("evictions", [f"{r.transfer.evictions:,} of {r.transfer.evicted_tokens:,} tokens" for r in results])
    row("", ["" for _ in results])
    row("prefill", [_rate(r.speed.prefill_tokens_per_s, r.time.prefill_s) for r in results])
    row("decode", [_rate(r.speed.decode_tokens_per_s, r.time.decode_s) for r in results])
    row("first and last tenth", [_tenths(r) for r in results])
    for label, key in (
        ("time: prefill", "prefill_s"), ("attention", "attention_s"), ("eviction", "eviction_s"),
        ("the rest", "rest_s"),
    ):  # fmt: skip
        row(label, [as_ratio(getattr(r.time, key), r.time.prefill_s + r.time.decode_s) for r in results])
    row("audit", ["passed" if not r.audit else "; ".join(r.audit) for r in results])
    model = results[0].model
    weights = f", {model['load_in']} weights" if model.get("load_in") else ""
    title = f"{model['name']}, {model['dtype']} on {model['device']}{weights}: measured, (planned), error"
    return _table(title, [one.label for one in results], rows, width)


def _against(result: Result, key: str, measured: float) -> str:
    error = result.errors().get(key)
    if error is None or not measured:  # a small peak may lie within what the process held already
        return as_bytes(measured)
    planned = measured / (1 + error / 100)
    return f"{as_bytes(measured)} ({as_bytes(planned)}) {error:+.1f}%"


def _rate(tokens_per_s: float, seconds: float) -> str:
    return f"{as_rate(tokens_per_s)}, {as_duration(seconds)}"


def _tenths(result: Result) -> str:
    speed = result.speed.tokens_per_s
    tenth = max(1, len(speed) // 10)
    if not speed:
        return "-"
    first, last = (sorted(part)[len(part) // 2] for part in (speed[:tenth], speed[-tenth:]))
    return f"{as_rate(first)}, {as_rate(last)}"


def change_table(changes: list[FigureChange], everything: bool, width: int | None = None) -> str:
    """A block for each profile: what changed, by how much."""
    shown = [one for one in changes if everything or one.regression or abs(one.worse_percent) >= 0.05]
    blocks = []
    for label in dict.fromkeys(one.label for one in shown):
        rows = [
            (
                WORDS[one.figure],
                [in_words(one.figure, one.before), in_words(one.figure, one.after), _worse(one.worse_percent),
                 "REGRESSION" if one.regression else ""],
            )
            for one in shown if one.label == label
        ]  # fmt: skip
        blocks.append(_table(label, ["before", "after", "change", ""], rows, width))
    return "\n\n".join(blocks) or "nothing changed"


def _worse(percent: float) -> str:
    size = "much" if isinf(percent) else f"{abs(percent):.1f}%"
    return f"{size} worse" if percent > 0 else f"{size} better" if percent < 0 else "same"


def _table(title: str, columns: list[str], rows: list[tuple[str, list[str]]], width: int | None) -> str:
    table = tables.columns(columns, rows, width)
    return f"{title}\n{table}" if title else table


def as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, keys, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def result_rows(results: list[Result]) -> list[dict[str, Any]]:
    return [figures(result) for result in results]
