"""What numbers were measured on: the same description in every result."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import torch


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """System, processor, cores, memory; with a device, PyTorch's threads and the GPU as well."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    if device is None:
        return found

    import torch

    found |= {"device": str(device), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
    return found


def processor(cpus: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name; of a cloud's CPU, whose name says little ("AMD EPYC"), family and model as well."""
    found: dict[str, str] = {}  # of the first core
    for line in cpus.read_text(encoding="utf-8").splitlines() if cpus.is_file() else []:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    if any(char.isdigit() for char in name) or not {"cpu family", "model"} <= found.keys():
        return name
    return f"{name} (family {found['cpu family']}, model {found['model']})"
