"""A wish in, PyTorch's number of CPU threads out."""

import os
from pathlib import Path
from typing import Literal

import psutil
import torch

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def set_threads(wish: int | Literal["auto"]) -> None:
    """auto: what OMP_NUM_THREADS says, else the cores that this process may use."""
    if wish != "auto":
        torch.set_num_threads(wish)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def usable_cores(quota: Path = CGROUP_QUOTA) -> int:
    """Physical cores, at most as many as the process is bound to and as its container is given."""
    limits = [psutil.cpu_count(logical=False) or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    try:
        allowed, period = quota.read_text().split()
        limits.append(int(allowed) // int(period))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return max(1, min(limits))
