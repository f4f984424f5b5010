"""A model as it was typed in, its shape out: a folder, a name in a local cache, or a config.json.

Nothing is fetched, and only headers are read of weights.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scope_cli.errors import ModelError
from scope_cli.machine import memory, nvidia
from scope_cli.machine.setup import threads_of
from scope_cli.models.catalogue import hub_name
from scope_cli.models.choices import dtype_of, load_in_of
from scope_cli.models.embedded import EMBEDDED
from scope_cli.models.hub import HUB_NAME
from scope_cli.models.model_folder import ModelFolder
from scope_cli.models.registry import find
from scope_cli.models.shapes import ModelShape, read_shape, shape_of
from scope_cli.models.target import Target
from scope_cli.settings.schema import ModelSettings

if TYPE_CHECKING:
    from scope_cli.models.gguf.convert import GgufModel


@dataclass(frozen=True)
class ModelSource:
    """A model's config.json, and the type its matrices had in a GGUF file; or such a file, not converted."""

    name: str
    config: Path
    quantised: str | None = None
    from_config: bool = False  # named by its config.json, which may have no weights beside it
    gguf: GgufModel | None = None
    folder: ModelFolder | None = None  # where its weights may be

    def shape(self, context: int | None = None) -> ModelShape:
        """`context`: what was asked for, where not what the model was made for."""
        if self.gguf is None:
            return read_shape(self.config, self.name, context)
        return replace(shape_of(self.gguf.config, self.name, context), weights=self.gguf.shapes)


def source_of(name: str, config: Path | None = None) -> ModelSource:
    """A model that is on this machine."""
    if config is not None:
        return _from_config(config)
    path = Path(name).expanduser()
    if path.is_dir() and (path / "config.json").is_file():  # the weights need not be there
        return ModelSource(name, path / "config.json", folder=ModelFolder(name, path, "local folder"))
    if path.suffix == ".json" and path.is_file():
        return ModelSource(name, path, from_config=True)
    if name not in EMBEDDED and not path.exists() and HUB_NAME.fullmatch(hub_name(name)):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(hub_name(name), "config.json")
        if isinstance(cached, str):
            folder = ModelFolder(name, Path(cached).parent, "Hugging Face hub")
            return ModelSource(name, Path(cached), folder=folder)
        raise ModelError(
            f"{name} is not in the local Hugging Face cache",
            f"scope models pull {name}, or --config FILE with its config.json",
        )
    try:
        folder = find(name, offline=True)
    except ModelError as error:
        raise ModelError(
            str(error), f"{error.hint}; --config FILE plans from a config.json alone".removeprefix("; ")
        ) from error
    gguf = folder.gguf if folder.pending else None
    return ModelSource(name, folder.path / "config.json", folder.quantised, gguf=gguf, folder=folder)


def _from_config(config: Path) -> ModelSource:
    """A config.json, or the folder that it lies in."""
    folder = config.is_dir()
    file = config / "config.json" if folder else config
    if folder and not file.is_file():
        raise ModelError(f"there is no config.json in {config}", "give a model's folder or config.json")
    name = file.absolute().parent.name if file.name == "config.json" else file.stem
    return ModelSource(name, file, from_config=True)


def target_of(source: ModelSource, settings: ModelSettings, memory_given: bool, lanes: int = 1) -> Target:
    """Device and dtype to plan for, without asking PyTorch.

    With a memory that was given and no device, the machine is another one: a GPU in the checkpoint's dtype.
    """
    device = settings.device.partition(":")[0]
    if device == "auto":
        device = "cuda" if memory_given or nvidia.free_bytes() else "cpu"
        if device == "cpu" and platform.system() == "Darwin" and platform.machine() == "arm64":
            device = "mps"
    shape = source.shape(settings.context)
    load_in = load_in_of(settings, device, source.quantised)
    dtype = dtype_of(settings.dtype, device, shape.dtype, load_in, lanes, source.quantised)
    return Target(shape, device, dtype, load_in, threads=threads_of(settings.threads))


def free_bytes(settings: ModelSettings, target: Target) -> int:
    """What is free now where the model would run; raises ModelError for a device that is not there."""
    device = target.device if settings.device == "auto" else settings.device
    return memory.free_without_torch(device)
