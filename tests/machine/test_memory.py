"""Free bytes and peaks, on the CPU and against made-up control groups."""

import mmap
import platform
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from scope_cli.errors import ModelError
from scope_cli.machine import memory
from scope_cli.units import parse_bytes
from tests.helpers.patience import until

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


def test_a_lap_sees_memory_that_is_gone_again_and_the_next_lap_does_not():
    with memory.PeakMeter(CPU) as meter:
        before = meter.lap()
        block = np.ones(128 * MIB, dtype=np.uint8)
        until(lambda: meter._peak - before > 100 * MIB, "a sample")
        del block
        peak = meter.lap()
        after = meter.lap()
    assert peak - before > 100 * MIB
    assert peak - after > 100 * MIB


def test_a_closed_meter_leaves_no_thread():
    with memory.PeakMeter(CPU):
        assert "peak-meter" in [thread.name for thread in threading.enumerate()]
    assert "peak-meter" not in [thread.name for thread in threading.enumerate()]


def take_and_give_back(size):
    """From the system: what the heap gives may be resident already."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for at in range(0, size, mmap.PAGESIZE):
            block[at] = 1


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="only Linux keeps a mark")
def test_the_kernels_mark_sees_what_no_sample_would():
    gauge = memory.gauge(CPU)
    assert isinstance(gauge, memory.ProcessGauge)
    gauge.reset()
    before = gauge.peak()
    take_and_give_back(64 * MIB)
    assert gauge.peak() - before > 60 * MIB
    gauge.reset()
    assert gauge.peak() - before < 10 * MIB
    gauge.close()


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="only Linux keeps a mark")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("dropped", [True, False], ids=["dropped", "read again"])
def test_pages_of_files_that_come_and_go_are_no_part_of_a_peak(tmp_path, dropped, when):
    """On a busy machine the system drops pages of libraries and weights, and reads them again."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * MIB))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:

        def touch():
            return sum(mapped[at] for at in range(0, 64 * MIB, mmap.PAGESIZE))

        def change():
            mapped.madvise(mmap.MADV_DONTNEED) if dropped else touch()
            gauge.peak()  # as the profile looks at every token

        if dropped:
            touch()
        gauge = memory.gauge(CPU)
        before = gauge.now()
        gauge.reset()
        if when == "before":
            change()
        take_and_give_back(32 * MIB)
        gauge.peak()
        if when == "after":
            change()
        assert 30 * MIB < gauge.peak() - before < 36 * MIB
        gauge.reset()
        assert gauge.peak() - before < 4 * MIB
        gauge.close()


def test_without_a_mark_the_resident_set_is_sampled(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "no" / "such" / "file")
    gauge = memory.gauge(CPU)
    assert isinstance(gauge, memory.SampledGauge) and "50 ms" in gauge.how
    gauge.reset()
    block = np.ones(64 * MIB, dtype=np.uint8)
    first = gauge.peak()
    del block
    assert gauge.peak() == first, "the most since the reset"
    gauge.close()


def test_holes_of_the_heap_are_taken_once():
    """In a process of its own: what is taken is taken for good."""
    code = (
        "from scope_cli.machine import memory\n"
        "memory.return_freed_memory()\n"
        "blocks = [bytearray(20_000) for _ in range(400)]\n"
        "del blocks[::2]\n"
        "first, second = memory.fill_holes(), memory.fill_holes()\n"
        "print(first, second)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, second = map(int, said.split())
    if platform.libc_ver()[0] == "glibc":
        assert first > 2_000_000, "200 holes of 20,000 bytes, by powers of two"
    assert second < 100_000


class Heap:
    """In glibc's place: malloc takes a hole, maps a large block, or cuts from the top, which then grows."""

    def __init__(self, holes, top):
        self.holes, self.top, self.arena, self.mapped = list(holes), top, 2**30, 0
        self.kept = []  # the blocks that were not freed
        self.asked = 0
        self.mallinfo2 = lambda: SimpleNamespace(hblks=self.mapped, keepcost=self.top, arena=self.arena)
        self.malloc = lambda size: self._malloc(size)  # functions, which can be told their types
        self.free = lambda block: self.kept.remove(block)

    def _malloc(self, size):
        self.asked += 1
        assert self.asked < 500, "it never ends"
        block = (self.asked, size)
        self.kept.append(block)
        for number, hole in enumerate(self.holes):
            if hole >= size:
                self.holes[number] -= size
                return block
        if size >= memory.MMAP_FROM:
            self.mapped += 1
        elif size <= self.top:
            self.top -= size
        else:
            self.arena += 2**17
        return block


def test_holes_are_told_from_what_is_mapped_cut_from_the_top_or_grown(monkeypatch):
    holes = [3 * 2**20, 5 * 2**14, 2**12, 2**11 + 100, 2**10]
    heap = Heap(holes, top=20_000)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _name: heap)
    assert memory.fill_holes() == sum(holes[:4]) - 100
    assert sum(size for _, size in heap.kept) == sum(holes[:4]) - 100, "and everything else is given back"


def test_where_no_heap_can_be_asked_no_hole_is_taken(monkeypatch):
    def refuses(_name):
        raise OSError

    for library in (refuses, lambda _name: SimpleNamespace()):
        monkeypatch.setattr(memory.ctypes, "CDLL", library)
        assert memory.fill_holes() == 0


def test_what_the_kernel_calls_kb_are_1024_bytes(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tscope\nVmHWM:\t      7 kB\nRssAnon:\t      4 kB\nRssFile:\t      3 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    assert memory._status() == {"VmHWM": 7 * 1024, "RssAnon": 4 * 1024, "RssFile": 3 * 1024}
    assert memory.mapped_bytes() == 3 * 1024


@pytest.mark.parametrize(
    ("said", "expected"), [("81559\n", [81559 * MIB]), ("10\n20\n", [10 * MIB, 20 * MIB]), ("N/A\n", [])]
)
def test_nvidia_smi_is_asked_for_free_memory(monkeypatch, said, expected):
    def answer(*_, timeout, **__):
        assert timeout > 0, "no time to answer"
        return subprocess.CompletedProcess([], 0, stdout=said)

    monkeypatch.setattr(subprocess, "run", answer)
    assert memory.nvidia_free_bytes() == expected


def test_no_nvidia_smi_means_no_gpu(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert memory.nvidia_free_bytes() == []
    with pytest.raises(ModelError, match="--device cuda:0"):
        memory.free_without_torch("cuda:0")


@pytest.mark.parametrize(
    ("text", "count"),
    [("24GiB", 24 * 2**30), ("24G", 24 * 2**30), ("24 GB", 24 * 10**9), ("1.5m", 3 * 2**19), ("512", 512),
     ("1e9", 10**9), ("700MiB", 700 * MIB), ("24iB", None), ("lots", None), ("-3G", None), ("", None)],
)  # fmt: skip
def test_sizes_as_people_write_them(text, count):
    assert parse_bytes(text) == count
