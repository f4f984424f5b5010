"""Results or plans in, one figure out: the cache over the output, speed, memory, time, what is still held.

Every policy has its colour (palette.py) and a dash pattern, every part of a bar a hatch, and maps run from
light to dark, so that nothing is lost in black and white.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scope_cli.measure.palette import HATCHES, PARTS, Style, styles
from scope_cli.measure.profiling.result import UNWRITTEN, Result
from scope_cli.units import as_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scope_cli.measure.profiling.report import PlannedProfile

WIDTH_IN, DPI = 11.0, 150  # 1,650 pixels; a letter of 11 points is 11 pixels high where that is shown at 800
BAR_IN, MAP_IN, HELD_IN = 0.36, 2.3, 2.5
FORGOTTEN, HELD, UNSEEN = "#ECECEC", "#0B2A5B", "#BBBBBB"
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "scope",  # the same picture is the same file
}


@dataclass(frozen=True)
class Curve:
    """Keys and values against output tokens, held and in a cache that forgets nothing."""

    label: str
    prompt_tokens: int
    n: Sequence[int]
    held_bytes: Sequence[float]
    full_bytes: Sequence[float]
    free_bytes: int | None  # None: not known
    runs_out_at: int  # the output token at which the full cache fills the memory
    room: int  # output tokens up to the model's context


def measured_curve(result: Result) -> Curve:
    series, plan = result.series, result.plan
    return Curve(
        result.label, result.prompt_tokens, series.n, series.held_bytes, series.full_bytes,
        plan.get("free_bytes"), plan.get("full_runs_out_at", 0), plan.get("room_for_output", 0),
    )  # fmt: skip


def planned_curve(one: PlannedProfile) -> Curve:
    return Curve(
        one.label, one.footprint.prompt_tokens, range(1, len(one.held) + 1), one.held, one.full_held,
        one.free, one.runs_out_at, one.context - one.footprint.prompt_tokens,
    )  # fmt: skip


def draw(results: list[Result], title: str) -> Figure:
    """Cache and speed, memory and time side by side; below a row of maps for each that forgot something."""
    import matplotlib
    from matplotlib.figure import Figure

    maps, looks = with_maps(results), styles(one.label for one in results)
    heights = [HELD_IN, 0.5 + BAR_IN * len(results), *[MAP_IN] * len(maps)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.95 * len(heights) + 0.9), layout=spacing())
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        held = figure.add_subplot(grid[0, 0])
        cache_over_time(held, [measured_curve(one) for one in results], looks)
        speed_over_time(figure.add_subplot(grid[0, 1]), results, looks)
        memory = figure.add_subplot(grid[1, 0])
        memory_bars(memory, results)
        time_bars(figure.add_subplot(grid[1, 1], sharey=memory), results)
        for at, result in enumerate(maps):
            row = grid[2 + at, :].subgridspec(1, 2, width_ratios=(1, 1.15))
            over_time = figure.add_subplot(row[0])
            inner = row[1].subgridspec(1, 3)
            memory_map(figure, over_time, [figure.add_subplot(inner[column]) for column in range(3)], result)
        head(figure, held, title)
    return figure


def draw_plans(planned: list[PlannedProfile], title: str) -> Figure:
    """What every profile would hold along its output, and what it takes in all."""
    import matplotlib
    from matplotlib.figure import Figure

    looks = styles(one.label for one in planned)
    heights = [3.2, 0.5 + BAR_IN * (len(planned) + 1)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, sum(heights) + 2.8), layout=spacing())
        grid = figure.add_gridspec(2, 1, height_ratios=heights)
        held = figure.add_subplot(grid[0])
        cache_over_time(held, [planned_curve(one) for one in planned], looks)
        plan_bars(figure.add_subplot(grid[1]), planned)
        head(figure, held, title)
    return figure


def spacing() -> Any:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1, hspace=0.03, wspace=0.03)


def head(figure: Figure, named: Axes, title: str) -> None:
    """What it is a picture of, and one legend for all lines, above them."""
    lines, names = named.get_legend_handles_labels()
    longest = max(map(len, names))
    figure.legend(
        lines, names, loc="outside upper left", ncols=max(1, min(len(names), 110 // (longest + 9))),
        title=title, title_fontsize=13, alignment="left",
    )  # fmt: skip


def with_maps(results: list[Result]) -> list[Result]:
    """Whose memory map is worth its place: the others', where nothing was evicted, are all alike."""
    mapped = [result for result in results if result.map is not None]
    return [result for result in mapped if result.transfer.evictions] or mapped[:1]


def thousands(value: float, _: Any = None) -> str:
    return f"{value:,.0f}"


