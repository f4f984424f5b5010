"""Peaks of the CPU's resident set, and what a card's allocator and nvidia-smi say of a run."""

import mmap
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scope_cli.machine import gauge
from tests.helpers.patience import until

MIB = 2**20
CPU = torch.device("cpu")


def test_a_lap_sees_memory_that_is_gone_again_and_the_next_lap_does_not(monkeypatch):
    """Told how much is in use: a real resident set also shrinks when the system takes pages of files back."""
    told = [5]
    monkeypatch.setattr(gauge, "_used_bytes", lambda device: lambda: told[-1])
    with gauge.PeakMeter(CPU) as meter:
        assert meter.lap() == 5
        told.append(9)
        until(lambda: meter._peak == 9, "a sample")
        told.append(5)
        assert [meter.lap(), meter.lap()] == [9, 5]


def test_what_is_in_use_are_the_pages_that_are_resident(monkeypatch):
    class Process:
        def memory_info(self):
            return SimpleNamespace(rss=7, vms=8)

    monkeypatch.setattr(gauge.psutil, "Process", Process)
    assert gauge._used_bytes(CPU)() == 7


def test_a_closed_meter_leaves_no_thread():
    with gauge.PeakMeter(CPU):
        assert "peak-meter" in [thread.name for thread in threading.enumerate()]
    assert "peak-meter" not in [thread.name for thread in threading.enumerate()]


def take_and_give_back(size):
    """From the system: what the heap gives may be resident already."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for at in range(0, size, mmap.PAGESIZE):
            block[at] = 1


@pytest.mark.skipif(not gauge.CLEAR_REFS.exists(), reason="only Linux keeps a mark")
def test_the_kernels_mark_sees_what_no_sample_would():
    meter = gauge.gauge_of(CPU)
    assert isinstance(meter, gauge.ProcessGauge)
    meter.reset()
    before = meter.peak()
    take_and_give_back(64 * MIB)
    assert meter.peak() - before > 60 * MIB
    meter.reset()
    assert meter.peak() - before < 10 * MIB
    meter.close()


@pytest.mark.skipif(not gauge.CLEAR_REFS.exists(), reason="only Linux keeps a mark")
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
            meter.peak()  # as the profile looks at every token

        if dropped:
            touch()
        meter = gauge.gauge_of(CPU)
        before = meter.now()
        meter.reset()
        if when == "before":
            change()
        take_and_give_back(32 * MIB)
        meter.peak()
        if when == "after":
            change()
        assert 30 * MIB < meter.peak() - before < 36 * MIB
        meter.reset()
        assert meter.peak() - before < 4 * MIB
        meter.close()


def test_without_a_mark_the_resident_set_is_sampled(monkeypatch, tmp_path):
    monkeypatch.setattr(gauge, "CLEAR_REFS", tmp_path / "no" / "such" / "file")
    meter = gauge.gauge_of(CPU)
    assert isinstance(meter, gauge.SampledGauge) and "50 ms" in meter.how
    meter.reset()
    block = np.ones(64 * MIB, dtype=np.uint8)
    first = meter.peak()
    del block
    assert meter.peak() == first, "the most since the reset"
    meter.close()


def test_what_the_kernel_calls_kb_are_1024_bytes(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tscope\nVmHWM:\t      7 kB\nRssAnon:\t      4 kB\nRssFile:\t      3 kB\n")
    monkeypatch.setattr(gauge, "STATUS", status)
    assert gauge._status() == {"VmHWM": 7 * 1024, "RssAnon": 4 * 1024, "RssFile": 3 * 1024}
    assert gauge.mapped_bytes() == 3 * 1024


class Allocator:
    """CUDA's, with one mark of each kind for everybody who asks."""

    def __init__(self, monkeypatch):
        self.allocated = self.reserved = self.most_allocated = self.most_reserved = 0
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: self.allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.most_allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: self.most_reserved)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: self.reset())

    def reset(self):
        self.most_allocated, self.most_reserved = self.allocated, self.reserved

    def take(self, size):
        self.allocated += size
        self.reserved = max(self.reserved, self.allocated)
        self.most_allocated = max(self.most_allocated, self.allocated)
        self.most_reserved = max(self.most_reserved, self.reserved)


def test_a_peak_on_a_card_is_seen_by_all_who_watch_it(monkeypatch):
    """A run asks for the peak of each phase, a profile meanwhile for that of the whole."""
    card, device = Allocator(monkeypatch), torch.device("cuda", 0)
    profile = gauge.gauge_of(device)
    card.take(100)
    profile.reset()
    with gauge.PeakMeter(device) as run:
        card.take(50)
        card.take(-50)
        assert run.lap() == 150
        card.take(7)
        assert [run.lap(), profile.peak()] == [107, 150]
        assert gauge.PeakMeter(torch.device("cuda", 1)).start().lap() == 107, "the other's allocator, played"
    card.take(-7)
    assert profile.on_card() == gauge.OnCard(150, 150, gauge.nvidia.process_bytes())
    profile.reset()
    assert profile.peak() == 100


@pytest.mark.parametrize(("listed", "process"), [(900 * MIB, 900 * MIB), (None, None)])
def test_a_card_tells_tensors_from_what_was_reserved_and_from_the_process(monkeypatch, listed, process):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 300 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 420 * MIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(gauge.nvidia, "process_bytes", lambda: listed)
    card = gauge.gauge_of(torch.device("cuda", 1)).on_card()
    assert card == gauge.OnCard(300 * MIB, 420 * MIB, process)
    assert card.fragmentation_bytes == 120 * MIB


def test_a_cpu_has_no_card():
    meter = gauge.gauge_of(CPU)
    assert meter.on_card() is None
    meter.close()
