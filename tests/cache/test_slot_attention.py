"""The PyTorch step's attention over scattered slots against the plain formula in float64."""

from itertools import product

import pytest
import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import CacheShape
from scope_cli.formats.base import PLAIN, SHORT, SlotFormat
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.models.attention import attend_slots
from scope_cli.policies import plugins
from scope_cli.policies.policy import Policy
from tests.helpers.attention_case import stored

KV_HEADS, SLOTS = 2, 192
WIDTHS = (64, 80, 96, 128, 256)
FORMS = [PLAIN, *(form for form in SHORT.values() if form.packs), SlotFormat("int4", "int4")]


def turning(size):
    """Sylvester's matrix over the largest power of two in `size`, block by block."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while size % (2 * len(matrix)) == 0:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return torch.block_diag(*[matrix / len(matrix) ** 0.5] * (size // len(matrix)))


def as_kept(x, form, turns):
    """What a slot gives back."""
    if form == "plain":
        return x
    matrix = turning(x.shape[-1]) if turns else torch.eye(x.shape[-1], dtype=x.dtype)
    return stored((x @ matrix).float(), form).means @ matrix.T


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_steps_attention_is_the_plain_formula(form):
    packable = [wide for wide in WIDTHS if form.problem(wide) is None]
    assert packable == [wide for wide in WIDTHS if "int4" not in (form.keys, form.values) or wide != 80]
    for lanes, head_dim, group in product((1, 8), packable, range(1, 9)):
        size = LayerGeometry("full", KV_HEADS * group, KV_HEADS, head_dim)
        geometry = Geometry((size,), context=SLOTS, hidden=8, vocab=8)
        shape = CacheShape(lanes=lanes, prompt_slots=(0,), evictable=SLOTS, context=SLOTS, form=form)
        policy = Policy(plugins.build("scorers", "recency", {}))
        layer = ScopeCache(geometry, shape, policy, dtype=torch.float64).layers[0]
        chance = torch.Generator().manual_seed(head_dim + group)
        keys, values = torch.randn(2, lanes, KV_HEADS, SLOTS, head_dim, generator=chance, dtype=torch.float64)
        query = torch.randn(lanes, KV_HEADS, group, head_dim, generator=chance, dtype=torch.float64)
        held = torch.rand(lanes, KV_HEADS, 1, SLOTS, generator=chance) < 0.6
        layer.store.set(..., layer.store.pack(keys, values))
        layer.bias[held] = 0
        store = layer.store
        got = store.turned_back(attend_slots(store.turned_queries(query), layer))
        logits = query @ as_kept(keys, form.keys, turns=True).mT * head_dim**-0.5
        weights = logits.masked_fill(~held, -torch.inf).softmax(-1)
        wanted = weights @ as_kept(values, form.values, turns=form.values == "int4")
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9, msg=f"{lanes}, {head_dim}, {group}")
