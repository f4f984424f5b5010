"""What config.json says of sizes, against transformers itself and against sums by hand."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from scope_cli.errors import ModelError
from scope_cli.models.architecture import geometry_of
from scope_cli.models.formats import plain_bytes
from scope_cli.models.shapes import read_shape, shape_of, stored_shapes
from scope_cli.models.skeleton import weight_bytes
from tests.helpers.configs import GEMMA3_27B, LLAMA_8B, LLAMA_70B, QWEN3_8B
from tests.helpers.tiny import FAMILIES, SHAPE, tiny_model

PUBLISHED = {"llama-8b": LLAMA_8B, "llama-70b": LLAMA_70B, "qwen3-8b": QWEN3_8B, "gemma3-27b": GEMMA3_27B}
NO_HEAD_DIM = {key: value for key, value in SHAPE.items() if key != "head_dim"}
SILENT = {  # what a config leaves out, transformers fills in
    "llama without head_dim": {"model_type": "llama", **NO_HEAD_DIM},
    "llama with one key head per head": {
        "model_type": "llama",
        **{key: value for key, value in SHAPE.items() if key != "num_key_value_heads"},
    },
    "mistral that says nothing of its window": {"model_type": "mistral", **SHAPE},
    "mistral without a window": {"model_type": "mistral", **SHAPE, "sliding_window": None},
    "qwen2 with windows above": {
        "model_type": "qwen2",
        **SHAPE,
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "sliding_window": 16,
    },
    "qwen3 without head_dim": {"model_type": "qwen3", **NO_HEAD_DIM},
    "gemma3 by its pattern": {
        "model_type": "gemma3_text",
        **SHAPE,
        "num_hidden_layers": 7,
        "sliding_window_pattern": 3,
        "sliding_window": 9,
    },
    "gemma3 with the usual pattern": {"model_type": "gemma3_text", **SHAPE, "num_hidden_layers": 7},
    "llama with biases": {"model_type": "llama", **SHAPE, "attention_bias": True, "mlp_bias": True},
    "llama that ties": {"model_type": "llama", **SHAPE, "tie_word_embeddings": True},
}
EVERY = {
    **PUBLISHED,
    **SILENT,
    **{f"tiny {name}": config.to_dict() for name, config in FAMILIES.items()},
}


def theirs(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", EVERY)
def test_geometry_is_what_transformers_makes_of_the_same_file(name, tmp_path):
    assert shape_of(EVERY[name]).geometry == geometry_of(theirs(EVERY[name], tmp_path))


@pytest.mark.parametrize("name", EVERY)
def test_weight_bytes_are_those_of_the_model_that_transformers_builds(name, tmp_path):
    """On the device that holds nothing: 70 billion weights are shapes alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs(EVERY[name], tmp_path), dtype=torch.bfloat16)
    assert shape_of(EVERY[name]).weight_bytes("bfloat16") == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("load_in", ["int4", "int8"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_packed_weights_take_what_packing_makes_of_them(name, load_in, tmp_path):
    theirs_of = weight_bytes(tmp_path, theirs(EVERY[name], tmp_path), torch.bfloat16, load_in)
    assert shape_of(EVERY[name]).weight_bytes("bfloat16", load_in) == theirs_of


def test_llama_8b_by_hand():
    layer = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336 + 2 * 4096  # q o, k v, gate up down, norms
    weights = 2 * 128256 * 4096 + 32 * layer + 4096
    assert shape_of(LLAMA_8B).weight_bytes("bfloat16") == 2 * weights == 16_060_522_496
    assert shape_of(LLAMA_8B).geometry.token_bytes(2) == 32 * 2 * 8 * 128 * 2 == 131_072


def test_llama_70b_by_hand():
    layer = 8192 * 8192 * 2 + 8192 * 1024 * 2 + 3 * 8192 * 28672 + 2 * 8192
    weights = 2 * 128256 * 8192 + 80 * layer + 8192
    assert shape_of(LLAMA_70B).weight_bytes("bfloat16") == 2 * weights == 141_107_412_992
    assert shape_of(LLAMA_70B).geometry.token_bytes(2) == 80 * 2 * 8 * 128 * 2 == 327_680


def test_qwen3_8b_by_hand():
    layer = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128  # and norms per head
    weights = 2 * 151936 * 4096 + 36 * layer + 4096
    assert shape_of(QWEN3_8B).weight_bytes("bfloat16") == 2 * weights == 16_381_470_720


def test_gemma3_27b_by_hand():
    shape = shape_of(GEMMA3_27B)
    layer = 5376 * 4096 * 2 + 5376 * 2048 * 2 + 3 * 5376 * 21504 + 4 * 5376 + 2 * 128
    language = 262208 * 5376 + 62 * layer + 5376  # tied: the embedding is the head as well
    block = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    eye = 1152 * 3 * 14 * 14 + 1152 + 64 * 64 * 1152 + 27 * block + 2 * 1152 + 1152 * 5376 + 1152
    assert shape.weight_bytes("bfloat16") == 2 * (language + eye) == 54_864_813_280
    assert [shape.geometry.layers[i].kind for i in range(6)] == ["window"] * 5 + ["full"]
    assert shape.geometry.policy_layers == 10 and shape.geometry.layers[0].window == 1024
    assert shape.geometry.context == 131_072


def test_stored_weights_are_believed(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    shape = read_shape(tmp_path / "config.json", "tiny")
    assert shape.weight_bytes("float32") == 4 * model.num_parameters()
    assert plain_bytes(stored_shapes(tmp_path), 2) == 2 * model.num_parameters()


def test_a_config_without_weights_beside_it_is_enough(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    assert read_shape(tmp_path / "config.json", "tiny").weight_bytes("float32") == 4 * model.num_parameters()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_hidden_layers": "many"}, "lacks num_hidden_layers"),
        ({"vocab_size": None, "intermediate_size": 0}, "lacks intermediate_size, vocab_size"),
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"model_type": None}, "model_type None"),
        ({"layer_types": ["linear_attention"] * 32}, "linear_attention layers"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for 32 layers"),
    ],
)
def test_a_config_that_cannot_be_planned_says_why(change, said):
    with pytest.raises(ModelError, match=said):
        shape_of({**LLAMA_8B, **change})


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_file_that_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError):
        read_shape(tmp_path / "config.json", "x")
