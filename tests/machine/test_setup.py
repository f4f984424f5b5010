"""A wish in, PyTorch's threads out."""

import os
import subprocess
import sys

import pytest
import torch

from scope_cli.machine.setup import as_the_user_has_it, set_threads, usable_cores, wait_briefly

START = """
import os, sys
from scope_cli import __main__, cli
cli.run = lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
__main__.run()
"""


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_number_is_taken():
    set_threads(3)
    assert torch.get_num_threads() == 3


def test_auto_leaves_what_the_environment_says(monkeypatch):
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_threads("auto")
    assert torch.get_num_threads() == 3


def test_auto_takes_the_usable_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(usable_cores() + 1)
    set_threads("auto")
    assert torch.get_num_threads() == usable_cores()


def test_a_containers_quota_is_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    quota = tmp_path / "cpu.max"
    for text, cores in (("250000 100000", 2), ("max 100000", 12), ("50000 100000", 1)):
        quota.write_text(text)
        assert usable_cores(quota) == cores
    assert usable_cores(tmp_path / "none") == 12


@pytest.mark.parametrize(
    ("user", "found"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
)
def test_openmp_is_told_to_wait_briefly_before_torch_is_there(user, found):
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP_WAIT"))}
    start = subprocess.run([sys.executable, "-c", START], env=bare | user, capture_output=True, text=True)
    assert start.stdout.split() == [found, "False"], start.stderr


@pytest.mark.parametrize(("before", "found"), [("", "2000"), ("import torch\n", "None")])
def test_the_python_interface_does_so_where_it_brings_torch(before, found):
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP_WAIT"))}
    code = before + "import os, scope_cli\nscope_cli.load\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    start = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert start.stdout.split() == [found], start.stderr


def test_a_process_that_is_not_ours_waits_as_it_likes(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "to be restored")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    before = dict(os.environ)
    wait_briefly()
    assert dict(os.environ) != before and as_the_user_has_it() == before
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert as_the_user_has_it()["GOMP_SPINCOUNT"] == "7"
