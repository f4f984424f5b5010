"""Results in, one picture out: PNG, SVG, or an HTML page with the picture and its numbers.

Colours are Okabe and Ito's, told apart with any eyes; every line has a dash pattern, every bar a hatch and
maps run from light to dark, so that nothing is lost in black and white.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.errors import ScopeError, UsageError
from scope_cli.palette import COLOURS, DASHES, HATCHES
from scope_cli.profiling.result import UNWRITTEN, Result, figures
from scope_cli.units import as_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "html")
WIDTH_IN, DPI = 8.0, 150  # 1,200 pixels; still legible at 800
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "scope",  # the same picture is the same file
}


def check_plot(target: str) -> None:
    """Raises UsageError for a picture that could not be written, before anything is measured."""
    if target == "-":
        return
    path = Path(target)
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise UsageError(
            f"--plot {target}: no such format",
            f"end the name with {', '.join('.' + one for one in FORMATS)}, or give - for the terminal",
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {target}: there is no folder {path.parent}", "make it first")


def write_plot(target: Path, results: list[Result]) -> None:
    import matplotlib

    kind = target.suffix.lower().removeprefix(".")
    buffer = io.BytesIO()
    figure = draw(results)
    metadata = {"Date": None} if kind in ("svg", "html") else {}
    with matplotlib.rc_context(STYLE):  # how text and ids are written is asked for now
        figure.savefig(buffer, format="svg" if kind == "html" else kind, dpi=DPI, metadata=metadata)
    content = page(buffer.getvalue().decode(), results).encode() if kind == "html" else buffer.getvalue()
    try:
        target.write_bytes(content)
    except OSError as error:
        raise ScopeError(f"cannot write {target}: {error.strerror}") from error


def draw(results: list[Result]) -> Figure:
    """Three rows for all results together, then two rows of maps for each that forgot something."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    maps = with_maps(results)
    bars = 0.5 + 0.34 * len(results)
    heights = [2.6, 2.1, bars, bars, *[height for _ in maps for height in (2.2, 1.7)]]
    spacing = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06, hspace=0.03)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.75 * len(heights)), layout=spacing)
        grid = figure.add_gridspec(len(heights), 3, height_ratios=heights)
        cache_over_time(figure.add_subplot(grid[0, :]), results)
        speed_over_time(figure.add_subplot(grid[1, :]), results)
        memory_bars(figure.add_subplot(grid[2, :]), results)
        time_bars(figure.add_subplot(grid[3, :]), results)
        for at, result in enumerate(maps):
            over_time = figure.add_subplot(grid[4 + 2 * at, :])
            layers = [figure.add_subplot(grid[5 + 2 * at, column]) for column in range(3)]
            memory_map(figure, over_time, layers, result)
    return figure


def with_maps(results: list[Result]) -> list[Result]:
    """Whose memory map is worth its place: the others', where nothing was evicted, are all alike."""
    mapped = [result for result in results if result.map is not None]
    return [result for result in mapped if result.transfer.evictions] or mapped[:1]


def cache_over_time(axes: Axes, results: list[Result]) -> None:
    """KV memory against output tokens: what is held, and the full cache as a dashed line."""
    full: dict[int, Result] = {}
    for result in results:
        full.setdefault(result.prompt_tokens, result)
    most = max(max(*one.series.held_bytes, *one.series.full_bytes) for one in results)
    scale, unit = scale_of(most)
    for one in full.values():
        values = [count / scale for count in one.series.full_bytes]
        axes.plot(one.series.n, values, "k--", linewidth=1, zorder=3, label="full cache")
        _mark_the_end(axes, one, scale)
    for index, result in enumerate(results):
        axes.plot(
            result.series.n, [count / scale for count in result.series.held_bytes], label=result.label,
            color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % len(DASHES)], linewidth=1.8,
        )  # fmt: skip
    axes.set(title="Keys and values held", xlabel="output tokens", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="best")


def _mark_the_end(axes: Axes, result: Result, scale: float) -> None:
    """Where the full cache would run out of memory: a cross on its line, or a sentence if that is later."""
    at = result.plan.get("full_runs_out_at")
    if at is None:
        return
    series = result.series
    if at < series.n[-1]:
        nearest = max((i for i, n in enumerate(series.n) if n <= at), default=0)
        axes.plot([max(at, 0)], [series.full_bytes[nearest] / scale], "x", color="black", markersize=9, mew=2)
        axes.annotate(
            "memory ends here", (max(at, 0), series.full_bytes[nearest] / scale), textcoords="offset points",
            xytext=(-6, 6), ha="right", fontsize=8,
        )  # fmt: skip
    else:
        free = as_bytes(result.plan["free_bytes"])
        beyond = " (beyond the context)" if at > result.plan["room_for_output"] else ""
        axes.text(
            0.99, 0.03, f"full cache: {free} are full after {at:,} output tokens{beyond}",
            transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color="#333333",
        )  # fmt: skip


def speed_over_time(axes: Axes, results: list[Result]) -> None:
    for index, result in enumerate(results):
        speed = smoothed(result.speed.tokens_per_s)
        axes.plot(
            result.speed.positions, speed, label=result.label, linewidth=1.5,
            color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % len(DASHES)],
        )  # fmt: skip
    axes.set(title="Speed", xlabel="output tokens", ylabel="tokens/s")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="lower left", ncols=3)


