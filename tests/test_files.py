"""A file is whole or the old one, whoever else writes beside it."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from scope_cli.files import replace_file, replacing, sweep

WRITES = 300


def write_on(path: Path, own: str) -> None:
    """As in two containers on one folder: every process is number 1."""
    os.getpid = lambda: 1
    for number in range(WRITES):
        replace_file(path, json.dumps([own] * 500 + [number]))
        content = json.loads(path.read_text())
        assert own in content


def test_two_processes_of_one_number_never_write_into_each_others_file(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=write_on, args=(tmp_path / name, name)) for name in ("a", "b")]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_whatever_goes_wrong_the_old_file_stays_and_nothing_else(tmp_path, error):
    replace_file(tmp_path / "a", "old")
    with pytest.raises(error), replacing(tmp_path / "a") as file:
        file.write("new")
        raise error
    with pytest.raises(UnicodeEncodeError):
        replace_file(tmp_path / "a", "\ud800")
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_new_file_has_the_rights_that_any_new_file_has(tmp_path):
    (tmp_path / "usual").write_text("")
    replace_file(tmp_path / "a", "text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_a_killed_process_left_is_swept_away_and_nothing_else(tmp_path):
    def die():
        with replacing(tmp_path / "a") as file:
            file.write("half")
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    for name in (".new", "a.new", ".1.new"):
        (tmp_path / name).write_text("not ours")
    assert len(list(tmp_path.iterdir())) == 4
    sweep(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".1.new", ".new", "a.new"]
