"""What is committed is true, whoever else writes, and whatever disk it is."""

import sqlite3
import threading

import psutil
import pytest

from scope_cli.batch.database import FORMAT
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.rows import Row
from scope_cli.errors import ScopeError, UsageError

PARTITION = type(psutil.disk_partitions(all=True)[0])


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


def fill(ledger, rows=3, group=0):
    with ledger.transaction():
        for number in range(rows):
            ledger.put(row(number, group_number=group, turn=rows - number))


def row(number, **more):
    return Row(number, f"id {number}", "there", f"{number}.txt", "hash", **more)


def mode_of(path):
    return sqlite3.connect(path / "scope.db").execute("PRAGMA journal_mode").fetchone()[0]


def test_a_row_comes_back_as_it_was_put(ledger):
    whole = row(
        4, state="failed", error="why", detail="trace", prompt_ids=b"1234", prompt_tokens=1, planned=9,
        sampling={"seed": 3}, meta=[None, "ё"], seed=2**63 - 1, group_number=1, turn=2, attempts=3,
        owner="me", profile_hash="p", started_at=1.5, finished_at=2.5,
        record={"results": [{"reason": "stop"}]},
    )  # fmt: skip
    with ledger.transaction():
        ledger.put(whole)
    assert ledger.row(4) == whole == ledger.rows(bulky=True)[0]
    assert whole.end == {"reason": "stop"} and row(1).end == {}


def test_rows_are_taken_by_turn_and_once(ledger):
    fill(ledger)
    taken = [ledger.take("me", 0, "profile") for _ in range(4)]
    assert [one and one.number for one in taken] == [2, 1, 0, None]
    assert ledger.end(1, "me", "done", {}) and ledger.take("me", 0, "profile") is None
    assert taken[0].state == "running" and taken[0].attempts == 1 and taken[0].profile_hash == "profile"


def test_rows_of_another_group_stay_where_they_are(ledger):
    fill(ledger, group=1)
    assert ledger.take("me", 0, "p") is None and ledger.waiting_in(1) == 3


def test_two_processes_never_take_the_same_row(tmp_path):
    fill(Ledger(tmp_path), rows=60)
    taken = {"a": [], "b": [], "c": []}

    def work(owner):
        own = Ledger(tmp_path)
        while (found := own.take(owner, 0, "p")) is not None:
            taken[owner].append(found.number)

    threads = [threading.Thread(target=work, args=(owner,)) for owner in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [number for some in taken.values() for number in some]
    assert sorted(numbers) == list(range(60))


def test_an_interrupted_row_waits_and_a_failed_one_does_not(ledger):
    fill(ledger)
    first, second, _ = (ledger.take("me", 0, "p").number for _ in range(3))
    assert ledger.end(first, "me", "failed", {}, "why") and ledger.give_back("me", "interrupted", second) == 1
    assert ledger.take("me", 0, "p").number == second
    assert ledger.counts() == {"waiting": 0, "running": 2, "done": 0, "failed": 1, "interrupted": 0}


def test_a_row_that_was_given_to_another_cannot_be_ended(ledger):
    fill(ledger, rows=1)
    ledger.take("me", 0, "p")
    ledger.recover(["you"])
    ledger.take("you", 0, "p")
    assert not ledger.end(0, "me", "done", {})
    assert ledger.end(0, "you", "done", {}) and ledger.row(0).attempts == 2


def test_rows_of_the_dead_wait_again_and_those_of_the_living_run_on(ledger):
    fill(ledger)
    for owner in ("dead", "alive", "dead"):
        ledger.enter(f"{owner}{ledger.counts()['running']}", 1, "here")
        ledger.take(owner, 0, "p")
    assert ledger.recover(["alive"]) == 2
    assert {one.owner for one in ledger.rows("running")} == {"alive"} and not ledger.processes()


def test_a_transaction_that_breaks_leaves_nothing(ledger):
    with pytest.raises(KeyboardInterrupt), ledger.transaction():
        ledger.put(row(1))
        raise KeyboardInterrupt
    assert ledger.rows() == []


def test_wal_on_a_disk_and_a_plain_journal_on_a_network(tmp_path, monkeypatch):
    """WAL needs memory that all machines share; a network file system has none."""
    for folder in ("disk", "nfs"):
        (tmp_path / folder).mkdir()
    mounts = [PARTITION("", "/", "ext4", ""), PARTITION("", str(tmp_path / "nfs"), "nfs4", "")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    assert Ledger(tmp_path / "disk").notes == [] and mode_of(tmp_path / "disk") == "wal"
    remote = Ledger(tmp_path / "nfs")
    assert "delete journal" in remote.notes[0] and mode_of(tmp_path / "nfs") == "delete"
    fill(remote)
    assert remote.take("me", 0, "p") is not None and remote.sound()


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "scope.db").write_text("not a database, but longer than a header of one hundred bytes" * 9)
    with pytest.raises(UsageError, match="file is not a database"):
        Ledger(tmp_path)


def test_a_ledger_of_another_format_is_refused(tmp_path):
    Ledger(tmp_path).close()
    sqlite3.connect(tmp_path / "scope.db").execute(f"PRAGMA user_version={FORMAT + 1}")
    with pytest.raises(UsageError, match=f"has format {FORMAT + 1}"):
        Ledger(tmp_path)


def test_a_ledger_that_cannot_grow_says_so(ledger, monkeypatch):
    """SQLite says "database or disk is full"; what was there stays."""
    fill(ledger)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(ScopeError, match="disk is full"), ledger.transaction():
        ledger.put(row(9, prompt_ids=b"x" * 100_000))
    assert len(ledger.rows()) == 3 and ledger.sound()


def test_a_disk_that_is_full_before_the_ledger_begins_is_no_damaged_ledger(tmp_path, monkeypatch):
    def full(self):
        self._db.execute("PRAGMA max_page_count=1")
        self._db.execute("CREATE TABLE one (a)")

    monkeypatch.setattr(Ledger, "_prepare", full)
    with pytest.raises(UsageError, match="disk is full") as told:
        Ledger(tmp_path)
    assert "make room" in told.value.hint


def test_tokens_left_are_planned_or_as_many_as_others_took(ledger):
    with ledger.transaction():
        for number, (state, planned) in enumerate([("done", 100), ("waiting", 100), ("running", 10)]):
            ledger.put(row(number, state=state, planned=planned))
    assert ledger.tokens_left(None) == 110 and ledger.tokens_left(40.0) == 50


def test_nothing_is_left_where_nothing_waits(ledger):
    assert ledger.tokens_left(None) == ledger.tokens_left(40.0) == 0
    with ledger.transaction():
        ledger.put(row(0, state="done", planned=100))
    assert ledger.tokens_left(None) == 0


def test_a_damaged_row_is_mended_and_the_others_stay_as_they_are(ledger):
    fill(ledger)
    ledger.take("me", 0, "p")
    before = ledger.rows()
    ledger._db.execute("UPDATE rows SET sampling = replace(sampling, '{', '[') WHERE number = 1")
    assert ledger.mend() == ["id 1"] and ledger.mend() == []
    after = ledger.rows()
    assert (after[0], after[2]) == (before[0], before[2])
    assert (after[1].state, after[1].content_hash, after[1].attempts) == ("waiting", "", 1)
