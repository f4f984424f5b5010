"""A job that is killed, interrupted, shared, or short of memory ends with the texts of one that was not."""

import os
import random
import signal
import time

import pytest
import torch

from scope_cli import cli
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.outputs import PART
from scope_cli.batch.states import how_far
from scope_cli.cache.cache import ScopeCache
from tests.helpers.forked import Forked
from tests.helpers.jobs import argv, check_it_is_whole, texts
from tests.helpers.patience import until


def done(out):
    return Ledger(out).counts()["done"]


@pytest.mark.parametrize("most", [6, pytest.param(20, marks=pytest.mark.long)])
def test_kills_at_random_moments_lose_nothing_and_change_nothing(prompts, tiny_folder, tmp_path, whole, most):
    """Killed from the first file on until it is through; no row that was done is ever run again."""
    out, draw, finished = tmp_path / "out", random.Random(most), {}
    kills = starts = gone_on = 0
    while kills < most:
        starts += 1
        assert starts < 3 * most, "the job ends before it is killed often enough"
        if out.exists() and done(out) == 12:  # begin another of the same
            check_it_is_whole(out, whole)
            gone_on += rows_gone_on_with(out)
            out, finished = tmp_path / f"out{starts}", {}
        process = Forked(tmp_path / "said", *argv(prompts, out, tiny_folder))
        wait_for_work(process, out)
        if kills % 2:  # at once, while the row has tokens to go
            wait_for_tokens(process, out, kills)
        else:  # meets prompts and first tokens
            time.sleep(draw.uniform(0, 0.3))
        if process.alive:
            kills += 1
        process.kill()
        rows = {row.id: row for row in Ledger(out).rows()} if (out / "scope.db").exists() else {}
        for name, before in finished.items():
            assert rows[name].state == "done" and rows[name].attempts == before, "a row was done twice"
        finished = {row.id: row.attempts for row in rows.values() if row.state == "done"}
    process = Forked(tmp_path / "said", *argv(prompts, out, tiny_folder))
    assert process.wait() == 1, process.stderr
    check_it_is_whole(out, whole)
    assert gone_on + rows_gone_on_with(out), "every half-written text was begun anew"


def rows_gone_on_with(out):
    return sum(row.record["goes_on_after"] > 0 for row in Ledger(out).rows("done"))


def wait_for_work(process, out):
    """Most of a start is imports and reading weights; kills shall meet rows."""
    while process.alive and not list(out.rglob(f"*{PART}")):
        time.sleep(0.005)


def wait_for_tokens(process, out, tokens):
    """Some row has a state with so many."""
    while process.alive and not any(how_far(out, number) >= tokens for number in range(13)):
        time.sleep(0.002)


def stopped(prompts, tiny_folder, tmp_path, signals, code, wait):
    """The folder of a job that was sent signals; on a busy machine one may be through before they come."""
    for number in range(5):
        out = tmp_path / f"out{number}"
        process = Forked(tmp_path / "said", *argv(prompts, out, tiny_folder))
        wait(process, out)
        for one in signals:
            process.send_signal(one)
            time.sleep(0.002)
        ended = process.wait()
        assert "Traceback" not in process.stderr
        if ended == 1 and done(out) == 12:
            continue
        assert ended == code
        return out
    raise AssertionError("every job was through before it was stopped")


