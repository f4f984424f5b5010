"""Rows of a matrix in, blocks out, and back."""

import pytest
import torch

from scope_cli.native import weights
from scope_cli.native.layout import Kind, packed_bytes
from scope_cli.native.weights import join, pack, split, unpack, unpack_rows

SHAPES = [(64, 64), (37, 70), (3, 5), (8, 32)]


def matrix(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_the_nearest_of_16_or_255_values(shape):
    weight = matrix(*shape)
    filled = torch.nn.functional.pad(weight, (0, -shape[1] % 32)).unflatten(1, (-1, 32))
    low, high = filled.aminmax(dim=2)
    for kind, step in (
        (Kind.INT4, (high - low) / 15),
        (Kind.INT8, torch.maximum(high, -low) / 127),
    ):
        off = (unpack(pack(weight, kind), kind, *shape) - weight).abs()
        limit = 0.5 * step + filled.abs().amax(2) / 1000  # half a step, and what float16 rounds
        assert (off <= limit.repeat_interleave(32, 1)[:, : shape[1]]).all() and off.max() > 0.1 * step.max()


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-9, 1e-30])
@pytest.mark.parametrize("kind", [Kind.INT4, Kind.INT8])
def test_blocks_of_one_value_and_of_almost_nothing(kind, value):
    weight = torch.full((8, 64), value)
    off = (unpack(pack(weight, kind), kind, 8, 64) - weight).abs().max()
    assert off <= max(abs(value) / 500, 2**-24)


@pytest.mark.parametrize("kind", [Kind.INT4, Kind.INT8])
def test_splitting_is_the_inverse_of_joining(kind):
    packed = torch.randint(0, 256, (3, 4, kind.block_bytes), dtype=torch.uint8)
    packed[:, :, 256 if kind is Kind.INT8 else 128 :].view(torch.float16).normal_()
    codes = split(packed, kind)
    assert codes.codes.shape == (24, 4, 32) and codes.scale.shape == (24, 4)
    assert torch.equal(join(codes, kind), packed)


@pytest.mark.parametrize("kind", Kind)
def test_a_matrix_is_packed_in_stretches_and_has_the_bytes_that_are_said(kind, monkeypatch):
    weight = matrix(100, 70)
    whole = pack(weight, kind)
    monkeypatch.setattr(weights, "AT_ONCE", 70 * 16)
    assert torch.equal(pack(weight, kind), whole) and whole.nbytes == packed_bytes(kind, 100, 70)
    on_meta = pack(weight.to("meta"), kind)
    assert on_meta.is_meta and on_meta.shape == whole.shape


@pytest.mark.parametrize("kind", Kind)
def test_single_rows_are_those_of_the_whole(kind):
    packed = pack(matrix(37, 70), kind)
    ids = torch.tensor([36, 0, 8, 8, 15])
    assert torch.equal(unpack_rows(packed, kind, 70, ids), unpack(packed, kind, 37, 70)[ids])