def cache_over_time(axes: Axes, curves: list[Curve], looks: dict[str, Style]) -> None:
    """KV memory against output tokens: what is held, and the full cache as a thin dashed line."""
    full: dict[int, Curve] = {}
    for one in curves:
        if one.prompt_tokens not in full or one.n[-1] > full[one.prompt_tokens].n[-1]:
            full[one.prompt_tokens] = one
    scale, unit = scale_of(max(max(*one.held_bytes, *one.full_bytes) for one in curves))
    for one in curves:
        look = looks[one.label]
        axes.plot(
            one.n, [count / scale for count in one.held_bytes], label=one.label, color=look.colour,
            linestyle=look.dashes, linewidth=2,
        )  # fmt: skip
    for number, one in enumerate(full.values()):
        values = [count / scale for count in one.full_bytes]
        label = None if number else "a cache that forgets nothing"
        axes.plot(one.n, values, color="black", linestyle=(0, (2, 2)), linewidth=1, zorder=3, label=label)
        _mark_the_end(axes, one, scale)
    axes.set(title="Keys and values held", xlabel="output tokens", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(thousands)


def _mark_the_end(axes: Axes, curve: Curve, scale: float) -> None:
    """Where the full cache would run out of memory: a cross on its line, or a sentence if that is later."""
    if curve.free_bytes is None:
        return
    at = curve.runs_out_at
    if at < curve.n[-1]:
        nearest = max((i for i, n in enumerate(curve.n) if n <= at), default=0)
        height = curve.full_bytes[nearest] / scale
        axes.plot([max(at, 0)], [height], "x", color="black", markersize=9, mew=2, clip_on=False)
        left = at < curve.n[-1] / 3
        axes.annotate(
            "memory ends here", (max(at, 0), height), textcoords="offset points", fontsize=10,
            xytext=(8 if left else -8, 6), ha="left" if left else "right",
        )  # fmt: skip
    else:
        beyond = ",\nbeyond the model's context" if at > curve.room else ""
        axes.text(
            0.99, 0.03, f"a full cache fills {as_bytes(curve.free_bytes)} after {at:,} output tokens{beyond}",
            transform=axes.transAxes, ha="right", va="bottom", fontsize=10, color="#333333",
        )  # fmt: skip


def speed_over_time(axes: Axes, results: list[Result], looks: dict[str, Style]) -> None:
    """Each stretch of 1% thin, the median of those around it on top."""
    for result in results:
        look = looks[result.label]
        positions, measured = result.speed.positions, result.speed.tokens_per_s
        axes.plot(positions, measured, color=look.colour, linewidth=0.6, alpha=0.35)
        axes.plot(positions, smoothed(measured), linewidth=2, color=look.colour, linestyle=look.dashes)
    axes.set(title="Speed of the uncompiled step", xlabel="output tokens", ylabel="tokens/s")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(thousands)


def smoothed(values: list[float], reach: int = 7) -> list[float]:
    """The median of each value and its neighbours: one slow moment is not the speed."""
    parts = (sorted(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values)))
    return [part[len(part) // 2] for part in parts]


def memory_bars(axes: Axes, results: list[Result]) -> None:
    """What the peak was made of, beside the process that was there before."""
    parts: list[tuple[str, Callable[[Result], float]]] = [
        ("held, on average", lambda one: one.kv.held_mean_bytes),
        ("free slots", lambda one: one.kv.allocated_bytes - one.kv.overhead_bytes - one.kv.held_mean_bytes),
        ("positions, bias, rings", lambda one: one.kv.overhead_bytes),
        ("workspace", lambda one: _peak(one) - one.kv.allocated_bytes),
    ]
    scale, unit = scale_of(max(_peak(one) for one in results))
    _stack(
        axes, [one.label for one in results],
        [(label, [max(0.0, part(one)) / scale for one in results]) for label, part in parts],
    )  # fmt: skip
    weights = {as_bytes(one.plan["weight_bytes"]) for one in results}
    axes.set(title=f"Peak beside the weights ({', '.join(sorted(weights))})", xlabel=unit)


def _peak(result: Result) -> int:
    return max(result.peaks.prefill_bytes, result.peaks.decode_bytes)


def time_bars(axes: Axes, results: list[Result]) -> None:
    totals = [one.time.prefill_s + one.time.decode_s for one in results]
    parts = (
        ("reading", "prefill_s"),
        ("attention", "attention_s"),
        ("eviction", "eviction_s"),
        ("rest of writing", "rest_s"),
    )
    shares = [
        (label, [100 * getattr(one.time, key) / total for one, total in zip(results, totals, strict=True)])
        for label, key in parts
    ]
    _stack(axes, [one.label for one in results], shares)
    axes.tick_params(labelleft=False)
    axes.set(title="Where the time went", xlabel="% of the run's time")
    axes.set_xlim(0, 100)


def plan_bars(axes: Axes, planned: list[PlannedProfile]) -> None:
    """Everything that has to be free, against what is; last the longest of them with nothing evicted."""
    longest = max(planned, key=lambda one: one.full.total_bytes)
    feet = [*[(one.label, one.footprint) for one in planned], ("a full cache", longest.full)]
    peaks = [max(foot.prefill_peak_bytes, foot.decode_peak_bytes) for _, foot in feet]
    scale, unit = scale_of(max(*(foot.total_bytes for _, foot in feet), planned[0].free))
    parts = [
        ("libraries", [foot.runtime_bytes / scale for _, foot in feet]),
        ("weights", [foot.weight_bytes / scale for _, foot in feet]),
        ("cache", [foot.cache_bytes / scale for _, foot in feet]),
        (
            "workspace",
            [(peak - foot.cache_bytes) / scale for peak, (_, foot) in zip(peaks, feet, strict=True)],
        ),
    ]
    _stack(axes, [label for label, _ in feet], parts, columns=4)
    free = planned[0].free
    axes.axvline(free / scale, color="black", linewidth=1.5)
    axes.set(title=f"What has to be free; the line: {as_bytes(free)} are", xlabel=unit)


def _stack(axes: Axes, labels: list[str], parts: list[tuple[str, list[float]]], columns: int = 2) -> None:
    """One horizontal bar a label; the key below it."""
    rows = range(len(labels))
    left = [0.0] * len(labels)
    for index, (label, values) in enumerate(parts):
        axes.barh(
            rows, values, left=left, height=0.66, label=label, edgecolor="white", linewidth=0.5,
            color=PARTS[index], hatch=HATCHES[index],
        )  # fmt: skip
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_yticks(list(rows), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    below = -0.62 / (0.5 + BAR_IN * len(labels))
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, below), ncols=columns, columnspacing=1.2, handlelength=1.4,
        handletextpad=0.5, borderaxespad=0,
    )  # fmt: skip


def memory_map(figure: Figure, over_time: Axes, by_layer: list[Axes], result: Result) -> None:
    """What the model can still see: positions over time, all layers together, then layer by layer."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    assert result.map is not None
    values, what = result.map.values(), result.map
    shown: dict[str, Any] = {
        "cmap": LinearSegmentedColormap.from_list("held", [FORGOTTEN, HELD]), "vmin": 0, "vmax": 100,
        "rasterized": True,
    }  # fmt: skip
    written = np.ma.masked_equal(values, UNWRITTEN).astype(float)
    edge, end = what.prompt_tokens, what.edges[-1]
    picture = over_time.pcolormesh(what.edges, [1, *what.n], written.mean(1), **shown)
    prompt_stays = bool((written[-1, :, : what.edges.index(edge)] == 100).all())
    start = edge - (end - edge) // 12 if prompt_stays else 0  # a prompt that is held whole is told, not drawn
    over_time.set_xlim(start, end)
    over_time.invert_yaxis()
    over_time.set(
        title=f"Memory map, {result.label}: what is still held", xlabel="position in the text",
        ylabel="output tokens",
    )  # fmt: skip
    figure.colorbar(picture, ax=over_time, label="held by, % of KV heads", pad=0.01)
    over_time.text(
        0.97, 0.93, "not written yet", transform=over_time.transAxes, ha="right", va="top", fontsize=10,
        color="#333333", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip
    over_time.text(
        (start + edge) / 2, 0.5, "prompt", transform=over_time.get_xaxis_transform(), ha="center",
        va="center", rotation=90, fontsize=10, color="white",
    )  # fmt: skip
    for column, axes in enumerate(by_layer):
        at = max(0, round((column + 1) * len(what.n) / len(by_layer)) - 1)
        axes.pcolormesh(what.edges, np.arange(len(what.layers) + 1) - 0.5, written[at], **shown)
        axes.set_xlim(start, end)
        axes.invert_yaxis()
        axes.set_title(f"{'after ' if column == 0 else ''}{what.n[at]:,} tokens", fontweight="normal")
        if column == 0:
            axes.set_ylabel("layer")
        if column == 1:
            axes.set_xlabel("position in the text")
        rows = sorted({0, len(what.layers) // 2, len(what.layers) - 1})
        axes.set_yticks(rows, [str(what.layers[row]) for row in rows] if column == 0 else [])
    for axes in (over_time, *by_layer):
        axes.grid(visible=False)
        axes.axvline(edge, color="#D55E00", linewidth=1.2, linestyle=(0, (4, 2)))
        axes.patch.set(hatch="//", edgecolor=UNSEEN, linewidth=0)  # behind the map: not written yet
        axes.xaxis.set_major_formatter(thousands)
        axes.xaxis.set_major_locator(MaxNLocator(2 if axes in by_layer else 6))


def scale_of(count: float) -> tuple[float, str]:
    """Divisor and unit for an axis."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return 1024.0**power, unit
    return 1.0, "bytes"
