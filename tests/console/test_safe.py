"""What comes from outside is read on a terminal, and does nothing there."""

import ast
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.console.safe import as_json, printable

TURNING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0x200E, 0x200F]  # the reading direction
HARMFUL = [
    code
    for code in range(0x110000)
    if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp", "Cs") or code in TURNING
]


def test_every_control_character_is_spelt_out():
    """C0, DEL and C1, line and paragraph separators, half characters, turns of the reading direction."""
    assert len(HARMFUL) == 32 + 1 + 32 + 2 + 2048 + 12
    for code in HARMFUL:
        shown = printable(f"a{chr(code)}b")
        assert shown[0] == "a" and shown[1] == "\\" and shown[-1] == "b" and shown.isprintable()


def test_names_keep_their_letters():
    for name in ("ёжик", "夜", "हिन्दी", "e\u0301", "می\u200cروم", "क्\u200dष", "👩\u200d🚀", "a\u00a0b"):
        assert printable(name) == name


def test_lines_stay_where_they_are_ours_and_not_in_a_name():
    assert printable("error:\n  \x1b[2J\r", lines=True) == "error:\n  \\x1b[2J\\r"
    assert printable("a\nerror: forged") == "a\\nerror: forged"


@given(st.recursive(st.none() | st.text(st.characters()), lambda inner: st.lists(inner, max_size=5)))
def test_json_reads_back_the_same_and_holds_nothing_raw(value):
    for indent in (None, 2):
        text = as_json(value, indent)
        assert json.loads(text) == value
        assert text.encode() and printable(text, lines=True) == text


def test_json_has_no_number_that_is_none():
    nan, inf = float("nan"), float("inf")
    value = {"a": [1.5, nan, (inf, -inf)], "b": {"c": nan, "d": "NaN"}}
    expected = {"a": [1.5, None, [None, None]], "b": {"c": None, "d": "NaN"}}
    assert json.loads(as_json(value), parse_constant=pytest.fail) == expected


def test_nothing_writes_json_in_which_nan_may_stand():
    package = Path(__file__).parents[2] / "scope_cli"
    for file in package.rglob("*.py"):
        if file.parent.name == "batch":  # what a ledger holds was read as JSON, or is an event
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                strict = any(key.arg == "allow_nan" for key in node.keywords)
                assert strict, f"{file.name}, line {node.lineno}: safe.as_json, or allow_nan=False"
