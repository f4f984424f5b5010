"""One file per prompt, and no two the same, on any disk."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.batch.outputs import OWN_FILES, OutputNames


def test_a_file_keeps_its_path():
    names = OutputNames()
    assert [names.for_file(path) for path in ("a/b.txt", "a/b.md", "b")] == ["a/b.txt", "a/b.md", "b"]


@pytest.mark.parametrize(
    ("paths", "outputs"),
    [
        (["a.txt", "A.TXT"], ["a.txt", "A-2.TXT"]),  # one file on some disks
        (["é.txt", "e\u0301.txt"], ["é.txt", "e\u0301-2.txt"]),
        (["a.txt", "a.txt.run.json"], ["a.txt", "a.txt.run-2.json"]),
        (["a.txt.part", "a.txt"], ["a.txt.part", "a-2.txt"]),
        (["scope.db", "results.jsonl"], ["scope-2.db", "results-2.jsonl"]),
    ],
)
def test_names_that_would_meet_are_told_apart(paths, outputs):
    names = OutputNames()
    assert [names.for_file(path) for path in paths] == outputs


def test_an_id_becomes_a_file_name():
    names = OutputNames()
    ids = ["chapter 1", "a/b", "a_b", "..", "x\ny", "ёжик"]
    assert [names.for_line(one) for one in ids] == [
        "chapter 1.txt", "a_b.txt", "a_b-2.txt", "_.txt", "x_y.txt", "ёжик.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row_id", "name"),
    [
        ("हिन्दी", "हिन्दी"),
        ("क्\u200dष", "क्\u200dष"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("می\u200cروم", "می\u200cروم"),
        ("e\u0301te\u0301", "été"),
        ("q\u0303", "q\u0303"),  # there is no such letter in one
        ("שָׁלוֹם", "שָׁלוֹם"),
        ("한글", "한글"),
        ("a\u0301/b\u202e\x1b", "á_b__"),
    ],
)
def test_letters_keep_their_marks(row_id, name):
    assert OutputNames().for_line(row_id) == f"{unicodedata.normalize('NFC', name)}.txt"


SAME = [
    "é",
    "e\u0301",
    "É",
    "E\u0301",
    "ß",
    "ss",
    "SS",
    "\u017f",
    "s",
    "K",
    "\u212a",
    "Å",
    "\u212b",
    "q\u0303\u0323",
]
SAME += ["q\u0323\u0303", "a\u200db", "ab", "ǰ", "J\u030c", "ΐ", "Ϊ\u0301", "/", "_"]
IDS = st.lists(st.sampled_from(SAME), min_size=1, max_size=2).map("".join)


@given(st.sets(IDS, max_size=12), st.booleans())
def test_names_that_any_disk_may_take_for_one_never_meet(ids, as_lines):
    """Whatever a disk does: composes or not, in either order, folds case or not."""
    names = OutputNames()
    ids = {one for one in ids if as_lines or "/" not in one}
    outputs = [names.for_line(one) if as_lines else names.for_file(one) for one in ids]
    for form in ("NFC", "NFD"):
        seen = {unicodedata.normalize(form, name) for name in outputs}
        folded = {unicodedata.normalize(form, name.casefold()) for name in seen}
        lowered = {unicodedata.normalize(form, name.lower()) for name in seen}
        assert len(seen) == len(folded) == len(lowered) == len(ids)


def test_names_given_before_stay_taken():
    assert OutputNames(["a.txt"]).for_file("a.txt") == "a-2.txt"


@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=20))
def test_whatever_ids_are_called_files_are_short_and_differ(ids):
    names = OutputNames()
    outputs = [names.for_line(one) for one in ids]
    folded = {name.casefold() + end for name in outputs for end in ("", ".part", ".run.json")}
    assert len(folded) == 3 * len(ids)
    assert not folded & set(OWN_FILES)
    for name in folded:
        assert len(name.encode()) <= 255 and "/" not in name and not name.startswith(".")
