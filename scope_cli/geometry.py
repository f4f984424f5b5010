"""The shape of a model's cache: what every byte count is computed from. No torch, no weights."""

from dataclasses import dataclass
from typing import Literal


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

    @property
    def policy_layers(self) -> int:
        """How many layers the profile's policy governs."""
        return sum(layer.kind == "full" for layer in self.layers)

    def token_bytes(self, dtype_bytes: int) -> int:
        """Keys and values of one token in all layers."""
        return sum(layer.slot_bytes(dtype_bytes) for layer in self.layers)
