"""A prompt's chunk attends in C++: the formula in float64, and the same bits from every kind of CPU."""

import pytest
import torch
from torch import Tensor

from scope_cli.cache.layers import Causal
from scope_cli.cache.store import SlotStore
from scope_cli.engine.workspace import tile_bytes
from scope_cli.formats.base import PLAIN, SHORT, SlotFormat
from scope_cli.geometry import LayerGeometry
from scope_cli.native.library import Library
from scope_cli.native.reading import ChunkAttention
from tests.helpers.rounding import as_attended, attended, rounded_rows

CASES = [  # kv_heads, group, head_dim, tokens, seen, window
    (3, 3, 64, 150, 150, None),
    (3, 3, 64, 150, 377, None),
    (2, 1, 80, 37, 137, None),
    (1, 8, 16, 5, 300, None),
    (3, 2, 20, 130, 200, 17),
    (2, 7, 128, 70, 70, 64),
    (1, 2, 256, 65, 129, 200),
    (3, 3, 64, 1, 1, None),
    (3, 3, 64, 1, 130, 1),
]


def made(case):
    kv_heads, group, head_dim, tokens, seen, _ = case
    chance = torch.Generator().manual_seed(sum(case[:5]))
    query = torch.randn(1, tokens, kv_heads * group, head_dim, generator=chance).transpose(1, 2)
    keys, values = torch.randn(2, 1, kv_heads, seen + 9, head_dim, generator=chance)[:, :, :, :seen]
    return query, keys, values


def chunk_attention(library: Library):
    """Over keys and values as they are, [1, kv_heads, seen, head_dim]."""
    attend = ChunkAttention(library)

    def over(query, keys, values, scale, window) -> Tensor:
        store = SlotStore(PLAIN, (1,), 1, keys.shape[3], torch.float32, keys.device)
        return attend(store, query, (keys[0], values[0]), scale, window)

    over.tiles = lambda: attend.tiles
    return over


def sees(case) -> Tensor:
    *_, tokens, seen, window = case
    mask = Causal(tokens, seen, window).mask(torch.device("cpu"))
    return mask if mask is not None else torch.ones(tokens, seen, dtype=torch.bool).tril()


def formula(case, query, keys, values) -> Tensor:
    """softmax(0.2 * query @ keys^T) @ values"""
    keys, values = (part.repeat_interleave(case[1], 1) for part in (keys, values))
    return (query @ keys.mT * 0.2).masked_fill(~sees(case), -torch.inf).softmax(-1) @ values


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_chunks_attention_is_the_formula_of_rounded_numbers_with_the_same_bits_everywhere(native, case):
    query, keys, values = made(case)
    window = case[-1]
    attend = chunk_attention(native.library)
    native.use("plain")
    plain = attend(query, keys, values, 0.2, window)
    expected = attended(query, keys, values, sees(case), 0.2)
    assert (
        plain - expected
    ).norm() < 5e-4 * expected.norm()  # a hair decides to which side a weight is rounded
    exact = formula(case, *(part.double() for part in (query, keys, values)))
    assert (plain - exact).norm() < 0.04 * exact.norm()
    for instructions in native.all_instructions():
        native.use(instructions)
        for threads in (1, 3):
            native.threads(threads)
            assert torch.equal(attend(query, keys, values, 0.2, window), plain)


def test_a_token_gets_the_same_bits_in_every_chunk(native):
    query, keys, values = made((2, 3, 64, 200, 200, None))
    attend = chunk_attention(native.library)
    whole = attend(query, keys, values, 0.2, None)
    for first, last in ((0, 7), (7, 64), (64, 199), (199, 200)):
        part = attend(query[:, :, first:last], keys[:, :, :last], values[:, :, :last], 0.2, None)
        assert torch.equal(part, whole[:, :, first:last])


PACKED = [SHORT["int8"], SHORT["k8v4"], SlotFormat("int4", "int4"), SlotFormat("plain", "int8")]


