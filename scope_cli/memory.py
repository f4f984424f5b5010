"""Device in, free bytes and peak out. A CPU counts the process's resident set, a GPU its own allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

SAMPLE_S = 0.05  # between two looks at the resident set
CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """What may still be allocated on the device; on a CPU, what the machine and our container leave."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return max(0, min([psutil.virtual_memory().available, *_cgroup_free_bytes()]))


def _cgroup_free_bytes(root: Path = CGROUP, own: Path = OWN_CGROUPS) -> Iterator[int]:
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
