"""Plots in a terminal and in files, of results made up here."""

import json
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import pytest

from scope_cli.machine.gauge import OnCard
from scope_cli.measure.profiling import pages, plots, terminal
from scope_cli.measure.profiling.report import result_table
from scope_cli.measure.profiling.result import (
    Peaks,
    as_json,
    from_dict,
)
from tests.helpers.results import MIB, made_up


def test_a_result_survives_json():
    one = made_up()
    (tree,) = json.loads(as_json([one]))["results"]
    assert from_dict(tree) == one
    assert (from_dict(tree).map.values()[1, 1] == [100, 100, 100, 0, 100]).all()


def on_a_card(process):
    peaks = Peaks(0, 11 * MIB, 9 * MIB, "", card=OnCard(300 * MIB, 420 * MIB, process))
    return replace(made_up(), peaks=peaks)


def test_a_card_shows_what_was_reserved_what_is_in_no_tensor_and_the_process():
    lines = result_table([on_a_card(900 * MIB), on_a_card(None)]).splitlines()
    for word, cells in (
        ("reserved", "420.00 MiB 420.00 MiB"),
        ("in no tensor", "120.00 MiB 120.00 MiB"),
        ("the process", "900.00 MiB not listed"),
    ):
        assert [" ".join(line.split()[-4:]) for line in lines if word in line] == [cells]
    assert "reserved" not in result_table([made_up()])
    (tree,) = json.loads(as_json([on_a_card(None)]))["results"]
    assert from_dict(tree) == on_a_card(None)


def test_errors_are_measured_against_planned_in_percent():
    one = replace(made_up(), peaks=Peaks(0, 11 * MIB, 9 * MIB, ""))
    assert one.errors()["prefill_peak"] == pytest.approx(10)
    assert one.errors()["decode_peak"] == one.errors()["kv_allocated"] == 0


def texts_of(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    for axes in figure.axes:
        found += [axes.get_title("left"), axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
    return found


def test_every_axis_has_a_label_and_the_end_of_memory_is_marked():
    figure = plots.draw([made_up(), made_up("full", evictions=0)], "tiny")
    texts = texts_of(figure)
    for text in ("memory ends here", "MiB", "tokens/s", "output tokens", "Where the time went", "layer"):
        assert text in texts
    assert sum("Memory map" in text for text in texts) == 1, "of the one that forgot something"


def test_memory_that_lasts_longer_than_the_run_is_said_in_words():
    texts = texts_of(plots.draw([made_up(runs_out=5000)], "tiny"))
    assert "a full cache fills 20.00 MiB after 5,000 output tokens,\nbeyond the model's context" in texts
    assert "memory ends here" not in texts


def test_lines_are_told_apart_without_colour():
    figure = plots.draw([made_up(f"p{'abcd'[i]}") for i in range(4)], "tiny")
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("p")]
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 4


@pytest.mark.parametrize("kind", pages.FORMATS)
def test_the_same_result_is_the_same_file(tmp_path, monkeypatch, kind):
    clock = datetime(2026, 1, 2, 3, 4, 5)
    monkeypatch.setattr(pages, "datetime", SimpleNamespace(now=lambda: clock))  # a page says when it was made
    for name in ("a", "b"):
        pages.Page.of_results([made_up()]).write(tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_clips_are_named_by_their_order():
    svg = '<clipPath id="pbab8df6ba5"/><clipPath id="p43f1da8644"/><path clip-path="url(#p43f1da8644)"/>'
    named = '<clipPath id="clip0"/><clipPath id="clip1"/><path clip-path="url(#clip1)"/>'
    assert pages.numbered_clips(svg) == named


def test_a_terminal_shows_the_same_in_characters():
    cache, speed, what = (part.plain for part in terminal.draw([made_up()], 70))
    assert "Keys and values held, MiB" in cache and "●" in cache and "·" in cache and "slide 128" in cache
    assert "Speed of the uncompiled step, tokens/s" in speed and "100" in speed
    rows = [line for line in what.splitlines() if "│" in line]
    assert rows[0].endswith("█") and len(rows[0]) < len(rows[1]), "what is not written yet is empty"
    assert "▒" in rows[-1], "half of the layers have forgotten position 7"
    assert all(len(line) <= 70 for line in what.splitlines()[1:])


def test_a_label_is_text_and_not_markup():
    assert "[bold]odd" in result_table([made_up("[bold]odd")])
    assert "&lt;b&gt;" in pages.Page.of_results([made_up("<b>")]).html("<svg></svg>")
