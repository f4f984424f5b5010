"""What is set for the whole process, all of it here; torch is imported where it is asked for."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from scope_cli.files import cache_folder

# libgomp's threads, PyTorch's on Linux, stay awake for milliseconds after each product, on the cores that the
# native products' threads want next. So many rounds are some 10 microseconds.
OPENMP = {"GOMP_SPINCOUNT": "2000"}
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def go_offline() -> None:
    """huggingface_hub reads it once, when it is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def wait_briefly() -> None:
    """OpenMP reads it once, when torch is imported. What the user says of waiting counts more."""
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in OPENMP.items():
            os.environ.setdefault(name, value)


def as_the_user_has_it() -> dict[str, str]:
    """The environment for a process that is not ours."""
    return {name: value for name, value in os.environ.items() if OPENMP.get(name) != value}


def set_threads(wish: int | Literal["auto"]) -> None:
    """PyTorch's on a CPU; auto: what OMP_NUM_THREADS says, else the cores that this process may use."""
    import torch

    if wish != "auto" or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(wish))


def threads_of(wish: int | Literal["auto"]) -> int:
    """What `set_threads` will come to."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wish == "auto":
        return int(said) if said.isdecimal() else usable_cores()
    return wish


def usable_cores(quota: Path = CGROUP_QUOTA) -> int:
    """Physical cores, at most as many as the process is bound to and as its container is given."""
    import psutil

    limits = [psutil.cpu_count(logical=False) or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    try:
        allowed, period = quota.read_text().split()
        limits.append(int(allowed) // int(period))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return max(1, min(limits))


def keep_compiled_code() -> None:
    """Compiled code stays for the next run, in our own cache folder unless the user names another one.

    A folder for each kind of CPU: code that was made for AVX-512 is taken where only AVX2 may be used, and
    gave numbers that are none (torch 2.13).
    """
    import torch

    kind = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled" / kind))


def allow_graphs(most: int) -> None:
    """Of one function; torch gives up after 8, which layers of several sizes exceed."""
    import torch

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, most)


def quieten_bitsandbytes() -> None:
    """8bit warns in every layer of every step."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def hushed() -> Iterator[None]:
    """transformers' progress bars and advice stay off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
