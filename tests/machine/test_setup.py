"""A wish in, PyTorch's threads out."""

import pytest
import torch

from scope_cli.machine.setup import set_threads, usable_cores


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
