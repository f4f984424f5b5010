import json
from datetime import datetime

import pytest

from scope_cli.errors import ScopeError
from scope_cli.events import Failed
from scope_cli.sinks.record import RunRecord


def test_a_run_that_was_cut_off_leaves_a_record_that_says_running(events_of_a_run, tmp_path):
    sink = RunRecord(tmp_path / "book.txt")
    for event in events_of_a_run(["a", "b"])[:-1]:
        sink.receive(event)
    record = json.loads((tmp_path / "book.txt.run.json").read_text())
    assert (record["status"], record["finished_at"], record["results"]) == ("running", None, [])
    assert record["profile"] == {"decode": {"budget": 256}}
    assert datetime.fromisoformat(record["started_at"]).tzinfo


def test_a_finished_run_leaves_the_complete_record_and_no_other_file(events_of_a_run, tmp_path):
    sink = RunRecord(tmp_path / "book.txt")
    for event in events_of_a_run(["a", "b"], held_back="c"):
        sink.receive(event)
    sink.close()
    assert [file.name for file in tmp_path.iterdir()] == ["book.txt.run.json"]
    record = json.loads((tmp_path / "book.txt.run.json").read_text())
    [result] = record["results"]
    assert (record["status"], result["reason"]) == ("finished", "length")
    assert (record["prompt_tokens"], result["prompt_tokens"], result["output_tokens"]) == ([3210], 3210, 2)
    assert (result["reading"]["evictions"], result["audit"]["budget_held"]) == (17, True)
    assert record["started_at"] <= record["finished_at"]


@pytest.mark.parametrize(
    ("events", "status", "error"),
    [
        (slice(None), "interrupted", None),  # its reason says so
        (slice(-1), "interrupted", None),  # broken off, closed in good order
        (slice(-1), "failed", "memory ran out"),
    ],
)
def test_a_run_that_did_not_end_by_itself_never_says_finished(
    events_of_a_run, tmp_path, events, status, error
):
    sink = RunRecord(tmp_path / "book.txt", {"command": ["scope", "generate"]})
    for event in events_of_a_run(["a", "b"], reason="interrupted")[events]:
        sink.receive(event)
    if error:
        sink.receive(Failed(0, error))
    sink.close()
    record = json.loads((tmp_path / "book.txt.run.json").read_text())
    assert (record["status"], record["command"][0]) == (status, "scope")
    assert [one.get("error") for one in record["results"]] in ([], [None], [error])
    assert record["finished_at"]


def test_a_record_that_cannot_be_replaced_stays_whole(events_of_a_run, tmp_path, monkeypatch):
    sink = RunRecord(tmp_path / "book.txt")
    started, *_, finished = events_of_a_run(["a"])
    sink.receive(started)
    monkeypatch.setattr("pathlib.Path.replace", _disk_full)
    with pytest.raises(ScopeError, match="No space left") as full:
        sink.receive(finished)
    assert "make room" in full.value.hint
    assert json.loads((tmp_path / "book.txt.run.json").read_text())["status"] == "running"


def _disk_full(*args, **kwargs):
    raise OSError(28, "No space left on device")
