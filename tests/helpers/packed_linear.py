"""Packed linear layers whose own product is plain: an oracle for what is computed from their codes."""

from typing import Any

import torch
from torch import Tensor

from scope_cli.native.layout import Kind
from scope_cli.native.weights import pack, unpack


class Packed(torch.nn.Module):
    """A linear layer as `models.packed` packs it, whose own product is that of PyTorch."""

    def __init__(self, linear: torch.nn.Linear, kind: Kind) -> None:
        super().__init__()
        self.kind, self.bias = kind, linear.bias
        self.out_features, self.in_features = linear.weight.shape
        self.packed = pack(linear.weight.detach(), kind)
        self.plain = unpack(self.packed, kind, *linear.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.plain, self.bias)


def pack_linears(model: Any, kind: Kind) -> None:
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear:
            model.set_submodule(name, Packed(module, kind))