def test_a_kill_while_the_job_is_planned_leaves_nothing_half_done(prompts, tiny_folder, tmp_path, whole):
    out = tmp_path / "out"
    for pause in (0.0, 0.02, 0.05, 0.1):
        process = Forked(tmp_path / "said", *argv(prompts, out, tiny_folder))
        while process.alive and not out.exists():
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
    assert Forked(tmp_path / "said", *argv(prompts, out, tiny_folder)).wait() == 1
    check_it_is_whole(out, whole)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_writes_the_parts_marks_the_rows_and_the_job_goes_on(
    prompts, tiny_folder, tmp_path, whole, number, code
):
    # of a row that has more to go: between two rows there is none to mark
    out = stopped(prompts, tiny_folder, tmp_path, [number], code, lambda *job: wait_for_tokens(*job, 3))
    ledger = Ledger(out)
    interrupted = ledger.rows("interrupted")
    assert interrupted and not ledger.rows("running") and not ledger.processes()
    for row in interrupted:
        part = (out / f"{row.output}{PART}").read_text()
        assert len(part.encode()) > 0 or row.end["output_tokens"] < 4  # less than a character
        assert (whole / row.output).read_text().startswith(part)
    for row in interrupted:
        assert how_far(out, row.number) == row.end["output_tokens"]
    assert Forked(tmp_path / "said", *argv(prompts, out, tiny_folder)).wait() == 1
    check_it_is_whole(out, whole)
    for row in interrupted:
        assert Ledger(out).row(row.number).record["goes_on_after"] == row.end["output_tokens"]


def test_a_second_ctrl_c_ends_at_once_and_the_ledger_is_sound(prompts, tiny_folder, tmp_path, whole):
    out = stopped(prompts, tiny_folder, tmp_path, [signal.SIGINT] * 2, 130, wait_for_work)
    assert not Ledger(out).rows("running")
    assert Forked(tmp_path / "said", *argv(prompts, out, tiny_folder)).wait() == 1
    check_it_is_whole(out, whole)


def test_two_processes_share_the_rows_and_a_third_without_join_is_told(prompts, tiny_folder, tmp_path, whole):
    out = tmp_path / "out"
    first = Forked(tmp_path / "first", *argv(prompts, out, tiny_folder))
    wait_for_work(first, out)
    first.send_signal(signal.SIGSTOP)  # else it may be through before the others have started
    third = Forked(tmp_path / "third", *argv(prompts, out, tiny_folder))
    assert third.wait() == 3 and "--join" in third.stderr
    second = Forked(tmp_path / "second", *argv(prompts, out, tiny_folder, "--join"))
    until(lambda: " begins" in second.stderr, "a row of the second")
    first.send_signal(signal.SIGCONT)
    assert {first.wait(), second.wait()} <= {0, 1}
    check_it_is_whole(out, whole)
    assert {row.attempts for row in Ledger(out).rows("done")} == {1}
    assert " begins" in first.stderr and " begins" in second.stderr


def test_rows_of_a_helper_that_died_are_run_by_the_one_that_lives(prompts, tiny_folder, tmp_path, whole):
    out = tmp_path / "out"
    first = Forked(tmp_path / "first", *argv(prompts, out, tiny_folder))
    wait_for_work(first, out)
    wait_for_tokens(first, out, 5)
    first.send_signal(signal.SIGSTOP)  # it holds its rows, and does not end before the other has begun
    second = Forked(tmp_path / "second", *argv(prompts, out, tiny_folder, "--join"))
    while second.alive and " begins" not in second.stderr:
        time.sleep(0.001)
    first.kill()
    assert second.wait() == 1, second.stderr
    check_it_is_whole(out, whole)


# Memory and errors that hit every lane


@pytest.fixture
def run(prompts, tiny_folder, tmp_path, capfd):
    def run(*more):
        capfd.readouterr()
        code = cli.main([str(part) for part in argv(prompts, tmp_path / "out", tiny_folder, *more)])
        return code, capfd.readouterr().err

    return run


def test_where_memory_ends_lanes_go_and_the_records_say_so(run, tmp_path, whole, monkeypatch):
    """A cache of four lanes can be made, and its second step finds no memory."""
    end_step, steps = ScopeCache.end_step, []

    def runs_out(self):
        if self.shape.lanes > 2:
            steps.append(1)
            if len(steps) % 30 == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        end_step(self)

    monkeypatch.setattr(ScopeCache, "end_step", runs_out)
    code, said = run()
    assert code == 1 and "memory ran out with 4 lanes: 2 from here on" in said
    ledger = Ledger(tmp_path / "out")
    assert ledger.counts()["done"] == 12
    records = [row.record for row in ledger.rows("done")]
    fewer = [record for record in records if record["fewer_lanes"]]
    assert fewer and all((record["lanes"] == 2) == bool(record["fewer_lanes"]) for record in records)
    assert texts(tmp_path / "out").keys() == texts(whole).keys()


