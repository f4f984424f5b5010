"""Results in, PNG files out: labelled axes with units, legible at a width of 800 pixels.

Lines differ in colour, marker and dashes (palette.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker

matplotlib.use("Agg")  # files, no window
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scope_cli.errors import WriteError
from scope_cli.measure.evaluate.compare import METRICS, Line
from scope_cli.measure.palette import COLOURS, styles

POINTS = 16  # of a line along the text: more would be noise
MIB = 2**20


def figure(title: str, x: str, y: str, height: float = 5.0) -> tuple[Figure, Axes]:
    """800 pixels wide."""
    drawn, axes = plt.subplots(figsize=(8, height), dpi=100, layout="constrained")
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.grid(True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    return drawn, axes


def save(drawn: Figure, path: Path) -> None:
    try:
        drawn.savefig(path)
    except OSError as error:
        raise WriteError(path, error) from error
    finally:
        plt.close(drawn)


def lines(axes: Axes, named: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    looks = styles(named)
    for name, (x, y) in named.items():
        look = looks[name]
        axes.plot(
            x, y, label=name, linewidth=1.7, markersize=5, color=look.colour, marker=look.marker,
            linestyle=look.dashes,
        )  # fmt: skip
    legend(axes)


def legend(axes: Axes) -> None:
    """Below the picture, where it covers nothing; the figure grows by what that takes."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, min(len(names), 100 // (max(map(len, names), default=1) + 8)))
    drawn = axes.get_figure(root=True)
    assert drawn is not None, "the axes were drawn by figure()"
    width, height = drawn.get_size_inches()
    drawn.set_size_inches(width, height + 0.22 * -(-len(names) // columns))
    drawn.legend(handles, names, loc="outside lower left", ncols=columns, fontsize=9, frameon=False)


def from_zero(axes: Axes, top: float | None = None) -> None:
    """A distance on the axis is a difference of the same size: it begins at 0."""
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), top)


def by_position(means: Sequence[float], block: int) -> tuple[list[float], list[float]]:
    """A text's block means, averaged further into at most POINTS points: tokens, values."""
    together = max(1, -(-len(means) // POINTS))
    parts = [means[start : start + together] for start in range(0, len(means), together)]
    middles = [(start * together + len(part) / 2) * block for start, part in enumerate(parts)]
    return middles, [sum(part) / len(part) for part in parts]


def agreement(rows: dict[str, list[dict[str, Any]]], path: Path, title: str = "") -> None:
    """Profile -> its fidelity rows, one a text: how often the most probable token is the full cache's."""
    drawn, axes = figure(
        title or "Agreement with the full cache",
        "position in the output (tokens)",
        "same most probable token (share)",
    )
    named = {}
    for name, texts in rows.items():
        shortest = min(len(text["blocks"]["top1"]) for text in texts)
        means = [sum(text["blocks"]["top1"][at] for text in texts) / len(texts) for at in range(shortest)]
        named[name] = by_position(means, texts[0]["block_tokens"])
    lines(axes, named)
    from_zero(axes, 1.02)
    save(drawn, path)


def recall_by_gap(rows: dict[str, list[dict[str, Any]]], kind: str, path: Path, title: str = "") -> None:
    """Profile -> its recall rows: how probable the right answer is, against the distance to the fact."""
    facts = kind.endswith("fact")
    what = "tokens between fact and question" if facts else "number of the item"
    drawn, axes = figure(
        title or f"Recall: {kind}", what, "log-probability of the right answer (nats per token)"
    )
    named = {}
    for name, probes in rows.items():
        answers = sorted(
            (answer["at"], answer["logprob"])
            for probe in probes
            if probe["kind"] == kind
            for answer in probe["answers"]
        )
        if not answers:
            continue
        bins = 6 if facts else 12
        size = max(1, -(-len(answers) // bins))
        parts = [answers[start : start + size] for start in range(0, len(answers), size)]
        named[name] = (
            [sum(at for at, _ in part) / len(part) for part in parts],
            [sum(logprob for _, logprob in part) / len(part) for part in parts],
        )
    lines(axes, named)
    axes.set_ylim(top=0)  # certainty
    if facts:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    save(drawn, path)


def accuracy_by_index(rows: dict[str, list[tuple[int, float, int]]], path: Path, title: str = "") -> None:
    """Profile -> (index, share of right answers, prompts): the paper's Figure 4a."""
    drawn, axes = figure(
        title or "LongGenBench", "number of the question in its prompt", "right answers (share)"
    )
    lines(
        axes, {name: ([one[0] for one in found], [one[1] for one in found]) for name, found in rows.items()}
    )
    axes.set_ylim(-0.02, 1.02)
    save(drawn, path)


def with_intervals(
    named: Mapping[str, Sequence[float | None]], path: Path, title: str, x: str, zero: bool = False
) -> None:
    """Profile -> mean, low, high: one horizontal line each, the first on top."""
    drawn, axes = figure(title, x, "", height=1.6 + 0.34 * len(named))
    for row, (_name, (mean, low, high)) in enumerate(named.items()):
        assert mean is not None
        if low is not None and high is not None:
            axes.plot([low, high], [row, row], color=COLOURS[1], linewidth=2.2, solid_capstyle="butt")
        axes.plot([mean], [row], color="black", marker="o", markersize=6)
    axes.set_yticks(range(len(named)), list(named), fontsize=10)
    axes.invert_yaxis()
    if zero:
        axes.axvline(0, color="#000000", linewidth=0.9)
    left, right = axes.get_xlim()
    axes.set_xlim(min(0.0, left), max(0.0, right))
    save(drawn, path)


def against_bytes(lines_of_table: Sequence[Line], kind: str, metric: str, path: Path) -> None:
    """Each profile's mean of one metric against the bytes it holds on average."""
    head, _ = METRICS[kind][metric]
    drawn, axes = figure(
        f"{head} against memory", "keys and values held, average over the output (MiB)", head
    )
    chosen = [line for line in lines_of_table if line.metric == metric and line.held_mean_bytes is not None]
    looks = styles(line.profile for line in chosen)
    for line in chosen:
        held = (line.held_mean_bytes or 0) / MIB
        spread = None
        if line.low is not None and line.high is not None:
            spread = [[max(0.0, line.mean - line.low)], [max(0.0, line.high - line.mean)]]
        look = looks[line.profile]
        axes.errorbar(
            [held], [line.mean], yerr=spread, label=line.profile, capsize=4, linestyle="none",
            color=look.colour, marker=look.marker,
        )  # fmt: skip
    from_zero(axes)
    axes.set_ylim(top=max(0.0, axes.get_ylim()[1]))
    axes.set_xlim(left=0)
    legend(axes)
    save(drawn, path)
