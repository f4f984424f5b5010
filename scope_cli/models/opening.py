"""A model's settings in, the model opened; a wrong name or device is told before PyTorch is imported."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from scope_cli.console.phases import Phases
from scope_cli.errors import ModelError
from scope_cli.machine import nvidia
from scope_cli.models.catalogue import hub_name
from scope_cli.models.embedded import EMBEDDED
from scope_cli.models.hub import HUB_NAME
from scope_cli.models.registry import find
from scope_cli.settings.schema import ModelSettings

if TYPE_CHECKING:
    from scope_cli.models.model import OpenedModel

AMD = Path("/dev/kfd")  # ROCm, which PyTorch calls cuda


@contextmanager
def opened_model(
    settings: ModelSettings, offline: bool, phases: Phases | None = None, lanes: int = 1
) -> "Iterator[OpenedModel]":
    """For a `with`, in which the same person waits for what else takes long, such as the weights."""
    with phases or Phases(log=False) as phases:
        check_model(settings)
        find(settings.name, offline, phases.say)
        phases.reach("command")
        phases.begin(f"loading {settings.name}")

        from scope_cli.models.model import open_model

        phases.reach("imports")
        yield open_model(settings, offline, phases.say, lanes)


def check_model(settings: ModelSettings) -> None:
    """Raises ModelError for a device that is not there, and a name that cannot be any model's.

    What takes longer to find out, or only PyTorch knows, is left to it.
    """
    kind = settings.device.partition(":")[0]
    if (kind == "cuda" and not has_gpu()) or (kind == "mps" and platform.system() != "Darwin"):
        raise ModelError(
            f"no GPU for --device {settings.device}: {torch_version()} finds none", "try --device cpu"
        )
    name = settings.name
    if (
        name not in EMBEDDED
        and not Path(name).expanduser().exists()
        and not HUB_NAME.fullmatch(hub_name(name))
    ):
        find(name, offline=True)  # says where it looked


def has_gpu() -> bool:
    return not torch_version().endswith("+cpu") and (AMD.exists() or bool(nvidia.free_bytes()))


def torch_version() -> str:
    try:
        return f"PyTorch {version('torch')}"
    except PackageNotFoundError:
        return "PyTorch"
