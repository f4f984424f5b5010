"""The same rows on a Ray cluster of two workers: the same texts, also when a worker is killed."""

import json
import os
import re
import signal
import threading
import time

import pytest

from scope_cli import cli
from scope_cli.batch.ledger import Ledger
from tests.helpers.jobs import argv, check_it_is_whole, texts

pytest.importorskip("ray", reason="Ray is an extra: pip install 'scope-cli[ray]'")


@pytest.fixture
def run(prompts, tiny_folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*more):
        capfd.readouterr()
        line = argv(prompts, tmp_path / "out", tiny_folder, "--engine", "ray", "--workers", 2, *more)
        code = cli.main([str(part) for part in line])
        return code, capfd.readouterr().err

    return run


@pytest.mark.long  # it starts a cluster and three processes that import torch: 20 s alone, 100 beside others
def test_a_killed_workers_rows_are_run_by_others_and_every_text_is_that_of_one_machine(
    run, tmp_path, whole, monkeypatch
):  # fmt: skip
    import ray

    from scope_cli.batch.on_ray import RayEngine

    pids, killed, hire, give = {}, [], RayEngine._hire, RayEngine._give

    def note(self):
        hand = hire(self)
        pids[hand.name] = hand.actor.describe.remote()
        return hand

    def kill_the_first_that_is_given_rows(self, hand, desk, stopping):
        give(self, hand, desk, stopping)
        if hand.holds and not killed:
            killed.append(hand.name)
            os.kill(ray.get(pids[hand.name])["pid"], signal.SIGKILL)

    monkeypatch.setattr(RayEngine, "_hire", note)
    monkeypatch.setattr(RayEngine, "_give", kill_the_first_that_is_given_rows)
    code, said = run()
    assert code == 1 and re.search(f"{killed[0]} died; [0-9]+ prompts? waits? again", said), said
    assert len(pids) == 3
    check_it_is_whole(tmp_path / "out", whole)
    assert {row.attempts for row in Ledger(tmp_path / "out").rows("done")} == {1, 2}


@pytest.mark.long
def test_ctrl_c_reaches_the_workers_and_the_job_goes_on_here(run, tmp_path, whole, prompts, tiny_folder):
    def interrupt():
        while not list((tmp_path / "out").rglob("*.part")):
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    code, said = run()
    assert code == 130, said
    ledger = Ledger(tmp_path / "out")
    assert ledger.rows("interrupted") and not ledger.rows("running")
    line = argv(prompts, tmp_path / "out", tiny_folder, "--quiet")
    assert cli.main([str(part) for part in line]) == 1
    check_it_is_whole(tmp_path / "out", whole)
    assert json.loads((tmp_path / "out" / "results.jsonl").read_text().splitlines()[0])["state"] == "done"
    assert texts(tmp_path / "out") == texts(whole)


def test_a_cluster_that_is_not_there_is_told(run):
    code, said = run("--ray-address", "127.0.0.1:1")
    assert code == 2 and said.startswith("error: no Ray cluster at 127.0.0.1:1")