@pytest.mark.parametrize("form", PACKED, ids=str)
@pytest.mark.parametrize("case", [one for one in CASES if one[2] % 32 == 0], ids=str)
def test_a_chunk_is_packed_into_slots_and_attends_there(native, form, case):
    query, keys, values = made(case)
    kv_heads, _, head_dim, *_, seen, window = case
    store = SlotStore(form, (kv_heads,), seen + 5, head_dim, torch.float32, query.device)
    at, attend = (slice(None), slice(3, 3 + seen)), ChunkAttention(native.library)

    def all_of(instructions: str, threads: int) -> list[Tensor]:
        native.use(instructions)
        native.threads(threads)
        attend.store(store, keys[0], values[0], store.get(at))
        return [*(part.clone() for part in store.parts), attend(store, query, store.get(at), 0.2, window)]

    *_, plain = expected = all_of("plain", 1)
    for part in store.parts:
        assert not part[:, :3].any() and not part[:, 3 + seen :].any()
    by_torch = SlotStore(form, (kv_heads,), seen, head_dim, torch.float32, query.device)
    by_torch.set(..., by_torch.pack(keys[0], values[0]))
    turned = tuple(part.double() for part in store.turned(at))
    for got, wanted, given in zip(turned, by_torch.turned(...), (keys, values), strict=True):
        assert (got - wanted).abs().max() < 0.3 * given.abs().max()  # a step, where a hair decides
        assert (got - wanted).norm() < 2e-3 * wanted.norm()
    by_codes = form.keys == "int8"
    formula_of = attended(
        store.turned_queries(query).double(), *turned, sees(case), 0.2, 127 if by_codes else 4095
    )
    wanted = store.turned_back(formula_of.float())
    assert (plain - wanted).norm() < 2e-3 * wanted.norm()  # or a query's number
    for instructions in native.all_instructions():
        for threads in (1, 3):
            assert all(map(torch.equal, all_of(instructions, threads), expected))


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "seen"), [(3, 64, 1), (2, 80, 64), (1, 20, 65), (8, 256, 700)]
)
def test_the_plan_counts_the_room_that_is_taken(native, kv_heads, head_dim, seen):
    attend = chunk_attention(native.library)
    attend(*made((kv_heads, 1, head_dim, 1, seen, None)), 0.2, None)
    layer = LayerGeometry("full", kv_heads, kv_heads, head_dim)
    assert attend.tiles().nbytes == tile_bytes(layer, seen)


def test_a_query_of_zeros_sees_what_is_seen_alone(native):
    query, keys, values = made((1, 2, 64, 70, 70, 5))
    for instructions in native.all_instructions():
        native.use(instructions)
        out = chunk_attention(native.library)(torch.zeros_like(query), keys, values, 0.2, 5)
        expected = as_attended(query, keys, values)[2][0, 0].unfold(0, 5, 1).mean(-1)
        torch.testing.assert_close(out[0, 0, 4:].double(), expected, atol=0.01, rtol=0)


def test_keys_with_a_channel_a_hundred_times_as_large_keep_the_others(native):
    """As some models have them; with 8 bits of a key the others would be nothing but noise."""
    case = (2, 3, 128, 150, 150, None)
    query, keys, values = made(case)
    keys[..., 5] = 100 + keys[..., 5]
    out = chunk_attention(native.library)(query, keys, values, 0.2, None)
    exact = formula(case, query.double(), keys.double(), values.double())
    assert (out - exact).norm() < 0.02 * exact.norm()
    coarse = formula(case, rounded_rows(query, 127), rounded_rows(keys, 127), values.double())
    assert (coarse - exact).norm() > 0.2 * exact.norm()


@pytest.mark.parametrize("form", [PLAIN, *PACKED], ids=str)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_no_number_stays_none_for_whoever_sees_it(native, part, form):
    given = made((1, 2, 64, 70, 70, None))
    given[part][:, :, 66, 3] = torch.nan
    query, keys, values = given
    store, attend = SlotStore(form, (1,), 70, 64, torch.float32, query.device), ChunkAttention(native.library)
    for instructions in native.all_instructions():
        native.use(instructions)
        attend.store(store, keys[0], values[0], store.parts)
        out = attend(store, query, store.parts, 0.2, None)
        assert out[:, :, 66].isnan().all()
        assert out[:, :, 67:].isnan().all() == (part > 0)
        assert out[:, :, :66].isfinite().all()
