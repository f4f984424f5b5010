"""Device in, free bytes and peak out. A CPU counts the process's resident set, a GPU its own allocator."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

import psutil

from scope_cli.errors import ModelError

if TYPE_CHECKING:
    import torch

SAMPLE_S = 0.05  # between two looks at the resident set
CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")  # 5 resets the high-water mark
M_MMAP_THRESHOLD = -3  # of mallopt(3)
MMAP_FROM = 32 * 2**10
SMALLEST_HOLE = 2**11


def free_bytes(device: torch.device) -> int:
    """What may still be allocated on the device; on a CPU, what the machine and our container leave."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_without_torch("cpu")


def cgroup_free_bytes(root: Path = CGROUP, own: Path = OWN_CGROUPS) -> Iterator[int]:
    """What each memory limit above this process leaves; page cache that can be dropped counts as free."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            names, mount = ("memory.max", "memory.current", "inactive_file "), root
        elif "memory" in controllers.split(","):  # version 1
            names, mount = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
                root / "memory",
            )
        else:
            continue
        folder = mount / path.lstrip("/")
        for group in (folder, *folder.parents):  # a limit may stand anywhere between here and the root
            if group.is_relative_to(mount):
                yield from _group_free_bytes(group, *names)


def _group_free_bytes(group: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[int]:
    try:
        limit = (group / limit_name).read_text().strip()
        usage = int((group / usage_name).read_text())
        statistics = (group / "memory.stat").read_text().splitlines()
    except OSError:  # the root group has no such files, and a container may not see all of its parents
        return
    if limit != "max":
        cache = sum(int(line.removeprefix(cache_name)) for line in statistics if line.startswith(cache_name))
        yield int(limit) - usage + cache


class PeakMeter:
    """The most bytes in use between two laps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._peak = 0
        self._lock = Lock()
        self._closed = Event()
        self._sampler: Thread | None = None

    def __enter__(self) -> PeakMeter:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> PeakMeter:
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._used = _used_bytes(self.device)
            self._sampler = Thread(target=self._sample, name="peak-meter", daemon=True)
            self._look()
            self._sampler.start()
        return self

    def lap(self) -> int:
        """Peak bytes since the last lap; the next one starts now."""
        if self.device.type == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return peak
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

    def now(self) -> int:
        import torch

        return torch.cuda.memory_allocated(self.device)

    def reset(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated(self.device)

    def close(self) -> None:
        """Nobody will ask again."""


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


def gauge(device: torch.device) -> Gauge:
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


def return_freed_memory() -> None:
    """From now on glibc gives blocks back as soon as they are freed: the resident set is what is in use.

    By default it learns to keep blocks of up to 32 MiB for later, which is faster, and counts for nothing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_FROM)


def release_freed() -> None:
    """Give back what lies free between smaller blocks."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


def fill_holes() -> int:
    """Take every larger hole between the blocks of the heap, untouched, for good; how many bytes that is.

    Importing leaves megabytes of them, empty pages after `release_freed`. Whatever is allocated next would
    scatter over them, each piece waking a page of its own, and the resident set would grow by more than what
    is in use. With no holes left a block is either mapped by itself or taken from the end of the heap.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Heap
    except (OSError, AttributeError):
        return 0
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    taken, size = 0, 2**24
    while size >= SMALLEST_HOLE:
        before = libc.mallinfo2()
        block = libc.malloc(size)
        after = libc.mallinfo2()
        same = (after.hblks, after.keepcost, after.arena) == (before.hblks, before.keepcost, before.arena)
        if block and same:  # no block: memory is limited, and what is not given is no hole
            taken += size
        else:  # no such hole: it was mapped, or cut from the end
            libc.free(block)
            size //= 2
    return taken


def free_without_torch(device: str) -> int:
    """`free_bytes` before PyTorch is imported; a GPU is asked through nvidia-smi.

    Raises ModelError for a GPU that cannot be asked.
    """
    if device == "cpu":
        return max(0, min([psutil.virtual_memory().available, *cgroup_free_bytes()]))
    kind, _, index = device.partition(":")
    rows = nvidia_free_bytes() if kind == "cuda" else []
    if int(index or 0) >= len(rows):
        there = f"nvidia-smi names {len(rows)}" if kind == "cuda" else "nothing tells without PyTorch"
        raise ModelError(
            f"no free memory known for --device {device}: {there}", "say it: --memory 24GiB; or --device cpu"
        )
    return rows[int(index or 0)]


def nvidia_free_bytes() -> list[int]:
    """Of each GPU, [] where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=1.0, check=True).stdout
        return [int(line) * 2**20 for line in said.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
