"""Attention over slots in C++ against the plain formula in float64; the same bits from every kind of CPU."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scope_cli.native.attention import attend
from scope_cli.native.library import library
from scope_cli.native.tables import Slots, address

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
WIDTHS = (8, 24, 64, 80, 96, 128, 256)
PAIRS = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("int8", "int8"),
    ("int8", "int4"),
    ("int4", "int4"),
]


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
    """Random slots, some of them free; one head holds a single one, another none."""

    head_dim: int
    group: int
    slots: int
    forms: tuple[str, str]
    used: int = 0  # 0: all
    cap: float = 0.0
    sinks: bool = False

    def __post_init__(self) -> None:
        chance = torch.Generator().manual_seed(self.head_dim * self.group + self.slots)
        shape = (2, 2, self.slots, self.head_dim)
        self.query = torch.randn(2, 2, self.group, self.head_dim, generator=chance)
        self.keys = stored(torch.randn(shape, generator=chance), self.forms[0])
        self.values = stored(torch.randn(shape, generator=chance), self.forms[1])
        held = torch.rand(2, 2, self.slots, generator=chance) < 0.6
        held[0, 0] = False
        held[0, 1] = torch.arange(self.slots) == self.slots // 2
        self.used = self.used or self.slots
        held[:, :, self.used :] = False
        self.held = held
        self.positions = torch.where(held, 7, -1).int()
        self.scale = self.head_dim**-0.5
        self.sink_logits = torch.randn(2 * self.group, generator=chance) if self.sinks else None

    def table(self) -> Slots:
        table = Slots()
        table.keys, table.key_scales = address(self.keys.numbers), address(self.keys.scales)
        table.values, table.value_scales = address(self.values.numbers), address(self.values.scales)
        table.positions = address(self.positions)
        table.key_format, table.value_format = (FORMATS[form] for form in self.forms)
        table.kv_heads, table.group, table.head_dim = 2, self.group, self.head_dim
        table.slots, table.used = self.slots, self.used
        return table

    def attend(self) -> tuple[Tensor, Tensor]:
        """Output and probabilities."""
        known = library()
        assert known is not None
        given = torch.full((2, 2, self.group, self.slots), math.nan)
        out = attend(known, self.query, self.table(), self.scale, self.cap, self.sink_logits, given)
        return out, given

    def expected(self) -> tuple[Tensor, Tensor]:
        logits = self.query.double() @ self.keys.means.mT * self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        logits = logits.masked_fill(~self.held.unsqueeze(2), -math.inf)
        sinks = torch.full((2, self.group), -math.inf)
        if self.sink_logits is not None:
            sinks = self.sink_logits.view(2, self.group)
        with_sink = torch.cat([logits, sinks.double()[None, :, :, None].expand(2, -1, -1, 1)], -1)
        weights = with_sink.softmax(-1).nan_to_num(0)[..., :-1]
        return weights @ self.values.means, weights


def cases(pair: tuple[str, str]) -> list[Case]:
    widths = [wide for wide in WIDTHS if "int4" not in pair or wide % 32 == 0]
    return [
        *(Case(wide, group, 300, pair) for wide in widths for group in range(1, 9)),
        *(Case(64, 3, slots, pair) for slots in (1, 31, 32, 33, 256, 257, 777)),
        Case(64, 3, 777, pair, used=300),
        Case(64, 3, 300, pair, cap=2.0),
        Case(64, 3, 300, pair, sinks=True),
    ]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_attention_is_the_plain_formula(native, pair):
    for case in cases(pair):
        for got, expected in zip(case.attend(), case.expected(), strict=True):
            torch.testing.assert_close(got.double(), expected, atol=5e-6, rtol=1e-5, msg=str(case))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_kind_of_instructions_and_number_of_threads_gives_the_same_bits(native, pair):
    for case in cases(pair):
        native.use("plain")
        expected = case.attend()
        for instructions in native.all_instructions():
            native.use(instructions)
            for threads in (1, 3):
                native.threads(threads)
                assert all(map(torch.equal, case.attend(), expected)), (case, instructions, threads)


def test_how_many_free_slots_are_read_changes_no_bit(native):
    case = Case(64, 3, 777, ("int8", "int8"), used=300)
    expected = case.attend()
    for used in (301, 320, 512, 777):
        case.used = used
        assert all(map(torch.equal, case.attend(), expected))


def test_a_number_that_is_none_is_seen(native):
    case = Case(64, 2, 64, ("float32", "float32"))
    case.keys.numbers[1, 0, int(case.held[1, 0].nonzero()[0])] = math.nan
    out, _ = case.attend()
    assert out[1, 0].isnan().all() and out[1, 1].isfinite().all() and out[0].isfinite().all()
