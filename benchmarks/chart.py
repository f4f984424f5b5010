"""Draws docs/images/flat.png, the README's first picture, from results/performance/llamacpp.json: one run."""

import json
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "performance" / "llamacpp.json"
PICTURE = ROOT / "docs" / "images" / "flat.png"
DRAWN = {  # contender: label, colour, marker, dashes; told apart in grey as well
    "chosen": ("scope, budget 512", "#0072B2", "o", "-"),
    "llama.cpp": ("llama.cpp, growing cache", "#D55E00", "s", "--"),
}


def series() -> dict[str, list[tuple[int, float]]]:
    """(position, median ms of a token) by contender."""
    contenders = json.loads(RESULT.read_text())["contenders"]
    return {
        one["name"]: [(at["position"], median(at["step_ms"])) for at in one["positions"]]
        for one in contenders
        if one["name"] in DRAWN
    }


def draw(file: Path = PICTURE) -> None:
    figure, axes = plt.subplots(figsize=(8, 3.4), dpi=100)
    for name, points in series().items():
        label, colour, marker, dashes = DRAWN[name]
        axes.plot(
            *zip(*points, strict=True), dashes, marker=marker, color=colour, linewidth=2.5, markersize=8
        )
        x, y = points[-1]
        axes.annotate(label, (x, y), xytext=(-16, 6), textcoords="offset points", ha="right", fontsize=12)
        for number, (x, y) in enumerate(points):
            below = (9, -4) if number else (-6, -18)
            beside = (-7, 10) if name == "chosen" and number < 2 else (9, -4) if name == "chosen" else below
            axes.annotate(f"{y:.0f}", (x, y), xytext=beside, textcoords="offset points", fontsize=11)
    axes.set_xlim(0, 8600)
    axes.set_ylim(0, 100)
    axes.set_xlabel("tokens of prompt and output so far", fontsize=12)
    axes.set_ylabel("ms for the next token", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None})


if __name__ == "__main__":
    draw()
