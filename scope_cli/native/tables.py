"""The structures of slots.h and step.h, for ctypes."""

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from scope_cli.native.library import Weight

FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # as slots.h numbers them
PLAIN = 16  # SCOPE_PLAIN of step.h
PLAIN_DTYPES = (torch.float32, torch.bfloat16)
Address, Int, Float = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


def fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Linear(ctypes.Structure):
    _fields_ = [("weight", Weight), ("bias", Address)]


class Rotation(ctypes.Structure):
    _fields_ = [("frequencies", Address), ("half", Int), ("factor", Float)]


class Slots(ctypes.Structure):
    _fields_ = [
        *fields(Address, "keys values key_scales value_scales bias"),
        *fields(Int, "key_format value_format bias_format turns_keys turns_values"),
        *fields(Int, "kv_heads group head_dim slots used"),
    ]


class Layer(ctypes.Structure):
    _fields_ = [
        *fields(Address, "before_attention after_attention before_mlp after_mlp query_norm key_norm"),
        *fields(Linear, "query key value output gate up down"),
        ("slots", Slots),
        ("exact", Slots),
        *fields(Int, "norms_all_heads rotation activation"),
        *fields(Float, "scale cap"),
        *fields(Address, "sinks positions exact_slots queries vacant memos attention"),
        *fields(Int, "plain_format ring evictable window memo_count"),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("rotations", ctypes.POINTER(Rotation)),
        ("head", Linear),
        ("last_norm", Address),
        *fields(Int, "layer_count rotation_count lanes hidden"),
        *fields(Float, "epsilon residual logit_factor logit_cap"),
    ]


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers lie; the caller keeps it."""
    if tensor is None:
        return None
    assert tensor.is_contiguous(), "the step reads whole tensors"
    return int(tensor.data_ptr())


def addresses(tensors: Iterable[Tensor]) -> Any:
    """An array of addresses, which the caller keeps as well."""
    each = [address(tensor) for tensor in tensors]
    return (Address * max(1, len(each)))(*each)
