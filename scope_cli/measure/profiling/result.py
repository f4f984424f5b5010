"""What one measured run says, as plain values: to JSON and back, and its rows for tables and CSV."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from scope_cli.console import safe
from scope_cli.errors import UsageError
from scope_cli.machine.gauge import OnCard
from scope_cli.units import as_bytes, as_duration, as_rate

FORMAT = 1
UNWRITTEN = 255  # in a memory map


@dataclass(frozen=True)
class Peaks:
    """Bytes added to the process that has the weights loaded and is warm."""

    baseline_bytes: int  # that process
    prefill_bytes: int
    decode_bytes: int
    how: str  # in words: what was read
    mapped_bytes: int = 0  # of the baseline: pages of files, which the system can drop and read again
    card: OnCard | None = None  # of the output, on CUDA


@dataclass(frozen=True)
class KV:
    """The cache's own count; means are over the output's tokens."""

    allocated_bytes: int
    overhead_bytes: int
    held_peak_bytes: int
    held_mean_bytes: float
    held_end_bytes: int
    full_end_bytes: int
    full_mean_bytes: float


@dataclass(frozen=True)
class Transfer:
    """Bytes per 1,000 output tokens; `host_bytes` of the whole run."""

    read_bytes: float
    moved_bytes: float
    reference_moved_bytes: float  # what an implementation that gathers what it keeps would have copied
    host_bytes: int
    evictions: int
    evicted_tokens: int


@dataclass(frozen=True)
class Speed:
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    positions: list[int]  # output tokens written, at the end of each stretch
    tokens_per_s: list[float]  # over that stretch


@dataclass(frozen=True)
class Time:
    """Seconds; the last three are parts of `decode_s`."""

    prefill_s: float
    decode_s: float
    attention_s: float
    eviction_s: float
    rest_s: float
    how: str


@dataclass(frozen=True)
class Series:
    """At these numbers of output tokens, the cache's bytes."""

    n: list[int]
    held_bytes: list[int]
    full_bytes: list[int]


@dataclass(frozen=True)
class MemoryMap:
    """Which positions are still held: [times, layers, bins] in percent of the KV heads, as packed bytes.

    A bin is a stretch of positions; the prompt and the output are divided by themselves.
    """

    n: list[int]  # output tokens written at each time
    layers: list[int]  # indices of the layers under the policy
    edges: list[int]  # positions where bins begin, and the end of the last
    prompt_tokens: int
    packed: str  # base64 of zlib of one byte a value, in C order

    def values(self) -> Any:
        """[times, layers, bins], 0 to 100; UNWRITTEN where nothing had been written yet."""
        import numpy as np

        raw = zlib.decompress(base64.b64decode(self.packed))
        return np.frombuffer(raw, np.uint8).reshape(len(self.n), len(self.layers), len(self.edges) - 1)


def packed(values: Any) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


@dataclass(frozen=True)
class Result:
    __pydantic_config__ = ConfigDict(extra="forbid")

    label: str
    policy: str
    prompt_tokens: int
    output_tokens: int
    model: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    profile: dict[str, Any]
    plan: dict[str, Any]  # Footprint.as_dict()
    peaks: Peaks
    kv: KV
    transfer: Transfer
    speed: Speed
    time: Time
    series: Series
    map: MemoryMap | None
    audit: list[str] = field(default_factory=list)  # problems
    notes: list[str] = field(default_factory=list)
    measured_at: str = ""
    command: list[str] = field(default_factory=list)  # as it was typed

    def errors(self) -> dict[str, float]:
        """Plan against measurement: (measured - planned) / planned, in percent."""
        return {
            key: 100 * (_at(self, FIGURES[f"{key}_bytes"][1]) / planned - 1)
            for key, name in PLANNED.items()
            if (planned := self.plan[name])
        }

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "errors_percent": self.errors()}


