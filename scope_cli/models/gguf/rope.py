"""How a GGUF file scales its rotary embedding in, transformers' rope_parameters out.

What it can say: `rope.scaling.*` (linear, yarn, longrope), the divisors of a Llama 3 (`rope_freqs.weight`),
and Phi-3's two lists of divisors (`rope_factors_long.weight`, `rope_factors_short.weight`).
"""

from math import isfinite, log
from typing import Any

import numpy as np

from scope_cli.models.gguf.fields import Fields

DIVISORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


def rope_parameters(fields: Fields, rotated: int, context: int) -> dict[str, Any]:
    """rotated: how many dimensions of a head are turned. Raises ModelError for what cannot be said."""
    theta = fields.number("rope.freq_base", 10_000.0)
    kind = fields.take("rope.scaling.type")
    factor = fields.number("rope.scaling.factor", 0.0, -1) or fields.number("rope.scale_linear", 0.0, -1)
    attention = fields.number("rope.scaling.attn_factor", 0.0, -1) or None
    original = fields.count("rope.scaling.original_context_length", context)
    divisors, long, short = (_floats(fields, name, rotated // 2) for name in (DIVISORS, LONG, SHORT))
    if (long is None) != (short is None):
        raise fields.refuse(f"has {LONG if short is None else SHORT} without its other half")
    if kind is None and factor and long is None:
        kind = "linear"  # llama.cpp's default
    if kind not in (None, "none", "linear", "yarn", "longrope") or (kind == "longrope" and long is None):
        raise fields.refuse(
            f"scales its positions by {kind!r}: no such scaling is known, or its tensors lack"
        )
    if long is not None and short is not None:
        if kind not in (None, "longrope") or divisors is not None:
            raise fields.refuse("scales its positions in two ways at once")
        lists = {"long_factor": long, "short_factor": short, "original_max_position_embeddings": original}
        said = {"attention_factor": attention} if attention else {"factor": factor} if factor else {}
        return {"rope_type": "longrope", "rope_theta": theta, **lists, **said}
    scale = factor if kind == "linear" and factor else 1.0
    if kind == "yarn":
        if divisors is not None:
            raise fields.refuse("scales its positions in two ways at once")
        return {"rope_type": "yarn", "rope_theta": theta, **_yarn(fields, factor or 1.0, attention, original)}
    if divisors is not None or (attention or 1.0) != 1.0:
        return {"rope_theta": theta} | _divided(divisors or [1.0] * (rotated // 2), scale, attention, context)
    if scale != 1.0:
        return {"rope_type": "linear", "rope_theta": theta, "factor": scale}
    return {"rope_type": "default", "rope_theta": theta}


def _yarn(fields: Fields, factor: float, attention: float | None, original: int) -> dict[str, Any]:
    """`yarn_attn_factor` is transformers' attention_factor; `attn_factor` multiplies the usual one."""
    said: dict[str, Any] = {"factor": factor, "original_max_position_embeddings": original}
    whole = fields.number("rope.scaling.yarn_attn_factor", 0.0, -1)
    if attention and not whole:
        whole = attention * (0.1 * log(factor) + 1.0 if factor > 1 else 1.0)
    if whole:
        said["attention_factor"] = whole
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if fields.has(f"rope.scaling.{theirs}"):
            said[ours] = fields.number(f"rope.scaling.{theirs}")
    return said


def _divided(divisors: list[float], scale: float, attention: float | None, context: int) -> dict[str, Any]:
    """Frequencies divided one by one: transformers' longrope, with the same list for every length."""
    factors = [scale * divisor for divisor in divisors]
    return {
        "rope_type": "longrope",
        "long_factor": factors,
        "short_factor": factors,
        "original_max_position_embeddings": context,
        "attention_factor": attention or 1.0,
    }


def _floats(fields: Fields, name: str, count: int) -> list[float] | None:
    tensor = fields.header.tensors.get(name)
    fields.tensors_used.add(name)
    if tensor is None:
        return None
    if tensor.kind.name != "F32" or tensor.shape != (count,):
        raise fields.refuse(f"has {name} as {tensor.kind.name} {list(tensor.shape)}, not as {count} F32")
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        values = np.frombuffer(file.read(tensor.bytes), "<f4").tolist()
    if not all(isfinite(value) and value > 0 for value in values):
        raise fields.refuse(f"has numbers in {name} that divide nothing")
    return values
