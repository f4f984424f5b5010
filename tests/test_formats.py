"""Formats against float64: what is read back is what was written, within half a step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scope_cli.cache.store import SlotStore
from scope_cli.formats import hadamard as matrices
from scope_cli.formats.base import NAMES, SHORT, SlotFormat, format_of
from scope_cli.formats.hadamard import hadamard

FORMATS = list(NAMES)
HEAD_DIMS = [64, 80, 96, 128, 256]
PAIRS = [
    *SHORT.values(),
    SlotFormat("int4", "int4"),
    SlotFormat("plain", "int8"),
    SlotFormat("int8", "plain"),
]


def turn(x):
    return matrices.turn(x, hadamard(x.shape[-1], x.dtype, x.device))


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(2 * torch.randn(*shape[:-1], 1, generator=generator))  # tokens of many sizes
    return (torch.randn(*shape, generator=generator) * spread).to(dtype)


def packs(name, head_dim):
    return format_of(name).problem(head_dim) is None


def read_back(form, x):
    return form.unpack(form.pack(x), torch.empty_like(x))


def half_step(name, x):
    """The most that one number may be off, [..., head_dim], by the rule in words."""
    x = x.double()
    if name == "plain":
        return torch.zeros_like(x)
    if name == "int8":
        return (x.abs().amax(-1, keepdim=True) / 127 / 2).clamp(min=2.0**-15).expand_as(x)
    groups = x.unflatten(-1, (-1, 32))
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((most - least) / 15).clamp(min=2.0**-14)
    return (step / 2 + 2.0**-11 * least.abs()).expand_as(groups).flatten(-2)  # the minimum is a float16


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_read_back_is_off_by_half_a_step_at_most(name, head_dim):
    if not packs(name, head_dim):
        pytest.skip("cannot be packed")
    x = random(2, 3, 50, head_dim)
    off = (read_back(format_of(name), x).double() - x.double()).abs()
    assert (off <= half_step(name, x) * (1 + 2.0**-10) + 1e-6 * x.double().abs()).all()


@pytest.mark.parametrize("name", FORMATS)
@given(
    numbers=st.lists(st.floats(-1e4, 1e4, width=32), min_size=64, max_size=64),
    size=st.sampled_from([1.0, 1e-3, 1e-6, 0.0]),
)
@settings(max_examples=60, deadline=None)
def test_tokens_of_any_size_are_read_back_within_half_a_step(name, numbers, size):
    x = torch.tensor([numbers]) * size
    off = (read_back(format_of(name), x).double() - x.double()).abs()
    assert (off <= half_step(name, x) * (1 + 2.0**-3) + 1e-6 * x.double().abs()).all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_token_of_zeros_is_read_back_as_zeros(name):
    x = torch.zeros(1, 64)
    assert torch.equal(read_back(format_of(name), x), x)


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_read_back_packs_into_the_same_numbers(name):
    """So a slot that is packed again from what stands in it stays what it is, up to the scale's rounding."""
    form = format_of(name)
    once = read_back(form, random(40, 64))
    assert (read_back(form, once) - once).abs().max() <= 2.0**-9 * once.abs().max()


@pytest.mark.parametrize("head_dim", [1, 2, 48, *HEAD_DIMS])
def test_turning_is_orthogonal_and_undoes_itself(head_dim):
    matrix = hadamard(head_dim, torch.float64, torch.device("cpu"))
    assert torch.allclose(matrix @ matrix.T, torch.eye(head_dim, dtype=torch.float64), atol=1e-12)
    x = random(5, head_dim, dtype=torch.float64)
    assert torch.allclose(turn(turn(x)), x, atol=1e-12)


@pytest.mark.parametrize(("head_dim", "block"), [(64, 64), (80, 16), (96, 32), (128, 128)])
def test_every_number_of_a_block_counts_alike(head_dim, block):
    matrix = hadamard(head_dim, torch.float64, torch.device("cpu"))
    filled = matrix.abs() > 0
    assert (filled.sum(0) == block).all()
    assert torch.allclose(matrix[filled].abs(), torch.tensor(block**-0.5, dtype=torch.float64))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("form", PAIRS, ids=str)
def test_a_store_counts_its_bytes_and_gives_back_what_it_got(form, head_dim):
    if form.problem(head_dim):
        pytest.skip("cannot be packed")
    store = SlotStore(form, (2, 3), 7, head_dim, torch.float32, torch.device("cpu"))
    assert sum(part.nbytes for part in store.parts) == 2 * 3 * 7 * form.token_bytes(head_dim, 4)
    keys, values = random(2, 3, 7, head_dim), random(2, 3, 7, head_dim, seed=1)
    store.set(..., store.pack(keys, values))
    got_keys, got_values = store.plain_keys(...), store.plain_values(...)
    for got, wanted in ((got_keys, keys), (got_values, values)):
        assert (got - wanted).norm() <= 0.15 * wanted.norm()
    query = random(2, 3, 1, head_dim, seed=2)
    turned_keys, _ = store.turned(...)
    turned = turn(query) if form.turns_keys else query
    torch.testing.assert_close(turned @ turned_keys.mT, query @ got_keys.mT, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("form", PAIRS, ids=str)
def test_unpacking_into_a_space_is_unpacking(form):
    store = SlotStore(form, (2, 3), 9, 64, torch.float32, torch.device("cpu"))
    store.set(..., store.pack(random(2, 3, 9, 64), random(2, 3, 9, 64, seed=1)))
    at = (slice(None), slice(None), slice(5))
    space = torch.full((2, 2 * 3 * 9 * 64), torch.nan)
    for got, wanted in zip(store.turned(at, space), store.turned(at), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("name", "bytes_of_a_token"), [("plain", 512), ("int8", 132), ("k8v4", 106)])
def test_the_bytes_of_a_token_are_those_of_the_table(name, bytes_of_a_token):
    assert SHORT[name].token_bytes(64, 4) == bytes_of_a_token


def test_a_width_that_cannot_be_packed_is_said_in_words():
    assert SHORT["int8"].problem(80) is None
    assert "80 wide" in SHORT["k8v4"].problem(80)
