"""Models of a known shape with random weights: the sizes are those of the models themselves."""

import pytest
import torch
from transformers import AutoConfig

from scope_cli.errors import ModelError
from scope_cli.models.model import open_model
from scope_cli.models.packed import PackedLinear, pack
from scope_cli.models.random_weights import byte_tokenizer, random_model, random_packed_model
from tests.helpers.plain import load_profile

# Parameters counted by hand from the shapes; bytes of one token in all layers, in bfloat16.
SIZES = {
    # embedding and lm_head + layers * (q, o + k, v + gate, up, down + norms) + norm
    "llama-3.1-8b": (
        2 * 128_256 * 4096 + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336 + 2 * 4096) + 4096,
        32 * 2 * 8 * 128 * 2,
    ),
    "qwen3-8b": (
        2 * 151_936 * 4096
        + 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12_288 + 2 * 4096 + 2 * 128)
        + 4096,
        36 * 2 * 8 * 128 * 2,
    ),
    "mistral-7b": (
        2 * 32_768 * 4096 + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336 + 2 * 4096) + 4096,
        32 * 2 * 8 * 128 * 2,
    ),
    "gemma-3-12b": (
        262_208 * 3840
        + 48 * (2 * 3840 * 4096 + 2 * 3840 * 2048 + 3 * 3840 * 15_360 + 4 * 3840 + 2 * 256)
        + 3840,
        48 * 2 * 8 * 256 * 2,
    ),
}


def opened(name):
    settings = load_profile("full", {"model.name": name, "model.device": "cpu", "model.dtype": "bfloat16"})
    return open_model(settings.profile.model)


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_are_those_of_the_model(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path))
    parameters, token_bytes = SIZES[name]
    model = opened(f"random:{name}")
    assert model.weight_bytes == 2 * parameters
    assert model.geometry.token_bytes(2) == token_bytes
    assert sum(torch.Size(shape).numel() for shape in model.target.shape.weights.values()) == parameters
    windows = [layer.window for layer in model.geometry.layers if layer.kind == "window"]
    assert windows == ([1024] * 40 if name == "gemma-3-12b" else [])


def test_a_shape_that_is_not_known_names_those_that_are():
    with pytest.raises(ModelError, match=r"did you mean llama-3\.1-8b"):
        opened("random:llama-3.1-8")


def test_a_token_is_a_byte():
    tokenizer, text = byte_tokenizer(), "Grüße, 世界!\n\x00"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode()) and tokenizer.decode(ids) == text


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"model_type": "gemma3_text", "head_dim": 64}])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_those_that_are_drawn_whole(config, bits):
    """Drawn one by one they are other numbers, but as many, as large, and nothing is left undrawn."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(**shape, **config, num_key_value_heads=2, vocab_size=259)
    model = random_packed_model(config, torch.float32, "eager", bits)
    whole = random_model(config, torch.float32, torch.device("cpu"), "eager")
    pack(whole, bits)
    state, expected = model.state_dict(), whole.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)
        if tensor.dtype != torch.uint8:  # of norms, which are the same in every draw, and of tables
            assert float(tensor.std()) == pytest.approx(float(expected[name].std()), rel=0.05)
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLinear):
            assert float(layer.weight.std()) == pytest.approx(0.02, rel=0.05), name
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits, of_whole = model(ids).logits, whole(ids).logits
    assert float(logits.std()) == pytest.approx(float(of_whole.std()), rel=0.2)
