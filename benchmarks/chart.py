"""Draws docs/images/flat.png from results/performance/at-*.json: one run for each position."""

import json
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "performance"
PICTURE = ROOT / "docs" / "images" / "flat.png"
DRAWN = {  # contender: label, colour, marker, dashes; told apart in grey as well
    "scope": ("scope, budget 512", "#0072B2", "o", "-"),
    "whole": ("scope, nothing evicted", "#56B4E9", "o", "--"),
    "llama.cpp": ("llama.cpp", "#D55E00", "s", "--"),
    "OpenVINO": ("OpenVINO GenAI", "#009E73", "^", "-."),
    "onnxruntime": ("onnxruntime-genai", "#CC79A7", "D", ":"),
}


def series() -> dict[str, list[tuple[int, float]]]:
    """(position, median ms of a token) by contender, positions in order."""
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in DRAWN}
    for file in RESULTS.glob("at-*.json"):
        for one in json.loads(file.read_text())["contenders"]:
            found[one["name"]] += [
                (at["position"], median(at["step_ms"])) for at in one["positions"] if at["step_ms"]
            ]
    return {name: sorted(points) for name, points in found.items() if points}


def draw(file: Path = PICTURE) -> None:
    figure, axes = plt.subplots(figsize=(8, 3.8), dpi=100)
    lines, above = series(), float("inf")
    for name in sorted(lines, key=lambda name: -lines[name][-1][1]):  # the legend in the order of the ends
        label, colour, marker, dashes = DRAWN[name]
        points = lines[name]
        axes.plot(*zip(*points, strict=True), dashes, marker=marker, color=colour, linewidth=2.5, label=label)
        x, y = points[-1]
        low = 10 if above - y < 3 else 4  # points: out of the way of the figure above
        axes.annotate(f"{y:.0f}", (x, y), xytext=(9, -low), textcoords="offset points", fontsize=11)
        above = y
    axes.set_xlim(0, 8600)
    axes.set_ylim(0)
    axes.set_xlabel("tokens of prompt and output so far", fontsize=12)
    axes.set_ylabel("ms for the next token", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False, fontsize=11)
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw()
