"""Free bytes of a device: what the machine, the containers above us, or a card's other processes leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from scope_cli.errors import ModelError
from scope_cli.machine import nvidia

if TYPE_CHECKING:
    import torch

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


def free_without_torch(device: str) -> int:
    """`free_bytes` before PyTorch is imported; a GPU is asked through nvidia-smi.

    Raises ModelError for a GPU that cannot be asked.
    """
    if device == "cpu":
        return max(0, min([psutil.virtual_memory().available, *cgroup_free_bytes()]))
    kind, _, index = device.partition(":")
    rows = nvidia.free_bytes() if kind == "cuda" else []
    if int(index or 0) >= len(rows):
        there = f"nvidia-smi names {len(rows)}" if kind == "cuda" else "nothing tells without PyTorch"
        raise ModelError(
            f"the free memory of --device {device} is unknown: {there}",
            "give it: --memory 24GiB; or --device cpu",
        )
    return rows[int(index or 0)]
