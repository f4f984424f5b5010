"""What can be wrong with a machine before any model is in play; one function, one check, one line.

A check never raises: whatever goes wrong in it is what it says.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal
from urllib.parse import urlsplit

from scope_cli.errors import first_line
from scope_cli.files import cache_folder
from scope_cli.machine import nvidia
from scope_cli.machine.memory import CGROUP, cgroup_free_bytes
from scope_cli.units import as_bytes

CheckState = Literal["ok", "note", "problem"]
OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 9)
ROOM = 2**30  # bytes: what the embedded model takes, in memory and on disk, with some to spare
NETWORK_TIMEOUT_S = 3.0
PYPI = "https://pypi.org/simple"


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do about it."""

    name: str
    state: CheckState
    said: str
    todo: str = ""


def checked(name: str, look: Callable[[], Check]) -> Check:
    """The check, or the problem that it could not be made."""
    try:
        return look()
    except Exception as error:  # a check says what is wrong; it does not end the others
        return Check(name, "problem", f"{type(error).__name__}: {first_line(error)}")


def python(version: tuple[int, int] | None = None) -> Check:
    said = f"{platform.python_version()}, {sys.executable}"
    if (version or sys.version_info[:2]) >= OLDEST_PYTHON:
        return Check("python", "ok", said)
    needed = ".".join(map(str, OLDEST_PYTHON))
    return Check("python", "problem", said, f"install Python {needed} or newer, and scope into it")


def torch() -> Check:
    """Is it there, new enough, and does it import?"""
    try:
        import torch
    except Exception as error:  # ImportError, or a library of another machine
        said = f"cannot be imported: {first_line(error)}"
        return Check("torch", "problem", said, "pip install --force-reinstall torch")
    found = str(torch.__version__)
    major, minor = (int(part) for part in found.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        return Check("torch", "problem", f"{found}, and scope needs {needed}", "pip install -U torch")
    threads = torch.get_num_threads()
    return Check("torch", "ok", f"{found}, {torch.backends.cpu.get_cpu_capability()}, threads: {threads}")


def gpu() -> Check:
    """What the driver names, and whether PyTorch can use it."""
    import torch

    named = nvidia.names_and_drivers()
    if torch.cuda.is_available():
        kind = torch.cuda.get_device_properties(0)
        driver = f", driver {named[0][1]}" if named else ""
        said = f"{kind.name}, {as_bytes(kind.total_memory)}{driver}, CUDA {torch.version.cuda}"
        return Check("gpu", "ok", said)
    if torch.backends.mps.is_available():
        return Check("gpu", "ok", "Metal")
    if not named:
        return Check("gpu", "ok", "none; scope runs on the CPU")
    if torch.version.cuda is None:
        build = "this PyTorch is built without CUDA"
        return Check(
            "gpu", "problem", f"{named[0][0]}, but {build}", "pip install torch, without constraints.txt"
        )
    said = f"{named[0][0]}, driver {named[0][1]}, which PyTorch's CUDA {torch.version.cuda} cannot use"
    return Check("gpu", "problem", said, "install a newer driver, or a PyTorch for an older CUDA")


def memory(root: Path = CGROUP) -> Check:
    """What is free, and which limit comes first."""
    import psutil

    machine = psutil.virtual_memory()
    limits = [(machine.available, f"of the machine's {as_bytes(machine.total)}")]
    limits += [(free, "within the limit of the container (cgroup)") for free in cgroup_free_bytes(root)]
    free, of_what = min(limits)
    said = f"{as_bytes(max(0, free))} free {of_what}"
    if free >= ROOM:
        return Check("memory", "ok", said)
    todo = "end other programs" if of_what.startswith("of the machine") else "raise the container's limit"
    return Check("memory", "problem", said, f"{todo}: the embedded model takes about half a GiB")


def cache(folder: Path | None = None) -> Check:
    """Can models be kept, and is there room for one?"""
    folder = folder or cache_folder()
    other = "SCOPE_CACHE=FOLDER names another one"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"scope")
    except OSError as error:
        return Check("cache", "problem", f"{folder} cannot be written: {error.strerror}", other)
    free = shutil.disk_usage(folder).free
    said = f"{folder}, {as_bytes(free)} free"
    if free < ROOM:
        return Check("cache", "problem", said, f"`scope models rm` makes room; {other}")
    return Check("cache", "ok", said)


def reachable(name: str, url: str, todo: str) -> Check:
    """Does a server answer at all? Whatever its status is, it is there."""
    import urllib.error
    import urllib.request

    where = urlsplit(url).hostname or url  # never the whole: it may hold a password
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=NETWORK_TIMEOUT_S):
            return Check(name, "ok", f"{where} answers")
    except urllib.error.HTTPError:
        return Check(name, "ok", f"{where} answers")
    except (OSError, ValueError) as error:
        said = f"{where} does not answer: {first_line(getattr(error, 'reason', None) or error)}"
        return Check(name, "note", said, f"{todo}; behind a proxy set HTTPS_PROXY")


def hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return Check("hub", "note", "not asked: HF_HUB_OFFLINE is set", "unset it to fetch models")
    url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return reachable(
        "hub", url, "the embedded model comes from the package index; others are a folder or a file"
    )


def index() -> Check:
    """The package index that pip is set up for."""
    return reachable("index", index_url(), "the embedded model comes from the hub")


def index_url() -> str:
    if chosen := os.environ.get("PIP_INDEX_URL"):
        return chosen
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10.0)
    except (OSError, subprocess.SubprocessError):
        return PYPI
    return said.stdout.strip() or PYPI
