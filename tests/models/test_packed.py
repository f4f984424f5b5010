"""Plain weights in, packed ones out: the same products, with and without the library; bytes as said."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from scope_cli.models.packed import PackedEmbedding, PackedLinear, pack, packed_bytes
from scope_cli.native import library, products
from scope_cli.native.layout import Kind
from scope_cli.native.weights import pack as pack_matrix
from tests.helpers.packable import CONFIGS


@pytest.fixture(params=["native", "plain PyTorch"])
def way(request, monkeypatch):
    """With the library, and as on a machine that has none."""
    if request.param == "native":
        if library.library() is None:
            pytest.skip("no native library on this machine")
    else:
        monkeypatch.setattr(products, "library", lambda: None)


def linear(rows, columns, kind, bias=False):
    torch.manual_seed(0)
    layer = nn.Linear(columns, rows, bias=bias).requires_grad_(False)
    return layer, PackedLinear(layer, pack_matrix(layer.weight, kind), kind)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("rows", "columns"), [(192, 64), (100, 72)])
def test_products_are_those_of_the_unpacked_weight(rows, columns, kind, way):
    plain, layer = linear(rows, columns, kind, bias=True)
    for count in (1, 8, 200):
        x = torch.randn(2, count, columns)
        expected = x @ layer.weight.T + plain.bias
        assert layer(x).shape == expected.shape and layer(x).dtype == torch.float32
        assert (layer(x) - expected).abs().max() < 1e-4 * expected.abs().max()  # activations have 16 bits
        halves = layer(x.bfloat16())
        assert halves.dtype == torch.bfloat16
        assert (halves - expected).abs().max() < 0.02 * expected.abs().max()
    across = torch.randn(columns, 3).T
    assert torch.allclose(layer(across), layer(across.contiguous()), atol=1e-6)


@pytest.mark.parametrize("kind", Kind)
def test_an_embedding_gives_the_tables_rows(kind, way):
    table = nn.Embedding(100, 72).requires_grad_(False)
    layer = PackedEmbedding(table, pack_matrix(table.weight, kind), kind)
    ids = torch.tensor([[0, 5], [99, 5]])
    rows = table(ids)
    assert (layer(ids) - rows).abs().max() < rows.abs().max() / (8 if kind is Kind.INT4 else 150)
    assert torch.equal(layer(ids)[0, 1], layer(ids)[1, 1])
    assert layer(ids[:, :0]).shape == (2, 0, 72)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_model_has_the_bytes_that_were_said_and_answers_alike(name, bits, way):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval().requires_grad_(False)
    ids = torch.randint(0, 100, (1, 12))
    plain = model(ids).logits
    with torch.device("meta"):
        said = packed_bytes(AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32), bits)
    rotary = sum(b.nbytes for b in model.buffers())
    pack(model, bits)
    tensors = [*model.parameters(), *model.buffers()]
    assert said == sum(tensor.nbytes for tensor in tensors) - rotary
    assert 0 < (model(ids).logits - plain).abs().max() < 0.25 * plain.abs().max()
    table = model.get_input_embeddings()
    assert isinstance(table, PackedEmbedding) == (name != "scaled embedding")
    assert isinstance(model.lm_head, PackedLinear) and model.lm_head.kind is Kind.INT8
    if name in ("tied", "odd"):
        assert table.packed is model.lm_head.packed
    if name == "few rows":
        assert isinstance(model.model.layers[0].self_attn.k_proj, nn.Linear)


def test_a_token_has_the_same_bits_however_many_are_read_with_it():
    if library.library() is None:
        pytest.skip("no native library on this machine")
    _, layer = linear(192, 64, Kind.INT4)
    x = torch.randn(150, 64)
    whole = layer(x)
    for rows in (slice(0, 1), slice(17, 30), slice(149, 150)):
        assert torch.equal(layer(x[rows]), whole[rows])


def test_a_step_of_the_packed_model_is_one_graph(way):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["tied"], dtype=torch.float32)
    pack(model.eval().requires_grad_(False), 4)
    layer = model.model.layers[0].mlp
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for rows in (1, 200):
        x = torch.randn(1, rows, 64)
        with torch.no_grad():
            assert torch.allclose(compiled(x), layer(x), atol=1e-6)
