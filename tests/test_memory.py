"""Free bytes and peaks, on the CPU and against made-up control groups."""

import threading
import time

import numpy as np
import psutil
import torch

from scope_cli import memory

MIB = 2**20
CPU = torch.device("cpu")


def test_free_memory_of_a_cpu_is_at_most_what_the_machine_has_available():
    assert 0 < memory.free_bytes(CPU) <= psutil.virtual_memory().total


def test_a_control_group_tighter_than_the_machine_decides(monkeypatch):
    monkeypatch.setattr(memory, "_cgroup_free_bytes", lambda: iter([5 * MIB, 3 * MIB]))
    assert memory.free_bytes(CPU) == 3 * MIB


def write_group(folder, names, limit, usage, cache):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, usage, cache), strict=True):
        (folder / name).write_text(f"{text}\n")


def test_the_tightest_limit_above_us_counts_and_page_cache_is_free(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    names = ("memory.max", "memory.current", "memory.stat")
    write_group(tmp_path / "outer", names, 100 * MIB, 40 * MIB, f"anon 1\ninactive_file {10 * MIB}")
    write_group(tmp_path / "outer/inner", names, "max", 40 * MIB, "inactive_file 0")
    assert list(memory._cgroup_free_bytes(tmp_path, own)) == [70 * MIB]


def test_version_one_control_groups_are_read_too(tmp_path):
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    statistics = f"inactive_file 1\ntotal_inactive_file {MIB}"
    write_group(tmp_path / "memory/job", names, 9 * MIB, 4 * MIB, statistics)
    assert list(memory._cgroup_free_bytes(tmp_path, own)) == [6 * MIB]


def test_no_control_groups_mean_no_limit(tmp_path):
    assert list(memory._cgroup_free_bytes(tmp_path, tmp_path / "absent")) == []


def test_a_lap_sees_memory_that_is_gone_again_and_the_next_lap_does_not():
    with memory.PeakMeter(CPU) as meter:
        before = meter.lap()
        block = np.ones(128 * MIB, dtype=np.uint8)
        time.sleep(4 * memory.SAMPLE_S)
        del block
        peak = meter.lap()
        after = meter.lap()
    assert peak - before > 100 * MIB
    assert peak - after > 100 * MIB


def test_a_closed_meter_leaves_no_thread():
    with memory.PeakMeter(CPU):
        assert "peak-meter" in [thread.name for thread in threading.enumerate()]
    assert "peak-meter" not in [thread.name for thread in threading.enumerate()]
