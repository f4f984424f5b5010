"""Packed weights times rounded activations: the product within known rounding, and always the same bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scope_cli.native.layout import Kind
from scope_cli.native.library import INSTRUCTIONS, library, weight_of
from scope_cli.native.weights import pack, unpack
from tests.helpers.products import some_products
from tests.helpers.rounding import rounded

native = library()
pytestmark = pytest.mark.skipif(native is None, reason="no native library on this machine")
SHAPES = [(64, 64), (40, 96), (37, 70), (8, 32), (3, 5), (1, 1), (24, 320), (136, 33)]
BEST = native.instructions if native else "plain"
THERE = INSTRUCTIONS[: INSTRUCTIONS.index(BEST) + 1]


@pytest.fixture(autouse=True)
def best_again():
    yield
    native.use(BEST)


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def product(packed, kind, shape, x, groups=None, instructions=BEST, bits=16):
    """[rows of x, rows of the weight]; numbers outside `groups` stay not a number"""
    assert native.use(instructions) == instructions
    return some_products(native, packed, kind, shape, x, groups, bits)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [16, 8])
def test_a_product_is_that_of_the_unpacked_weight_and_the_rounded_activations(shape, kind, bits):
    packed = pack(matrix(*shape), kind)
    weight = unpack(packed, kind, *shape).double()
    for rows in (1, 2, 3, 4, 7, 15, 150):
        x = matrix(rows, shape[1], seed=rows) * torch.logspace(-3, 3, rows).unsqueeze(1)
        size = x.double().abs().sum(1, True) * weight.abs().amax()  # codes and minima may cancel out
        off = (product(packed, kind, shape, x, bits=bits).double() - rounded(x, bits) @ weight.T).abs()
        assert (off <= 3e-6 * size).all()


@pytest.mark.parametrize("kind", Kind)
def test_activations_are_held_to_16_bits(kind):
    packed, x = pack(matrix(64, 256), kind), matrix(20, 256, seed=1)
    exact = x.double() @ unpack(packed, kind, 64, 256).double().T
    assert (product(packed, kind, (64, 256), x) - exact).norm() < 5e-5 * exact.norm()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [16, 8])
def test_all_instructions_give_the_same_bits(shape, kind, bits):
    packed = pack(matrix(*shape), kind)
    x = matrix(13, shape[1], seed=1)
    plain = product(packed, kind, shape, x, instructions="plain", bits=bits)
    for instructions in THERE:
        assert torch.equal(product(packed, kind, shape, x, instructions=instructions, bits=bits), plain)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_codes_ranges_of_groups_and_numbers_of_rows_give_the_same_bits(data):
    kind = data.draw(st.sampled_from(list(Kind)))
    rows, columns = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 130))
    count, bits = data.draw(st.integers(1, 20)), data.draw(st.sampled_from([16, 8]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    shape = (-(-rows // 8), -(-columns // 32), kind.block_bytes)
    packed = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=generator
    )  # also what packing never makes
    packed[:, :, 256 if kind is Kind.INT8 else 128 :].view(torch.float16).normal_(generator=generator)
    x = torch.randn(count, columns, generator=generator) * 10 ** data.draw(st.integers(-9, 9))
    x *= torch.rand(x.shape, generator=generator) > 0.3
    if data.draw(st.booleans()):
        x = x.sign()  # the extremes
    whole = product(packed, kind, (rows, columns), x, None, "plain", bits)
    for instructions in THERE:
        groups, last = -(-rows // 8), 0
        parts = torch.full_like(whole, torch.nan)
        while last < groups:
            first, last = last, data.draw(st.integers(last + 1, groups))
            one = product(packed, kind, (rows, columns), x, (first, last), instructions, bits)
            own = slice(8 * first, min(8 * last, rows))
            assert one[:, : own.start].isnan().all() and one[:, own.stop :].isnan().all()
            parts[:, own] = one[:, own]
        assert torch.equal(parts, whole)
        row = data.draw(st.integers(0, count - 1))
        alone = product(packed, kind, (rows, columns), x[row : row + 1].clone(), None, instructions, bits)
        assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("instructions", THERE)
@pytest.mark.parametrize("bits", [16, 8])
def test_an_activation_that_is_no_number_reaches_every_result(kind, number, instructions, bits):
    packed, x = pack(matrix(16, 64) + 0.01, kind), matrix(3, 64)
    x[1, 40] = number
    out = product(packed, kind, (16, 64), x, None, instructions, bits)
    assert not out[1].isfinite().any() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("instructions", THERE)
def test_activations_of_zeros_and_of_almost_nothing_are_zeros(instructions):
    packed = pack(matrix(16, 64), Kind.INT4)
    for x in (torch.zeros(1, 64), torch.full((1, 64), 1e-38), torch.full((1, 64), -1e-45)):
        assert not product(packed, Kind.INT4, (16, 64), x, instructions=instructions).any()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_whole_product_adds_its_bias_takes_rows_that_lie_apart_and_any_threads(kind, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    packed, bias = pack(matrix(37, 70), kind), matrix(1, 37, seed=3)[0]
    wide = matrix(9, 100, seed=2)
    x = wide[:, 10:80]
    out = native.product(weight_of(packed, kind, 37, 70), x, bias)
    assert torch.equal(out, product(packed, kind, (37, 70), x) + bias)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_unpacked_as_python_unpacks_them(shape, kind):
    packed = pack(matrix(*shape), kind)
    ids = torch.tensor([0, shape[0] - 1, shape[0] // 2])
    assert torch.equal(native.unpack(weight_of(packed, kind, *shape), ids), unpack(packed, kind, *shape)[ids])
