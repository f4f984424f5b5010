"""What comes from outside is read on a terminal, and does nothing there."""

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from scope_cli.safe import as_json, printable

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
