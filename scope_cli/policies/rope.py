"""Rotary position embedding undone and done again, for policies that look behind it.

Channels pair up by halves: channel j of the rotated ones with channel j + rotated / 2, as in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

BY_LENGTH = ("longrope", "dynamic")  # kinds whose factors depend on how long the text is


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the rotated channels of x, [..., head_dim]; cos, sin: [..., rotated / 2], broadcast against x."""
    import torch

    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def unrotate(x: Tensor, positions: Tensor, inv_freq: Tensor | None) -> Tensor:
    """x as it was before its position was rotated into it; x: [..., head_dim], positions: [...]."""
    if inv_freq is None:
        return x
    angles = positions.to(x.dtype).unsqueeze(-1) * inv_freq.to(x.dtype)
    return turn(x, angles.cos(), -angles.sin())


def as_pairs(x: Tensor, inv_freq: Tensor) -> Tensor:
    """The rotated channels of x, [..., head_dim], as complex numbers, [..., rotated / 2]."""
    import torch

    half = inv_freq.shape[0]
    return torch.complex(x[..., :half], x[..., half : 2 * half])


def fix_length(model: nn.Module, length: int) -> None:
    """Take the factors for a text of `length` tokens, from its first token to its last.

    transformers chooses them at every call, by the highest position in it. What is read in chunks, or has
    outgrown the length, would be turned by two sets of factors.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for module, prefix, layer_type, kind in _by_length(model):
        inv_freq = getattr(module, f"{prefix}inv_freq")
        by_type = {} if layer_type is None else {"layer_type": layer_type}
        fixed, scaling = ROPE_INIT_FUNCTIONS[kind](module.config, inv_freq.device, seq_len=length, **by_type)
        inv_freq.copy_(fixed)
        setattr(module, f"{prefix}attention_scaling", scaling)
        parameters = module.config.rope_parameters
        if "long_mscale" in parameters:  # Phi-3.5-MoE chooses its own scaling at every call
            own = module.__dict__.setdefault("scope_mscales", dict(parameters))
            which = "long" if length > parameters["original_max_position_embeddings"] else "short"
            parameters["long_mscale"] = parameters["short_mscale"] = own[f"{which}_mscale"]


def _by_length(model: nn.Module) -> Iterator[tuple[Any, str, str | None, str]]:
    """(module, prefix of its buffers, kind of layer, kind of RoPE), each told to choose no more by itself."""
    module: Any
    for module in model.modules():
        if getattr(module, "rope_type", None) is None or not hasattr(module, "config"):
            continue
        kinds = module.__dict__.setdefault("scope_kinds", module.rope_type)
        if isinstance(kinds, dict):
            found = [(f"{layer_type}_", layer_type, kind) for layer_type, kind in kinds.items()]
            module.rope_type = {**kinds, **{name: "default" for _, name, kind in found if kind in BY_LENGTH}}
        else:
            found = [("", None, kinds)]
            module.rope_type = "default" if kinds in BY_LENGTH else kinds
        yield from ((module, prefix, name, kind) for prefix, name, kind in found if kind in BY_LENGTH)
