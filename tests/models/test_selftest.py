"""Models just loaded in, a verdict out: scope gives their own logits, or the layer that differs is named."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, DiffLlamaConfig, LlamaConfig, MistralConfig, NemotronConfig
from transformers.models.llama import modeling_llama

from scope_cli.errors import ModelError
from scope_cli.models import attention, selftest
from scope_cli.models import model as model_module
from scope_cli.models.model import open_model
from scope_cli.settings.schema import ModelSettings
from tests.helpers.tiny import FAMILIES, tiny_model, tiny_tokenizer

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))


def saved(config, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(folder, **settings):
    return open_model(ModelSettings(name=str(folder), device="cpu", **settings), offline=True).load()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_what_is_right_passes_in_every_dtype(tmp_path, family, dtype):
    tiny_model(family, torch.float32).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path, dtype=dtype).self_test.elapsed_s > 0


@pytest.mark.parametrize("load_in", ["int8", "int4"])
def test_packed_weights_are_no_difference(tmp_path, load_in):
    saved(LlamaConfig(**SIZES), tmp_path)
    assert load(tmp_path, load_in=load_in).self_test.elapsed_s > 0


def test_a_model_is_tested_once(tmp_path, monkeypatch):
    saved(LlamaConfig(**SIZES), tmp_path)
    assert load(tmp_path).self_test.elapsed_s is not None
    assert load(tmp_path).self_test.elapsed_s is None
    assert load(tmp_path, dtype="bfloat16").self_test.elapsed_s is not None  # rounding is another one
    monkeypatch.setattr(selftest.transformers, "__version__", "99.0")
    assert load(tmp_path).self_test.elapsed_s is not None
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert load(tmp_path).self_test.elapsed_s is not None


def test_a_cache_folder_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch):
    saved(LlamaConfig(**SIZES), tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "file"))
    assert load(tmp_path).self_test.elapsed_s is not None


def test_a_layer_that_attends_twice_is_named(tmp_path):
    saved(DiffLlamaConfig(**SIZES), tmp_path)
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(ModelError, match="layer 0 calls attention 2 times") as caught:
            load(tmp_path)
    assert "self-test" in caught.value.hint


def test_a_layer_that_keeps_the_call_to_itself_is_refused(tmp_path):
    saved(NemotronConfig(**SIZES), tmp_path)
    with pytest.raises(ModelError, match="do not hand on to attention what a call says"):
        load(tmp_path)


def test_a_model_that_never_asks_for_attention_is_refused(tmp_path, monkeypatch):
    """`_supports_attention_backend` alone is what a class says of itself."""
    saved(LlamaConfig(**SIZES), tmp_path)

    def alone(self, hidden_states, *args, **kwargs):
        return self.o_proj(self.q_proj(hidden_states)), None

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", alone)
    with pytest.raises(ModelError, match="none of their layers calls scope's attention"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spoilt", [0, 2])
def test_the_layer_that_differs_is_named(tmp_path, monkeypatch, spoilt, dtype):
    saved(LlamaConfig(**SIZES), tmp_path)
    attend = attention.attend

    def spoil(module, query, key, value, mask, **more):
        if module.layer_idx == spoilt and query.shape[2] == 1:  # steps alone
            value = value.roll(1, 1)
        return attend(module, query, key, value, mask, **more)

    monkeypatch.setattr(attention, "attend", spoil)
    with pytest.raises(ModelError, match=f"layer {spoilt} attends to something else"):
        load(tmp_path, dtype=dtype)


def test_something_beside_attention_that_looks_back_is_found(tmp_path, monkeypatch):
    """A convolution over tokens, say, whose state no cache of keys holds."""
    saved(LlamaConfig(**SIZES), tmp_path)
    forward = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(
        modeling_llama.LlamaMLP, "forward", lambda self, x: forward(self, x + x.cumsum(1) / x.shape[1])
    )
    with pytest.raises(ModelError, match="something beside their attention"):
        load(tmp_path)


def test_positions_that_depend_on_the_call_are_found(tmp_path, monkeypatch):
    """longrope, if its factors were left to transformers, which chooses them at every call."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
    }
    saved(LlamaConfig(**SIZES, rope_parameters=rope), tmp_path)
    assert load(tmp_path).self_test.elapsed_s is not None
    monkeypatch.setattr(model_module, "fix_length", lambda model, length: None)
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "another"))
    with pytest.raises(ModelError, match="layer 0 attends to something else"):
        load(tmp_path)


def test_logits_that_are_no_numbers_are_no_difference(tmp_path):
    """They end the run, with a sentence of their own; here both attentions agree on them."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path).self_test.elapsed_s is not None


def test_the_test_leaves_the_model_as_it_was(tmp_path):
    saved(LlamaConfig(**SIZES), tmp_path)
    loaded = load(tmp_path)
    assert loaded.model.config._attn_implementation == attention.ATTENTION
    again = replace(loaded.opened).load(attention="eager")
    assert again.self_test is None and again.model.config._attn_implementation == "eager"


def test_a_model_that_fails_on_text_alone_is_refused_in_a_line(tmp_path, monkeypatch):
    saved(LlamaConfig(**SIZES), tmp_path)
    forward = modeling_llama.LlamaModel.forward

    def needs_a_picture(self, *args, pixel_values=None, **more):
        return forward(self, *args, **more, height=pixel_values.shape[1])

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", needs_a_picture)
    with pytest.raises(ModelError, match=r"a text ends with AttributeError: 'NoneType'"):
        load(tmp_path)


def test_a_window_that_config_json_speaks_of_and_the_model_does_not_have_is_found(tmp_path):
    """The cache would forget what the model still looks at, beyond 64 tokens."""
    saved(LlamaConfig(**SIZES, sliding_window=64), tmp_path)
    with pytest.raises(ModelError, match="layer 0 attends to something else"):
        load(tmp_path)


def test_windows_are_as_long_as_they_were_once_they_are_tested(tmp_path):
    saved(MistralConfig(**SIZES, sliding_window=64), tmp_path)
    loaded = load(tmp_path)
    assert loaded.self_test.elapsed_s is not None
    assert loaded.model.config.sliding_window == 64 and loaded.geometry.layers[0].window == 64
