"""Tables that fit: nothing is wider than the terminal, nothing is lost, and a pipe gets whole lines."""

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from scope_cli.console import tables
from scope_cli.console.tables import Table

WORDS = st.lists(
    st.sampled_from(["slide", "budget=256", "0.0174", "(0.0151", "to", "0.0199)", "*", "1.34", "MiB", "表"]),
    min_size=1, max_size=7,
).map(" ".join)  # fmt: skip


def words(text):
    return sorted(re.findall(r"\S+", text))


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4), st.sampled_from([40, 80, 140]))
def test_a_table_fits_its_terminal_and_says_everything(rows, width):
    drawn = tables.laid_out(Table(["profile", "KL to full (nats)", "held"], rows), width)
    assert max(map(cell_len, drawn.splitlines())) <= width
    said = words(drawn)
    for row in rows:
        for cell in row:
            assert cell == "-" or all(said.count(word) for word in words(cell))


@given(
    st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=4), st.sampled_from([40, 80, 140])
)
def test_columns_fit_and_say_everything(rows, width):
    heads = ["slide 128", "default adaptive 128", "full"]
    labelled = [(label[:12].strip(), cells) for label, *cells in rows]
    drawn = tables.columns(heads, labelled, width)
    assert max(map(cell_len, drawn.splitlines())) <= width
    for _, cells in labelled:
        for cell in cells:
            assert all(words(drawn).count(word) for word in words(cell))


def test_a_number_stays_with_its_unit_and_a_bracket_with_its_content():
    assert tables.folded("66.89 MiB (65.45 MiB) +2.2%", 18) == ["66.89 MiB", "(65.45 MiB) +2.2%"]
    assert tables.folded("8.1 tokens/s, 7.0 tokens/s", 14) == ["8.1 tokens/s,", "7.0 tokens/s"]
    assert tables.folded("", 10) == [""]


def test_an_interval_goes_below_its_mean_before_rows_become_blocks():
    table = Table(["profile", "KL"], [["slide", "0.017 (0.015 to 0.019) *"], ["full", "0.000"]])
    assert tables.laid_out(table, 80).splitlines()[1] == "slide    0.017 (0.015 to 0.019) *"
    assert tables.laid_out(table, 28).splitlines()[1:3] == [
        "slide                 0.017", "         (0.015 to 0.019) *"
    ]  # fmt: skip
    assert tables.laid_out(table, 24).splitlines()[0] == "slide"


def test_a_pipe_gets_markdown_or_whole_lines():
    table = Table(["name", "what"], [["a|b", "long " * 60]])
    assert tables.as_markdown(table).splitlines()[2].startswith("| a\\|b | long ")
    assert tables.as_lines(table) == "name\twhat\na|b\t" + "long " * 60
    assert tables.as_markdown(Table(["name"], [])) == "| name |\n| --- |"


@pytest.mark.parametrize("argv", [["scorers"], ["prefills"], ["profiles", "list"]], ids=" ".join)
def test_a_piped_list_is_one_line_each_without_padding(scope, argv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = scope(*argv).stdout.splitlines()
    assert all("\t" in line and line == line.rstrip() and "  " not in line for line in lines if line)
    assert max(map(len, lines)) > 80


@pytest.mark.parametrize("argv", [["scorers"], ["prefills"], ["profiles", "list"]], ids=" ".join)
@pytest.mark.parametrize("width", [40, 80, 140])
def test_a_list_fits_its_terminal(scope, argv, width, monkeypatch):
    monkeypatch.setattr(tables, "reader_width", lambda file: width)
    piped = scope(*argv[:1], *argv[1:]).stdout
    assert max(map(cell_len, piped.splitlines())) <= width


def test_a_sentence_is_folded_between_words_for_a_terminal_alone(monkeypatch):
    sentence = "  slide budget=16: KL 1.6881, same top token 0.345 (about 0.5 s left)\nand another line"
    assert tables.fitted(sentence, sys.stderr) == sentence
    monkeypatch.setattr(tables, "reader_width", lambda file: 40)
    assert tables.fitted(sentence, sys.stderr).splitlines() == [
        "  slide budget=16: KL 1.6881, same top", "  token 0.345 (about 0.5 s left)", "and another line"
    ]  # fmt: skip


def test_a_last_column_of_sentences_is_folded_beside_its_name():
    sentence = "one word after the other, " * 4
    table = Table(
        ["name", "kind", "what for"],
        [["slide", "shipped", sentence], ["tova", "ours", "short"]],
        of_text=True,
    )
    lines = tables.laid_out(table, 70).splitlines()
    assert lines[1].startswith("slide  shipped  one word after") and lines[2].startswith(" " * 16 + "one")
    assert lines[-1] == "tova   ours     short"
    assert max(map(len, lines)) <= 70


def test_a_word_longer_than_a_line_is_cut():
    path = "/a/very/long/path" * 20
    lines = tables.laid_out(
        Table(["", "tiny"], [["path", path], ["layers", "30"]], of_text=True), 80
    ).splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(line.replace("path  ", "", 1).strip() for line in lines[1:-1]).replace(" ", "") == path
