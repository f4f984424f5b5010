"""Free bytes, on the CPU and against made-up control groups."""

import psutil
import pytest
import torch

from scope_cli.errors import ModelError
from scope_cli.machine import memory
from scope_cli.units import parse_bytes

MIB = 2**20
CPU = torch.device("cpu")


def test_free_memory_of_a_cpu_is_at_most_what_the_machine_has_available():
    assert 0 < memory.free_bytes(CPU) <= psutil.virtual_memory().total


def test_a_control_group_tighter_than_the_machine_decides(monkeypatch):
    monkeypatch.setattr(memory, "cgroup_free_bytes", lambda: iter([5 * MIB, 3 * MIB]))
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
    assert list(memory.cgroup_free_bytes(tmp_path, own)) == [70 * MIB]


def test_version_one_control_groups_are_read_too(tmp_path):
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    statistics = f"inactive_file 1\ntotal_inactive_file {MIB}"
    write_group(tmp_path / "memory/job", names, 9 * MIB, 4 * MIB, statistics)
    assert list(memory.cgroup_free_bytes(tmp_path, own)) == [6 * MIB]


def test_no_control_groups_mean_no_limit(tmp_path):
    assert list(memory.cgroup_free_bytes(tmp_path, tmp_path / "absent")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [("24GiB", 24 * 2**30), ("24G", 24 * 2**30), ("24 GB", 24 * 10**9), ("1.5m", 3 * 2**19), ("512", 512),
     ("1e9", 10**9), ("700MiB", 700 * MIB), ("24iB", None), ("lots", None), ("-3G", None), ("", None)],
)  # fmt: skip
def test_sizes_as_people_write_them(text, count):
    assert parse_bytes(text) == count


def test_without_nvidia_smi_a_cards_free_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(memory.nvidia, "free_bytes", list)
    with pytest.raises(ModelError, match="--device cuda:0"):
        memory.free_without_torch("cuda:0")
