"""One file per prompt, and no two the same, on any disk."""

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