def smoothed(values: list[float], reach: int = 2) -> list[float]:
    """The median of each value and its neighbours: one slow moment is not the speed."""
    parts = (sorted(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values)))
    return [part[len(part) // 2] for part in parts]


def memory_bars(axes: Axes, results: list[Result]) -> None:
    """What the peak was made of, beside the process that was there before."""
    parts: list[tuple[str, Callable[[Result], float]]] = [
        ("held, on average", lambda one: one.kv.held_mean_bytes),
        (
            "allocated, not held",
            lambda one: one.kv.allocated_bytes - one.kv.overhead_bytes - one.kv.held_mean_bytes,
        ),
        ("positions, bias, rings", lambda one: one.kv.overhead_bytes),
        ("workspace at the peak", lambda one: _peak(one) - one.kv.allocated_bytes),
    ]
    most = max(_peak(one) for one in results)
    scale, unit = scale_of(most)
    _stack(
        axes, results, [(label, [max(0.0, part(one)) / scale for one in results]) for label, part in parts]
    )
    weights = {as_bytes(one.plan["weight_bytes"]) for one in results}
    axes.set(title=f"Memory beside the weights ({', '.join(sorted(weights))})", xlabel=unit)


def _peak(result: Result) -> int:
    return max(result.peaks.prefill_bytes, result.peaks.decode_bytes)


def time_bars(axes: Axes, results: list[Result]) -> None:
    totals = [one.time.prefill_s + one.time.decode_s for one in results]
    parts = (
        ("prefill", "prefill_s"),
        ("attention", "attention_s"),
        ("eviction", "eviction_s"),
        ("rest of decode", "rest_s"),
    )
    shares = [
        (label, [100 * getattr(one.time, key) / total for one, total in zip(results, totals, strict=True)])
        for label, key in parts
    ]
    _stack(axes, results, shares)
    axes.set(title="Where the time went", xlabel="% of the run's time")
    axes.set_xlim(0, 100)


def _stack(axes: Axes, results: list[Result], parts: list[tuple[str, list[float]]]) -> None:
    """One horizontal bar a result."""
    rows = range(len(results))
    left = [0.0] * len(results)
    for index, (label, values) in enumerate(parts):
        axes.barh(
            rows, values, left=left, height=0.62, label=label, edgecolor="white", linewidth=0.5,
            color=COLOURS[index], hatch=HATCHES[index],
        )  # fmt: skip
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_yticks(list(rows), [one.label for one in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.42 / (0.5 + 0.34 * len(results)) - 0.05), ncols=4)


def memory_map(figure: Figure, over_time: Axes, by_layer: list[Axes], result: Result) -> None:
    """What the model can still see: positions over time, all layers together, then layer by layer."""
    import matplotlib
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    assert result.map is not None
    values, what = result.map.values(), result.map
    colours = matplotlib.colormaps["cividis_r"].with_extremes(bad="white")
    shown: dict[str, Any] = {"cmap": colours, "vmin": 0, "vmax": 100, "rasterized": True}
    written = np.ma.masked_equal(values, UNWRITTEN).astype(float)
    edge, end = what.prompt_tokens, what.edges[-1]
    picture = over_time.pcolormesh(what.edges, [1, *what.n], written.mean(1), **shown)
    over_time.invert_yaxis()
    over_time.set(
        title=f"Memory map, {result.label}: positions still held, mean over {len(what.layers)} layers",
        xlabel="position in the text: prompt, then output",
        ylabel="output tokens",
    )
    figure.colorbar(picture, ax=over_time, label="KV heads that hold it, %", pad=0.01)
    over_time.annotate(
        "prompt", (edge / 2, 0), xycoords=("data", "axes fraction"), xytext=(0, 3),
        textcoords="offset points", ha="center", fontsize=8, color="white",
    )  # fmt: skip
    prompt_stays = (written[-1, :, : what.edges.index(edge)] == 100).all()
    for column, axes in enumerate(by_layer):
        at = max(0, round((column + 1) * len(what.n) / len(by_layer)) - 1)
        axes.pcolormesh(what.edges, np.arange(len(what.layers) + 1) - 0.5, written[at], **shown)
        axes.invert_yaxis()
        axes.set_title(f"after {what.n[at]:,} tokens", fontsize=9, fontweight="normal")
        axes.set_xlabel("position (output)" if prompt_stays else "position")
        axes.set_xlim(edge - 0.05 * (end - edge) if prompt_stays else 0, end)
        if column == 0:
            axes.set_ylabel("layer")
        rows = sorted({0, len(what.layers) // 2, len(what.layers) - 1})
        axes.set_yticks(rows, [str(what.layers[row]) for row in rows])
    for axes in (over_time, *by_layer):
        axes.grid(visible=False)
        axes.axvline(edge, color="#D55E00", linewidth=1.2, linestyle=(0, (4, 2)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(3 if axes in by_layer else 8))


def scale_of(count: float) -> tuple[float, str]:
    """Divisor and unit for an axis."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return 1024.0**power, unit
    return 1.0, "bytes"


def page(svg: str, results: list[Result]) -> str:
    """One file that needs no other."""
    rows = [figures(one) for one in results]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    body = "\n".join(
        f"<tr><th>{html.escape(key)}</th>"
        + "".join(f"<td>{html.escape(_shown(row.get(key, '')))}</td>" for row in rows)
        + "</tr>"
        for key in keys
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>scope profile</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-weight: normal; padding-right: 2rem; }}
td {{ text-align: right; padding: .1rem .6rem; }}
tr:nth-child(odd) {{ background: #f4f4f4; }}
</style></head><body>
<h1>scope profile</h1>
<p>{html.escape("; ".join(f"{one.label}: {one.policy}" for one in results))}</p>
{svg[svg.index("<svg") :]}
<table>{body}</table>
</body></html>
"""


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
