"""A device's name in, torch's device out, or what is not there."""

import torch

from scope_cli.errors import ModelError


def resolve_device(name: str) -> torch.device:
    """auto: the first GPU, else the CPU.

    A GPU becomes the process's current one, on whose streams Triton and CUDA graphs work, whatever tensors
    they are given.
    """
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    device = torch.device(name)
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if not there:
            raise ModelError(
                f"no GPU for --device {name}: PyTorch {torch.__version__} finds none", "try --device cpu"
            )
        if (device.index or 0) >= there:
            raise ModelError(
                f"no GPU {name}: there are {there}, cuda:0 to cuda:{there - 1}", "try --device cuda:0"
            )
        torch.cuda.set_device(device.index or 0)
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("no GPU for --device mps: PyTorch finds none", "try --device cpu")
    return device
