"""Results of evaluations in, one table out: every profile's means, and paired differences to one of them.

Two profiles are compared on what both were measured on: the same texts, probes, prompts or questions.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scope_cli.console.tables import Table
from scope_cli.errors import UsageError
from scope_cli.measure.evaluate.statistics import (
    Blocks,
    Estimate,
    as_text,
    blocks_of,
    estimate,
    paired_difference,
)
from scope_cli.units import as_bytes, as_ratio

METRICS = {  # kind -> metric -> (its heading, decimal places)
    "fidelity": {
        "kl": ("KL to full (nats)", 4),
        "top1": ("same top token", 3),
        "nll": ("-log p of the text (nats)", 3),
    },
    "recall": {"logprob": ("log-probability", 3), "hits": ("right tokens", 3), "exact": ("exact answers", 3)},
    "loops": {"looped": ("outputs with a loop", 2), "unique_ngrams": ("distinct 4-grams", 3)},
    "longgenbench": {"correct": ("right answers", 3), "correct_paper": ("right, paper's rule", 3)},
}
BEST = {
    "kl": "lowest",
    "logprob": "highest",
    "looped": "lowest",
    "correct": "highest",
}  # of the first metrics
Units = dict[str, dict[str, Blocks]]  # metric -> what was measured -> its values


@dataclass(frozen=True)
class Line:
    """One profile and metric of the table."""

    profile: str
    metric: str
    mean: float
    low: float | None
    high: float | None
    difference: float | None  # to the baseline, on what both were measured on; None for the baseline itself
    difference_low: float | None
    difference_high: float | None
    differs: bool | None  # the interval of the difference leaves out 0
    held_mean_bytes: float | None
    held_peak_bytes: float | None
    of_full: float | None  # held on average over what the full cache holds on average


def compare(results: Sequence[tuple[str, dict[str, Any]]], baseline: str | None = None) -> list[Line]:
    """(file's name, result) of one kind each; differences are to `baseline`, or to `full`, or the first."""
    kind = kind_of(results)
    profiles = named_profiles(results)
    against = _baseline(profiles, baseline)
    lines = []
    for metric, _ in METRICS[kind].items():
        reference = units(kind, profiles[against])[metric]
        for name, entry in profiles.items():
            mine = units(kind, entry)[metric]
            difference = None if name == against else _difference(name, mine, against, reference)
            lines.append(_line(name, metric, estimate(_pooled(mine.values())), difference, entry["bytes"]))
    return lines


def kind_of(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    kinds = {result["scope_evaluate"] for _, result in results}
    if len(kinds) > 1:
        raise UsageError(f"these are different evaluations ({', '.join(sorted(kinds))})", "compare one kind")
    (kind,) = kinds
    if kind not in METRICS:
        raise UsageError(
            f"results of `evaluate {kind}` cannot be compared", f"these can: {', '.join(METRICS)}"
        )
    return kind


def named_profiles(results: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Profiles by name; where two files have the same name, the later one's is told by its file."""
    profiles: dict[str, dict[str, Any]] = {}
    for file, result in results:
        for entry in result["profiles"]:
            name = entry["name"] if entry["name"] not in profiles else f"{entry['name']} ({file})"
            profiles[name] = entry
    if not profiles:
        raise UsageError("nothing was measured yet in these results", "run the evaluation to its end")
    return profiles


def _baseline(profiles: dict[str, dict[str, Any]], wanted: str | None) -> str:
    if wanted is None:
        return "full" if "full" in profiles else next(iter(profiles))
    if wanted not in profiles:
        there = ", ".join(profiles)
        raise UsageError(f"there is no profile {wanted!r} in these results", f"there are: {there}")
    return wanted


def units(kind: str, entry: dict[str, Any]) -> Units:
    """What a profile was measured on, by metric; what two profiles share has the same key in both."""
    rows = entry["rows"]
    if kind == "fidelity":
        return {metric: {row["text_id"]: blocks_of(row, metric) for row in rows} for metric in METRICS[kind]}
    if kind == "recall":
        return {
            metric: {row["probe_id"]: _values(row["answers"], metric) for row in rows}
            for metric in METRICS[kind]
        }
    if kind == "loops":
        return {
            metric: {row["prompt_id"]: _values([row], metric) for row in rows} for metric in METRICS[kind]
        }
    # longgenbench: the questions of one prompt depend on each other, so a prompt is one block
    return {
        metric: {
            row["prompt_id"]: Blocks.of(
                [float(answer[metric]) for answer in row["answers"]], block=len(row["answers"])
            )
            for row in rows
        }
        for metric in METRICS[kind]
    }


def _values(items: Sequence[dict[str, Any]], metric: str) -> Blocks:
    """One value per question or output, each a block of its own."""
    if metric == "exact":
        return Blocks.of([float(item["rank"] == 0) for item in items], block=1)
    return Blocks.of([float(item[metric]) for item in items], block=1)


def _difference(name: str, mine: dict[str, Blocks], against: str, other: dict[str, Blocks]) -> Estimate:
    shared = [key for key in mine if key in other]
    if not shared:
        raise UsageError(f"{name} and {against} share no measurement")
    return paired_difference(_pooled(mine[key] for key in shared), _pooled(other[key] for key in shared))


def _pooled(measured: Iterable[Blocks]) -> list[Blocks]:
    """What is one block by itself (an output, a prompt of questions) is drawn among all that are."""
    every = list(measured)
    single = [blocks for blocks in every if len(blocks.sums) == 1]
    rest = [blocks for blocks in every if len(blocks.sums) > 1]
    if not single:
        return rest
    sums, tokens = (np.concatenate([getattr(one, name) for one in single]) for name in ("sums", "tokens"))
    return [*rest, Blocks(sums, tokens)]


def _line(name: str, metric: str, found: Estimate, difference: Estimate | None, held: dict[str, Any]) -> Line:
    sure = difference is not None and difference.low is not None
    return Line(
        profile=name,
        metric=metric,
        mean=found.mean,
        low=found.low,
        high=found.high,
        difference=difference.mean if difference else None,
        difference_low=difference.low if difference else None,
        difference_high=difference.high if difference else None,
        differs=difference.differs_from_zero if difference and sure else None,
        held_mean_bytes=held.get("held_mean"),
        held_peak_bytes=held.get("held_peak"),
        of_full=held["held_mean"] / held["full_mean"] if held.get("full_mean") else None,
    )


def as_table(kind: str, lines: Sequence[Line]) -> Table:
    """One row per profile, a column per metric; a star where the difference to the baseline is not chance."""
    metrics = METRICS[kind]
    heads = ["profile", *(head for head, _ in metrics.values()), "held, average", "held, at most", "of full"]
    rows = []
    for name, found in _by_profile(lines).items():
        cells = [_cell(found[metric], digits) for metric, (_, digits) in metrics.items()]
        rows.append([name, *cells, *_bytes_cells(next(iter(found.values())))])
    return Table(heads, rows)


def _by_profile(lines: Sequence[Line]) -> dict[str, dict[str, Line]]:
    found: dict[str, dict[str, Line]] = {}
    for line in lines:
        found.setdefault(line.profile, {})[line.metric] = line
    return found


def _cell(line: Line, digits: int) -> str:
    star = " *" if line.differs else ""
    return as_text([line.mean, line.low, line.high], digits) + star


def _bytes_cells(line: Line) -> list[str]:
    mean = as_bytes(line.held_mean_bytes) if line.held_mean_bytes is not None else "-"
    peak = as_bytes(line.held_peak_bytes) if line.held_peak_bytes is not None else "-"
    return [mean, peak, as_ratio(line.of_full, 1) if line.of_full is not None else "-"]


def differences(kind: str, lines: Sequence[Line]) -> Table:
    """The paired differences to the baseline, one row per profile."""
    metrics = METRICS[kind]
    rows = []
    for name, found in _by_profile([line for line in lines if line.difference is not None]).items():
        cells = []
        for metric, (_, digits) in metrics.items():
            line = found[metric]
            text = as_text([line.difference, line.difference_low, line.difference_high], digits)
            cells.append(text + (" *" if line.differs else ""))
        rows.append([f"{name} minus {baseline_of(lines)}", *cells])
    return Table(["difference", *(head for head, _ in metrics.values())], rows)


def baseline_of(lines: Sequence[Line]) -> str:
    return next(line.profile for line in lines if line.difference is None)


def verdict(kind: str, lines: Sequence[Line]) -> str:
    """The best of those that hold less than a full cache, and whether that is told from the baseline."""
    metric, (head, digits) = next(iter(METRICS[kind].items()))
    mine = [line for line in lines if line.metric == metric]
    bounded = [line for line in mine if line.of_full is not None and line.of_full < 1]
    if not bounded or len(mine) < 2:
        return ""
    sign = 1 if BEST[metric] == "lowest" else -1
    best = min(bounded, key=lambda line: sign * line.mean)
    among = f"{BEST[metric]} of {len(bounded)}: " if len(bounded) > 1 else ""
    held = f"with {as_ratio(best.of_full or 0, 1)} of the full cache's bytes"
    said = f"{best.profile}: {head} {among}{as_text([best.mean, best.low, best.high], digits)}, {held}"
    if best.difference is None:
        return said
    if best.differs is None:
        return f"{said}; too little was measured to tell it from {baseline_of(lines)}"
    if not best.differs:
        return f"{said}; not told apart from {baseline_of(lines)}"
    better = sign * best.difference < 0
    return f"{said}; {'better' if better else 'worse'} than {baseline_of(lines)}, and not by chance"


def as_csv(lines: Sequence[Line]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(Line.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    return text.getvalue()


def mean_bytes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """A profile's HeldBytes over several texts: averages of averages, the largest of the peaks."""
    held = [row["bytes"] for row in rows]
    averaged = {
        name: sum(one[name] for one in held) / len(held) for name in ("held_mean", "full_mean", "overhead")
    }
    return averaged | {
        name: max(one[name] for one in held) for name in ("held_peak", "full_peak", "allocated")
    }