def test_where_the_cache_itself_does_not_fit_lanes_go_too(run, tmp_path, monkeypatch):
    make = ScopeCache.__init__

    def too_large(self, geometry, shape, *args, **more):
        if shape.lanes > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        make(self, geometry, shape, *args, **more)

    monkeypatch.setattr(ScopeCache, "__init__", too_large)
    code, said = run("--limit", 2)
    assert code == 1 and "4 lanes: 2 from here on" in said and "2 lanes: 1 from here on" in said
    assert Ledger(tmp_path / "out").counts()["done"] == 2


def test_a_row_that_finds_no_memory_alone_fails_alone(run, tmp_path, monkeypatch):
    from scope_cli.engine import run as generate

    read = generate.Run.read

    def runs_out(self, work, number, row, interrupted):
        if bytes(work.prompt_ids[:2]) == b"7 ":
            raise torch.OutOfMemoryError("out of memory")
        return read(self, work, number, row, interrupted)

    monkeypatch.setattr(generate.Run, "read", runs_out)
    code, said = run()
    assert code == 1 and "07.txt: failed: out of memory with a single lane" in said
    assert Ledger(tmp_path / "out").counts()["done"] == 11


def test_an_error_that_hits_every_lane_is_found_by_running_them_one_by_one(run, tmp_path, whole, monkeypatch):
    """The model itself breaks whenever one prompt has written nine tokens; nobody says which it was."""
    from scope_cli.engine import decode

    step_on = decode.step_on

    def breaks(step, cache, lanes, ids):
        if any(lane.written == 9 and bytes(lane.prompt_ids[0, :3].tolist()) == b"10 " for lane in lanes):
            raise RuntimeError("a kernel that nobody trusted")
        step_on(step, cache, lanes, ids)

    monkeypatch.setattr(decode, "step_on", breaks)
    code, said = run()
    assert code == 1 and "that were running one by one" in said
    assert "10.txt: failed: RuntimeError: a kernel that nobody trusted" in said
    expected = texts(whole)
    del expected["10.txt"]
    assert texts(tmp_path / "out") == expected


def test_less_memory_at_the_second_start_means_fewer_lanes(run, tmp_path, monkeypatch):
    from scope_cli.batch.fit import Memory

    run("--limit", 1)
    monkeypatch.setattr(Memory, "lanes_that_fit", lambda self, group: 1)
    code, said = run()
    assert code == 1 and "1 of 4 lanes fit the memory that is free now" in said
    ledger = Ledger(tmp_path / "out")
    assert ledger.counts()["done"] == 12
    assert sum(bool(row.record["fewer_lanes"]) for row in ledger.rows("done")) == 11


@pytest.mark.long
@pytest.mark.real_model
def test_two_kills_of_the_embedded_model_change_nothing(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for number, subject in enumerate(("a lighthouse", "a railway", "bread", "a river")):
        (folder / f"{number}.txt").write_text(f"Write a short text about {subject}.")

    def start(out):
        return Forked(
            tmp_path / "said", "batch", folder, "-o", out, "--offline", "--max-new-tokens", 120,
            "--lanes", 2, "--budget", 48, "--recent", 16,
        )  # fmt: skip

    assert start(tmp_path / "whole").wait() == 0
    out = tmp_path / "out"
    for more in (20, 60):
        process = start(out)
        while process.alive and sum(part.stat().st_size for part in out.rglob("*.part")) < 4 * more:
            time.sleep(0.05)
        process.kill()
    assert start(out).wait() == 0
    assert texts(out) == texts(tmp_path / "whole") and len(texts(out)) == 4
    assert os.listdir(out / ".scope") == ["start.lock"]  # noqa: PTH208
