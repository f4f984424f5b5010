"""A model as it was typed in, its shape out: a folder, a name in a local cache, or a config.json.

Nothing is fetched, and only headers are read of weights.
"""

from __future__ import annotations

import platform
from pathlib import Path

from scope_cli import memory
from scope_cli.errors import ModelError
from scope_cli.profile import ModelSettings
from scope_cli.profiling.footprint import Target
from scope_cli.registry import EMBEDDED, HUB_NAME, ModelFolder, find
from scope_cli.shapes import ModelShape, read_shape


def find_shape(name: str, config: Path | None = None) -> ModelShape:
    if config is not None:
        return read_shape(config, config.parent.name if config.name == "config.json" else config.stem)
    return read_shape(config_of(name), name)


def config_of(name: str) -> Path:
    """config.json of a model that is on this machine."""
    path = Path(name).expanduser()
    if path.is_dir() and (path / "config.json").is_file():  # the weights need not be there
        return path / "config.json"
    if path.suffix == ".json" and path.is_file():
        return path
    if name not in EMBEDDED and not path.exists() and HUB_NAME.fullmatch(name):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached)
        raise ModelError(
            f"{name} is not in the local Hugging Face cache",
            f"scope models pull {name}, or --config FILE with its config.json",
        )
    try:
        folder: ModelFolder = find(name, offline=True)
    except ModelError as error:
        raise ModelError(
            str(error), f"{error.hint}; --config FILE plans from a config.json alone".removeprefix("; ")
        ) from error
    return folder.path / "config.json"


def target_of(shape: ModelShape, settings: ModelSettings, memory_given: bool) -> Target:
    """Device and dtype to plan for, without asking PyTorch.

    With a memory that was given and no device, the machine is another one: a GPU in the checkpoint's dtype.
    """
    device = settings.device.partition(":")[0]
    if device == "auto":
        device = "cuda" if memory_given or memory.nvidia_free_bytes() else "cpu"
        if device == "cpu" and platform.system() == "Darwin" and platform.machine() == "arm64":
            device = "mps"
    dtype: str = settings.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else shape.dtype
    return Target(shape, device, dtype)


def free_bytes(settings: ModelSettings, target: Target) -> int:
    """What is free now where the model would run; raises ModelError for a device that is not there."""
    device = target.device if settings.device == "auto" else settings.device
    return memory.free_without_torch(device)
