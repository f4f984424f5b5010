"""The shape of a model's cache: what every byte count is computed from. No torch, no weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from scope_cli.errors import ModelError

BEYOND = 4  # how many times the length that a model was made for `model.context` may ask for


@dataclass(frozen=True)
class LayerGeometry:
    """One attention layer. heads == kv_heads * group."""

    kind: Literal["full", "window"]  # under the profile's policy; or a sliding window that bounds itself
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0  # tokens a sliding-window layer sees, the current one included

    def slot_bytes(self, dtype_bytes: int) -> int:
        """Key and value of one token, all KV heads."""
        return 2 * self.kv_heads * self.head_dim * dtype_bytes


@dataclass(frozen=True)
class Geometry:
    layers: tuple[LayerGeometry, ...]  # by layer index
    context: int  # the longest text (prompt and output) the model was made for, tokens
    hidden: int  # width of the residual stream
    vocab: int
    switch: int | None = None  # a longer text turns keys by other factors, all of them (longrope)
    made_for: int | None = None  # tokens that the model was made for, where `context` was asked to be more

    @property
    def policy_layers(self) -> int:
        """How many layers the profile's policy governs."""
        return sum(layer.kind == "full" for layer in self.layers)

    def token_bytes(self, dtype_bytes: int) -> int:
        """Keys and values of one token in all layers."""
        return sum(layer.slot_bytes(dtype_bytes) for layer in self.layers)


@dataclass(frozen=True)
class Context:
    """How long a text may be, as config.json says it."""

    made_for: int  # prompt and output, tokens
    most: int  # what `model.context` may ask for
    switch: int | None = None  # as in Geometry


def context_of(positions: int, rope: Mapping[str, Any] | None) -> Context:
    """`positions` is max_position_embeddings; `rope` is rope_parameters or rope_scaling, and None where
    positions are learned: there can be no more of them.

    YaRN and linear scaling are said as a factor, while max_position_embeddings often stays what it was.
    Factors by kind of layer (Gemma 3) stand beside a max_position_embeddings that counts them already.
    """
    if rope is None:
        return Context(positions, positions)
    kinds = [one for one in rope.values() if isinstance(one, Mapping)]
    flat = not kinds
    made_for, most, switch = positions, BEYOND * positions, None
    fixed = False  # the factors are for so many tokens, and for no more
    for one in kinds or [rope]:
        kind = one.get("rope_type") or one.get("type")
        original = one.get("original_max_position_embeddings") or positions
        scaled = int(original * (one.get("factor") or 1))
        if flat and kind in ("yarn", "linear"):
            made_for = max(made_for, scaled)
        if kind == "longrope" and original < positions:
            switch = original
        fixed = fixed or kind in ("yarn", "linear", "longrope")
        most = max(most, scaled)
    return Context(made_for, made_for if fixed else most, switch)


def with_context(geometry: Geometry, context: Context, asked: int | None, name: str) -> Geometry:
    """The geometry with the context that the model was made for, or the one that was asked for."""
    if asked is not None and asked > context.most:
        why = "positions beyond that do not exist" if context.most == context.made_for else "more is noise"
        raise ModelError(
            f"model.context is {asked:,}; {name} was made for {context.made_for:,} tokens",
            f"at most --context {context.most} makes sense: {why}",
        )
    chosen = context.made_for if asked is None else asked
    return replace(
        geometry,
        context=chosen,
        switch=context.switch,
        made_for=context.made_for if chosen > context.made_for else None,
    )
