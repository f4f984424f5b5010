"""What nvidia-smi says of the cards, without PyTorch: one place that runs it and reads its lines."""

import os
import subprocess


def asked(query: str, timeout_s: float = 1.0) -> list[list[str]]:
    """The rows that `nvidia-smi --query-...` prints, split into cells; [] where it is missing or fails."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line.strip()]


def free_bytes() -> list[int]:
    """Free memory of each card: what no process holds; [] where nothing can be read."""
    try:
        return [int(free) * 2**20 for (free,) in asked("--query-gpu=memory.free")]
    except ValueError:
        return []


def names_and_drivers() -> list[tuple[str, str]]:
    """(name, driver) of each card; [] where there is none."""
    return [(row[0], row[-1]) for row in asked("--query-gpu=name,driver_version", timeout_s=3.0)]


def process_bytes() -> int | None:
    """What this process takes on all cards: weights, cache, and the driver's own context.

    None where nvidia-smi does not list this process, as in a container that numbers processes anew.
    """
    mine = [row for row in asked("--query-compute-apps=pid,used_memory") if row[0] == str(os.getpid())]
    try:
        return sum(int(used) for _, used in mine) * 2**20 if mine else None
    except ValueError:  # "[N/A]"
        return None
