"""A loaded model in, what a record says of the run out: what its text depends on beside the profile."""

import platform
from collections.abc import Iterator
from typing import Any

import torch
import transformers

import scope_cli
from scope_cli.machine.description import processor
from scope_cli.models.attention import KERNEL
from scope_cli.models.model import LoadedModel
from scope_cli.native.library import library, why_not


def slower(loaded: LoadedModel) -> Iterator[str]:
    """Why the run is slower than it could be, in notes."""
    if loaded.device.type == "cpu" and (why := loaded.why_not_native or why_not()) is not None:
        yield f"the native step is not used, a token takes several times longer: {why}"
    if loaded.device.type == "cuda" and KERNEL is None:
        yield "Triton is not installed: attention takes PyTorch's kernel, several times slower for one text"


def depends_on(loaded: LoadedModel, lanes: int, compiled: bool) -> dict[str, Any]:
    """What changes how sums are rounded, and so, now and then, a text: beside model, prompt and profile."""
    on_cpu, gpu = loaded.device.type == "cpu", loaded.device.type == "cuda"
    native = library() if on_cpu else None  # whose step is taken
    return {
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "weights": loaded.opened.load_in or "plain",
        "compiled": compiled,
        "lanes": lanes,
        "threads": torch.get_num_threads() if on_cpu else None,
        "processor": torch.cuda.get_device_name(loaded.device) if gpu else processor(),
        "instructions": torch.backends.cpu.get_cpu_capability() if on_cpu else None,
        "native": native.instructions if native and loaded.native else None,
    }


def versions() -> dict[str, str]:
    return {
        "scope": scope_cli.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
