"""Pictures of evaluations: an axis that begins at 0, a key that covers nothing, colours that stay."""

import matplotlib.pyplot as plt
import pytest

from scope_cli.measure.evaluate import plots
from scope_cli.measure.evaluate.compare import Line
from scope_cli.measure.palette import styles

NAMES = [
    "full", "slide", "adaptive", "discontinuous", "random", "recency", "streamingllm", "tova",
    "snapkv-decode", "slide budget=512",
]  # fmt: skip


def fidelity_rows():
    rows = {}
    for number, name in enumerate(NAMES):
        top1 = [0.9 - 0.02 * number - 0.01 * block for block in range(20)]
        rows[name] = [{"blocks": {"top1": top1}, "block_tokens": 32}]
    return rows


def against():
    return [
        Line(name, "kl", 0.1 + number / 10, None, None, None, None, None, None, 1e6 * (number + 1), 2e6, 0.5)
        for number, name in enumerate(NAMES)
    ]


DRAWN = {
    "agreement": lambda path: plots.agreement(fidelity_rows(), path),
    "against bytes": lambda path: plots.against_bytes(against(), "fidelity", "kl", path),
    "by index": lambda path: plots.accuracy_by_index({n: [(1, 0.5, 3), (2, 0.4, 3)] for n in NAMES}, path),
}


@pytest.fixture
def kept(monkeypatch):
    """Figures stay open, so that a test can look at them."""
    figures = []

    def keep(figure, path):
        figures.append(figure)
        figure.savefig(path)

    monkeypatch.setattr(plots, "save", keep)
    yield figures
    plt.close("all")


@pytest.mark.parametrize("kind", DRAWN)
def test_the_axis_begins_at_0_and_the_key_covers_nothing(kept, tmp_path, kind):
    DRAWN[kind](tmp_path / "p.png")
    (figure,) = kept
    (axes,) = figure.axes
    assert axes.get_ylim()[0] <= 0 <= axes.get_ylim()[1]
    (key,) = figure.legends
    assert axes.get_legend() is None
    assert not key.get_window_extent().overlaps(axes.get_window_extent())
    assert key.get_window_extent().x1 <= figure.bbox.x1 and key.get_window_extent().y0 >= 0


def test_every_line_has_the_colour_of_its_policy_and_no_other_has_it(kept, tmp_path):
    plots.agreement(fidelity_rows(), tmp_path / "p.png")
    lines = {line.get_label(): line.get_color() for line in kept[0].axes[0].lines}
    assert len(set(lines.values())) == len(NAMES)
    for name in NAMES[:-1]:
        assert lines[name] == styles([name])[name].colour
