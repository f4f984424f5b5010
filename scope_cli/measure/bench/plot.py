"""Lines of figures in, a PNG out: milliseconds per step against position, a curve per contender."""

from pathlib import Path

from scope_cli.measure.bench.report import Figures
from scope_cli.measure.palette import styles


def draw(lines: list[Figures], file: Path, title: str) -> None:
    """The bars reach from the fastest burst to the slowest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    last = {line.contender: line.step_ms for line in lines}  # lines come in the order of positions
    names = sorted(last, key=lambda name: -last[name])  # the legend's order is that of the curves' ends
    looks = styles(line.contender for line in lines)
    for name in names:
        own = [line for line in lines if line.contender == name]
        at = [line.position for line in own]
        medians = [line.step_ms for line in own]
        below = [line.step_ms - line.step_ms_least for line in own]
        above = [line.step_ms_most - line.step_ms for line in own]
        lanes = f" ({own[0].lanes} lanes)" if own[0].lanes > 1 else ""
        axes.errorbar(
            at,
            medians,
            yerr=(below, above),
            label=name + lanes,
            color=looks[name].colour,
            marker=looks[name].marker,
            linestyle=looks[name].dashes,
            capsize=3,
        )
    axes.set_xlabel("position (tokens of prompt and output)")
    axes.set_ylabel("milliseconds per step")
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({line.position for line in lines}))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
