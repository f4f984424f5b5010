"""Plain weights in, packed ones out: a quantised file's codes, the same products, bytes as said."""

import gguf
import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from scope_cli.models import packed
from scope_cli.models.packed import PackedEmbedding, PackedLinear, pack, packed_bytes
from tests.helpers.capability import AVX2, PLAIN, run_as
from tests.helpers.packable import CONFIGS


def linear(weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).requires_grad_(False)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def from_file(kind, out=128, width=96, seed=0):
    """Weights as a GGUF file of that type gives them back."""
    weights = np.random.default_rng(seed).standard_normal((out, width), dtype=np.float32)
    weights[:3] = 0.25  # blocks of one value
    weights[3:6] = abs(weights[3:6])  # blocks that do not reach their lowest codes
    kind = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(gguf.dequantize(gguf.quantize(weights, kind), kind))


@pytest.fixture
def few(monkeypatch):
    """All products through the kernel, however many rows."""
    monkeypatch.setattr(packed, "UNPACKED_FROM", 10**9)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_weights_of_a_quantised_file_keep_their_codes(kind, bits):
    """Scales are rounded to bfloat16, nothing else: at most 1 part in 200 of the block's largest value."""
    weight = from_file(kind)
    blocks = weight.unflatten(1, (-1, 32))
    error = (PackedLinear(linear(weight), bits).weight - weight).unflatten(1, (-1, 32)).abs().amax(2)
    assert (error <= blocks.abs().amax(2) / 200).all()
    # every weight of a block lies on the same side of its neighbours: no code was moved
    again = PackedLinear(linear(weight), bits).weight.unflatten(1, (-1, 32))
    assert ((blocks[..., None] > blocks[..., None, :]) == (again[..., None] > again[..., None, :])).all()


def test_blocks_that_leave_codes_out_are_found():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 32), generator=generator)
    codes[:20] = torch.randint(3, 12, (20, 32), generator=generator)
    weight = codes * 0.03125 - 0.25  # exact in bfloat16
    assert torch.equal(PackedLinear(linear(weight), 4).weight, weight)


def test_other_weights_are_rounded_to_the_nearest_of_16_or_255_values():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    blocks = weight.unflatten(1, (-1, 32))
    low, high = blocks.aminmax(dim=2)
    error = (PackedLinear(linear(weight), 4).weight - weight).unflatten(1, (-1, 32)).abs().amax(2)
    assert (error <= 0.55 * (high - low) / 15 + high.abs() / 128).all() and error.max() > 0.05
    error = (PackedLinear(linear(weight), 8).weight - weight).unflatten(1, (-1, 32)).abs().amax(2)
    assert (error <= blocks.abs().amax(2) / 200).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 8, 200])
def test_products_are_those_of_the_unpacked_weight(bits, rows):
    torch.manual_seed(0)
    plain = linear(torch.randn(192, 64), torch.randn(192))
    layer = PackedLinear(plain, bits)
    x = torch.randn(2, rows, 64)
    expected = x @ layer.weight.T + plain.bias
    assert layer(x).shape == expected.shape and layer(x).dtype == torch.float32
    assert (layer(x) - expected).abs().max() < 0.02 * expected.abs().max()  # bfloat16 on the way
    halves = PackedLinear(linear(plain.weight).bfloat16(), bits)
    assert halves(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking_gives_what_the_kernel_computes_with(bits, few):
    layer = PackedLinear(linear(torch.randn(128, 96)), bits)
    by_kernel = layer(torch.eye(96)).T
    assert (layer.weight - by_kernel).abs().max() <= by_kernel.abs().max() / 256


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_packed_model_has_the_bytes_that_were_said_and_answers_alike(kind, bits):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32).eval().requires_grad_(False)
    ids = torch.randint(0, 100, (1, 12))
    plain = model(ids).logits
    with torch.device("meta"):
        said = packed_bytes(AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32), bits)
    rotary = sum(b.nbytes for b in model.buffers())
    pack(model, bits)
    tensors = [*model.parameters(), *model.buffers()]
    assert said == sum(tensor.nbytes for tensor in tensors) - rotary
    assert 0 < (model(ids).logits - plain).abs().max() < 0.25 * plain.abs().max()
    tied_and_whole = kind == "tied"
    assert isinstance(model.get_input_embeddings(), PackedEmbedding) == tied_and_whole
    assert isinstance(model.lm_head, PackedLinear) == (kind != "odd")


def test_a_packed_embedding_gives_the_tables_rows():
    table = nn.Embedding(128, 64)
    layer = PackedEmbedding(table)
    ids = torch.tensor([[0, 5], [127, 5]])
    rows = table(ids)
    assert (layer(ids) - rows).abs().max() < rows.abs().max() / 150
    assert torch.equal(layer(ids)[0, 1], layer(ids)[1, 1])


def test_a_step_of_the_packed_model_is_one_graph():
    torch.manual_seed(0)
    model = (
        AutoModelForCausalLM.from_config(CONFIGS["tied"], dtype=torch.float32).eval().requires_grad_(False)
    )
    pack(model, 4)
    layer = model.model.layers[0].mlp
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for rows in (1, 200):
        x = torch.randn(1, rows, 64)
        with torch.no_grad():
            assert torch.allclose(compiled(x), layer(x), atol=1e-6)


UNPACKED = """
import torch
from torch import nn
from scope_cli.models import packed
print(torch.backends.cpu.get_cpu_capability(), packed.kernel_order() is not None)
layer = nn.Linear(96, 192).requires_grad_(False)
layer.weight.copy_(torch.randn(192, 96, generator=torch.Generator().manual_seed(0)))
for bits in (4, 8):
    weight = packed.PackedLinear(layer, bits).unpacked(torch.float32)
    print(weight.shape, weight.flatten()[::97].tolist())
"""


def test_every_kind_of_cpu_has_an_order_that_is_known_and_unpacks_the_same():
    heads, weights = zip(*(run_as(kind, UNPACKED).split("\n", 1) for kind in (AVX2, PLAIN, {})), strict=True)
    assert heads[:2] == ("AVX2 True", "DEFAULT True") and heads[2].endswith("True")
    assert weights[0] == weights[1] == weights[2]


def test_where_the_order_is_not_known_all_goes_through_the_kernel(monkeypatch):
    monkeypatch.setattr(packed, "kernel_order", lambda: None)
    layer = PackedLinear(linear(torch.randn(64, 96)), 4)
    x = torch.randn(200, 96)
    assert (layer(x) - x @ layer.weight.T).abs().max() < 0.02 * layer(x).abs().max()
