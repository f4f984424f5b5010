"""How much memory a run takes at its peak. A CPU counts the process's own pages, a GPU its own allocator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

import psutil

from scope_cli.machine import nvidia

if TYPE_CHECKING:
    import torch

SAMPLE_S = 0.05  # between two looks at the resident set
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")  # 5 resets the high-water mark


class CardPeak:
    """The most that PyTorch's allocator held on a CUDA card since the last lap: for one who asks.

    The allocator keeps one mark, and who resets it takes it from everybody else. So nobody resets it but
    here, and all others are told first.
    """

    _all: ClassVar[WeakSet[CardPeak]] = WeakSet()

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.allocated = self.reserved = 0  # bytes, in tensors; and taken from the driver for them
        self._all.add(self)
        self.lap()

    def look(self) -> None:
        """Tell everyone who watches this card, and begin a new mark."""
        import torch

        allocated = torch.cuda.max_memory_allocated(self.device)
        reserved = torch.cuda.max_memory_reserved(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        for one in self._all:
            if one.device == self.device:
                one.allocated = max(one.allocated, allocated)
                one.reserved = max(one.reserved, reserved)

    def lap(self) -> int:
        """Peak bytes in tensors since the last lap; the next one starts now."""
        self.look()
        peak, self.allocated, self.reserved = self.allocated, 0, 0
        return peak


class PeakMeter:
    """The most bytes in use between two laps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._peak = 0
        self._lock = Lock()
        self._closed = Event()
        self._sampler: Thread | None = None
        self._card: CardPeak | None = None

    def __enter__(self) -> PeakMeter:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> PeakMeter:
        if self.device.type == "cuda":
            self._card = CardPeak(self.device)
        else:
            self._used = _used_bytes(self.device)
            self._sampler = Thread(target=self._sample, name="peak-meter", daemon=True)
            self._look()
            self._sampler.start()
        return self

    def lap(self) -> int:
        """Peak bytes since the last lap; the next one starts now."""
        if self._card is not None:
            return self._card.lap()
        self._look()
        with self._lock:
            peak, self._peak = self._peak, 0
        self._look()
        return peak

    def close(self) -> None:
        self._closed.set()
        if self._sampler:
            self._sampler.join()

    def _sample(self) -> None:
        while not self._closed.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        used = self._used()
        with self._lock:
            self._peak = max(self._peak, used)


def _used_bytes(device: torch.device) -> Callable[[], int]:
    """Where to look: the resident set, or what Metal has handed out."""
    if device.type == "mps":
        import torch

        return torch.mps.driver_allocated_memory
    process = psutil.Process()
    return lambda: process.memory_info().rss


class Gauge:
    """How much is in use, and the most since the last reset: a peak that no sample can miss."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.how = f"PyTorch's allocator on {device.type}"
        self._card = CardPeak(device) if device.type == "cuda" else None

    def now(self) -> int:
        import torch

        return torch.cuda.memory_allocated(self.device)

    def reset(self) -> None:
        assert self._card is not None
        self._card.lap()

    def peak(self) -> int:
        assert self._card is not None
        self._card.look()
        return self._card.allocated

    def on_card(self) -> OnCard | None:
        """Since the last reset; None on anything but CUDA."""
        if self._card is None:
            return None
        allocated = self.peak()
        return OnCard(allocated, self._card.reserved, nvidia.process_bytes())

    def close(self) -> None:
        """Nobody will ask again."""


@dataclass(frozen=True)
class OnCard:
    """What a run took of a CUDA card beyond the tensors that it held, in bytes."""

    allocated_bytes: int  # tensors, at their most: what a plan counts, with the weights
    reserved_bytes: int  # what PyTorch's allocator had taken from the driver for them, at its most
    process_bytes: int | None  # as nvidia-smi shows it, with the driver's context; None: not listed

    @property
    def fragmentation_bytes(self) -> int:
        """Reserved, and at the peak of no use."""
        return self.reserved_bytes - self.allocated_bytes


class ProcessGauge(Gauge):
    """The process's own (anonymous) memory, from a mark that Linux keeps and a process may reset for itself.

    The mark is that of the whole resident set. Pages of files (libraries, weights) are in it as well, and
    these come and go with whatever else the machine does. So they are taken off, as they were at the
    beginning and the end of a stretch; a stretch ends with every question, and 20 times a second.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.how = "the resident set's high-water mark, kept by the kernel, without pages of files"
        self._lock, self._closed = Lock(), Event()
        self._most, self._files = 0, mapped_bytes()
        Thread(target=self._sample, name="gauge", daemon=True).start()

    def now(self) -> int:
        return _status()["RssAnon"]

    def reset(self) -> None:
        with self._lock:
            self._end_stretch()
            self._most = 0

    def peak(self) -> int:
        with self._lock:
            self._end_stretch()
            return self._most

    def close(self) -> None:
        self._closed.set()

    def _sample(self) -> None:
        while not self._closed.wait(SAMPLE_S):
            self.peak()

    def _end_stretch(self) -> None:
        """More pages of files at its beginning or its end: rather too many taken off than called our own."""
        fields = _status()
        CLEAR_REFS.write_text("5")
        files = fields.get("RssFile", 0) + fields.get("RssShmem", 0)
        self._most = max(self._most, fields["RssAnon"], fields["VmHWM"] - max(files, self._files))
        self._files = files


class SampledGauge(Gauge):
    """Where the system keeps no mark: the resident set, or what Metal handed out, 20 times a second."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.how = f"sampled every {1000 * SAMPLE_S:.0f} ms"
        self._most = 0
        self._meter = PeakMeter(device).start()
        self._used = _used_bytes(device)

    def now(self) -> int:
        return self._used()

    def reset(self) -> None:
        self._meter.lap()
        self._most = 0

    def peak(self) -> int:
        self._most = max(self._most, self._meter.lap())
        return self._most

    def close(self) -> None:
        self._meter.close()


def gauge_of(device: torch.device) -> Gauge:
    """The best there is for a device."""
    if device.type == "cuda":
        return Gauge(device)
    if device.type == "cpu":
        with suppress(OSError):
            CLEAR_REFS.write_text("5")
            if "RssAnon" in _status():
                return ProcessGauge(device)
    return SampledGauge(device)


def _status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes; they are given there in kB of 1,024."""
    lines = [line.split() for line in STATUS.read_text().splitlines() if line.endswith(" kB")]
    return {name.removesuffix(":"): 1024 * int(size) for name, size, _ in lines}


def mapped_bytes() -> int:
    """Of this process's resident set, the pages of files, which the system can drop and read again."""
    with suppress(OSError):
        fields = _status()
        return fields.get("RssFile", 0) + fields.get("RssShmem", 0)
    return 0
