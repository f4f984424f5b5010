"""Random slots for the native attention, and the same attention by the plain formula."""

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scope_cli.native.library import Library, library
from scope_cli.native.tables import Slots, address

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}


@dataclass
class Stored:
    """Numbers in one format, [lanes, kv_heads, slots, ...], their scales; what they stand for in float64."""

    numbers: Tensor
    scales: Tensor | None
    means: Tensor


def stored(x: Tensor, form: str) -> Stored:
    if form == "float32":
        return Stored(x, None, x.double())
    if form == "bfloat16":
        return Stored(x.bfloat16(), None, x.bfloat16().double())
    if form == "int8":
        scales = (x.abs().amax(-1, keepdim=True) / 127).half()
        codes = (x / scales.float()).round().clamp(-127, 127)
        return Stored(codes.to(torch.int8), scales.squeeze(-1).contiguous(), codes.double() * scales.double())
    groups = x.unflatten(-1, (-1, 32))
    least = groups.amin(-1, keepdim=True).half()
    scales = ((groups.amax(-1, keepdim=True) - least.float()) / 15).half()
    codes = ((groups - least.float()) / scales.float()).round().clamp(0, 15)
    means = (codes.double() * scales.double() + least.double()).flatten(-2)
    low, high = codes.flatten(-2).to(torch.uint8).chunk(2, -1)
    both = torch.stack([scales.squeeze(-1), least.squeeze(-1)], -2)
    return Stored(low | high << 4, both.contiguous(), means)


@dataclass
class Case:
    """Random slots, some of them free; one head holds a single one, another none; and exact tokens."""

    head_dim: int
    group: int
    slots: int
    forms: tuple[str, str]
    used: int = 0  # 0: all
    cap: float = 0.0
    sinks: bool = False
    exact: int = 0  # places of exact tokens, a few of them free
    exact_form: str = "float32"
    lanes: int = 2

    def __post_init__(self) -> None:
        chance = torch.Generator().manual_seed(self.head_dim * self.group + self.slots)
        shape = (self.lanes, 2, self.slots, self.head_dim)
        self.query = torch.randn(self.lanes, 2, self.group, self.head_dim, generator=chance)
        self.keys = stored(torch.randn(shape, generator=chance), self.forms[0])
        self.values = stored(torch.randn(shape, generator=chance), self.forms[1])
        held = torch.rand(self.lanes, 2, self.slots, generator=chance) < 0.6
        held[0, 0] = False
        held[0, 1] = torch.arange(self.slots) == self.slots // 2
        self.used = self.used or self.slots
        held[:, :, self.used :] = False
        self.held = held
        self.bias = bias_of(held, torch.float32)
        self.scale = self.head_dim**-0.5
        shape = (self.lanes, 2, self.exact, self.head_dim)
        self.exact_keys, self.exact_values = (
            stored(torch.randn(shape, generator=chance), self.exact_form) for _ in range(2)
        )
        self.exact_held = torch.rand(shape[:3], generator=chance) < 0.8
        self.exact_bias = bias_of(self.exact_held, self.exact_keys.numbers.dtype)
        self.sink_logits = torch.randn(2 * self.group, generator=chance) if self.sinks else None

    def table(self) -> Slots:
        table = Slots()
        table.keys, table.key_scales = address(self.keys.numbers), address(self.keys.scales)
        table.values, table.value_scales = address(self.values.numbers), address(self.values.scales)
        table.bias = address(self.bias)  # float32
        table.key_format, table.value_format = (FORMATS[form] for form in self.forms)
        table.kv_heads, table.group, table.head_dim = 2, self.group, self.head_dim
        table.slots, table.used = self.slots, self.used
        return table

    def exact_table(self) -> Slots | None:
        if not self.exact:
            return None
        table = Slots()
        table.keys, table.values = address(self.exact_keys.numbers), address(self.exact_values.numbers)
        table.key_format = table.value_format = table.bias_format = FORMATS[self.exact_form]
        table.bias = address(self.exact_bias)
        table.kv_heads, table.group, table.head_dim = 2, self.group, self.head_dim
        table.slots = table.used = self.exact
        return table

    def attend(self) -> tuple[Tensor, Tensor]:
        """Output and probabilities."""
        known = library()
        assert known is not None
        given = torch.full((self.lanes, 2, self.group, self.slots), math.nan)
        out = attend(
            known, self.query, self.table(), self.scale, self.cap, self.sink_logits, given, self.exact_table()
        )
        return out, given

    def expected(self) -> tuple[Tensor, Tensor]:
        keys, values = (
            torch.cat([packed.means, exact.means], 2)
            for packed, exact in ((self.keys, self.exact_keys), (self.values, self.exact_values))
        )
        logits = self.query.double() @ keys.mT * self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        held = torch.cat([self.held, self.exact_held], 2)
        logits = logits.masked_fill(~held.unsqueeze(2), -math.inf)
        sinks = torch.full((2, self.group), -math.inf)
        if self.sink_logits is not None:
            sinks = self.sink_logits.view(2, self.group)
        with_sink = torch.cat([logits, sinks.double()[None, :, :, None].expand(self.lanes, -1, -1, 1)], -1)
        weights = with_sink.softmax(-1).nan_to_num(0)[..., :-1]
        return weights @ values, weights[..., : self.slots]


def bias_of(held: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(held.shape, dtype=dtype).masked_fill(~held, -math.inf)


def attend(
    library: Library,
    query: Tensor,
    slots: Slots,
    scale: float,
    cap: float = 0.0,
    sinks: Tensor | None = None,
    probabilities: Tensor | None = None,
    exact: Slots | None = None,
) -> Tensor:
    """softmax(scale * query @ keys^T) @ values over the slots that are not free.

    query: float32 [lanes, kv_heads, group, head_dim]; cap: logits are capped to it by tanh, 0: not
    sinks: float32 [kv_heads * group], logits that take their share and give no value
    probabilities: float32 [lanes, kv_heads, group, slots], written where it is given
    exact: tokens beside the slots
    returns float32 [lanes, kv_heads, group, head_dim]; zeros where a head holds nothing
    """
    query = query.contiguous()
    out = torch.empty_like(query)
    function = library.functions.scope_attend
    function.restype = None
    function(
        ctypes.byref(slots),
        None if exact is None else ctypes.byref(exact),
        ctypes.c_int32(len(query)),
        ctypes.c_void_p(address(query)),
        ctypes.c_float(scale),
        ctypes.c_float(cap),
        ctypes.c_void_p(address(sinks)),
        ctypes.c_void_p(address(probabilities)),
        ctypes.c_void_p(address(out)),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return out