FIGURES = {  # in the order of a table: in words, and where in a Result
    "prompt_tokens": ("prompt, tokens", "prompt_tokens"),
    "output_tokens": ("output, tokens", "output_tokens"),
    "weight_bytes": ("weights", "plan.weight_bytes"),
    "baseline_bytes": ("loaded and warm", "peaks.baseline_bytes"),
    "baseline_mapped_bytes": ("of that, mapped files", "peaks.mapped_bytes"),
    "prefill_peak_bytes": ("prefill peak", "peaks.prefill_bytes"),
    "prefill_peak_planned_bytes": ("prefill peak, planned", "plan.prefill_peak_bytes"),
    "decode_peak_bytes": ("decode peak", "peaks.decode_bytes"),
    "decode_peak_planned_bytes": ("decode peak, planned", "plan.decode_peak_bytes"),
    "card_allocated_bytes": ("on the card: tensors, peak", "peaks.card.allocated_bytes"),
    "card_reserved_bytes": ("on the card: reserved, peak", "peaks.card.reserved_bytes"),
    "card_fragmentation_bytes": ("of that, in no tensor", "peaks.card.fragmentation_bytes"),
    "card_process_bytes": ("on the card: the process", "peaks.card.process_bytes"),
    "kv_allocated_bytes": ("KV allocated", "kv.allocated_bytes"),
    "kv_held_peak_bytes": ("KV held, peak", "kv.held_peak_bytes"),
    "kv_held_mean_bytes": ("KV held, average", "kv.held_mean_bytes"),
    "kv_held_end_bytes": ("KV held, at the end", "kv.held_end_bytes"),
    "full_end_bytes": ("full cache, at the end", "kv.full_end_bytes"),
    "full_mean_bytes": ("full cache, average", "kv.full_mean_bytes"),
    "read_bytes_per_1000": ("read per 1,000 tokens", "transfer.read_bytes"),
    "moved_bytes_per_1000": ("moved per 1,000 tokens", "transfer.moved_bytes"),
    "reference_moved_bytes_per_1000": (
        "gathering would move, per 1,000", "transfer.reference_moved_bytes"
    ),
    "host_bytes": ("host transfers", "transfer.host_bytes"),
    "evictions": ("evictions", "transfer.evictions"),
    "evicted_tokens": ("evicted tokens", "transfer.evicted_tokens"),
    "prefill_tokens_per_s": ("prefill", "speed.prefill_tokens_per_s"),
    "decode_tokens_per_s": ("decode", "speed.decode_tokens_per_s"),
    "prefill_s": ("time, prefill", "time.prefill_s"),
    "decode_s": ("time, decode", "time.decode_s"),
    "attention_s": ("of that, attention", "time.attention_s"),
    "eviction_s": ("of that, eviction", "time.eviction_s"),
    "rest_s": ("of that, the rest", "time.rest_s"),
}  # fmt: skip
PLANNED = {  # figures that a plan foretells, and what it calls them
    "kv_allocated": "cache_bytes",
    "kv_held_peak": "held_peak_bytes",
    "kv_held_mean": "held_mean_bytes",
    "kv_held_end": "held_end_bytes",
    "prefill_peak": "prefill_peak_bytes",
    "decode_peak": "decode_peak_bytes",
}
WORDS = {name: words for name, (words, _) in FIGURES.items()} | {
    f"{key}_error_percent": f"{FIGURES[f'{key}_bytes'][0]}, measured against planned" for key in PLANNED
}


def _at(result: Result, where: str) -> Any:
    """None where there is no card, or it does not say."""
    found: Any = result
    for name in where.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name, None)
    return found


def in_words(figure: str, value: float) -> str:
    """A figure's value with its unit, which the end of its name tells."""
    if figure.endswith(("_bytes", "_bytes_per_1000")):
        return as_bytes(value)
    if figure.endswith("_tokens_per_s"):
        return as_rate(value)
    if figure.endswith("_s"):
        return as_duration(value)
    return f"{value:+.1f}%" if figure.endswith("_percent") else f"{value:,}"


def figures(result: Result) -> dict[str, Any]:
    """One flat row: for CSV and for comparing."""
    found = {name: _at(result, where) for name, (_, where) in FIGURES.items()}
    errors = {f"{key}_error_percent": value for key, value in result.errors().items()}
    return {"label": result.label, **{name: one for name, one in found.items() if one is not None}, **errors}


def as_json(results: list[Result]) -> str:
    return safe.as_json({"format": FORMAT, "results": [result.as_dict() for result in results]})


def from_dict(tree: dict[str, Any]) -> Result:
    return TypeAdapter(Result).validate_python(
        {key: value for key, value in tree.items() if key != "errors_percent"}
    )


def read_results(file: Path) -> list[Result]:
    """What `scope profile --json` wrote."""
    hint = "give files that `scope profile --json` wrote"
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON", hint) from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or not tree.get("results"):
        raise UsageError(f"{file} holds no measured profiles", hint)
    try:
        return [from_dict(one) for one in tree["results"]]
    except (ValidationError, TypeError, AttributeError) as error:
        where = (
            ".".join(str(part) for part in error.errors()[0]["loc"])
            if isinstance(error, ValidationError)
            else "one of them is no mapping"
        )
        raise UsageError(f"{file} is not a result of scope profile: {where}", hint) from error
