"""What the seam into transformers takes from a model's attention modules, and what it refuses."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scope_cli.errors import ModelError
from scope_cli.models import attention


def test_the_scale_is_the_modules_own_and_else_that_of_its_head_dim():
    assert attention.scale_of(nn.Linear(1, 1), 16) == 0.25
    assert attention.scale_of(SimpleNamespace(scaling=0.3), 16) == 0.3
    assert attention.scale_of(SimpleNamespace(scaling=2), 16) == 2.0
    assert attention.scale_of(type("OPTAttention", (), {"scaling": 0.25})(), 16) == 1.0, "scaled before"


def test_the_output_weight_is_the_modules_and_refused_where_it_cannot_be_read():
    projection = nn.Linear(6, 4)
    assert attention.output_weight(SimpleNamespace(o_proj=projection)) is projection.weight
    for module in (SimpleNamespace(), SimpleNamespace(o_proj=None), SimpleNamespace(o_proj=nn.Identity())):
        with pytest.raises(ModelError, match="no output projection"):
            attention.output_weight(module)
    packed = SimpleNamespace(o_proj=SimpleNamespace(weight=torch.zeros(4, 6, dtype=torch.int8)))
    with pytest.raises(ModelError, match=r"is quantised \(int8\)"):
        attention.output_weight(packed)


def held(tokens, scale=0.5):
    """A cache whose one layer holds random tokens of one KV head; what is written to it is dropped."""
    torch.manual_seed(tokens)
    keys, values = torch.randn(2, 1, 1, tokens, 4, dtype=torch.float64)
    layer = SimpleNamespace(
        scale=scale,
        remembered=[],
        geometry=SimpleNamespace(kv_heads=1),
        write=lambda _key, _value: None,
        seen=lambda: (keys, values, torch.zeros(1, 1, 1, tokens, dtype=torch.float64)),
        store=SimpleNamespace(turned_queries=lambda query: query, turned_back=lambda out: out),
        remember=lambda query, chunk: layer.remembered.append((query, chunk)),
    )
    return SimpleNamespace(layers={3: layer}, chunk=None), keys[0, 0], values[0, 0]


def attend(cache, query, **more):
    return attention.attend(
        SimpleNamespace(layer_idx=3), query, query, query, None, scope_cache=cache, **more
    )


def test_a_step_attends_with_the_layers_scale_and_remembers_the_query():
    cache, keys, values = held(7)
    query = torch.randn(1, 2, 1, 4, dtype=torch.float64)
    out, none = attend(cache, query)
    for head in range(2):
        weights = torch.stack([query[0, head, 0] @ key * 0.5 for key in keys]).softmax(0)
        assert (out[0, 0, head] - weights @ values).abs().max() < 1e-12
    ((remembered, chunk),) = cache.layers[3].remembered
    assert none is None and remembered is query and chunk is None


def test_attention_that_scope_cannot_compute_is_refused():
    query = torch.randn(1, 2, 1, 4, dtype=torch.float64)
    attend(held(7)[0], query, scaling=0.5)
    with pytest.raises(ModelError, match="learned sinks"):
        attend(held(7)[0], query, s_aux=torch.zeros(2))
    for cache, scaling in ((held(7)[0], 0.6), (held(7)[0], 0.4), (held(7, scale=0.4)[0], None)):
        with pytest.raises(ModelError, match="from call to call"):
            attend(cache, query, scaling=scaling)


def test_a_layer_that_was_told_no_slots_says_how_the_model_is_called():
    query = torch.randn(1, 2, 1, 4)
    with pytest.raises(AssertionError, match="called with scope_cache"):
        attention.attend_bound(SimpleNamespace(scope_slots=None), query, query, query)


@pytest.mark.parametrize(("gpu", "triton"), [(False, True), (True, True), (True, False)])
def test_a_step_has_its_own_kernel_where_there_are_a_gpu_and_triton(monkeypatch, gpu, triton):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    kernel = SimpleNamespace(attend_layer=print) if triton else None  # None: it cannot be imported
    monkeypatch.setitem(sys.modules, "scope_cli.models.slot_attention", kernel)
    assert attention.triton_kernel() is (print if gpu and triton else None)
