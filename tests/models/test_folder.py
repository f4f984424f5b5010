"""Folders as people have them in: whole, or one sentence about what is wrong, before anything is read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from scope_cli.errors import ModelError
from scope_cli.models.folder import header_of, read_json, weight_files
from scope_cli.models.model import open_model
from scope_cli.settings.schema import ModelSettings
from tests.helpers.tiny import tiny_model, tiny_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shards"), max_shard_size="10KB")


def make(folder, **options):
    tiny_model(dtype=torch.float32).save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def change(folder, name, **more):
    values = json.loads((folder / name).read_text())
    write(folder, name, json.dumps({**values, **more}))


def weights_with(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def header(folder, change):
    """Write the header of the weights anew; the data after it stay."""
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    values = json.loads(content[8 : 8 + length])
    change(values)
    new = json.dumps(values).encode()
    write(folder, WEIGHTS, len(new).to_bytes(8, "little") + new + content[8 + length :])


def cut(folder, name, keep):
    content = (folder / name).read_bytes()
    write(folder, name, content[: keep if keep > 0 else len(content) + keep])


NORM = "model.norm.weight"
BROKEN = {  # what is done to a whole folder, and what is said
    "weights a pointer": (lambda f: write(f, WEIGHTS, POINTER), "pointer", "git lfs pull"),
    "weights empty": (lambda f: write(f, WEIGHTS, b""), "is empty", ""),
    "weights zeros": (lambda f: write(f, WEIGHTS, bytes(10_000)), "not a safetensors file", ""),
    "weights cut in the length": (lambda f: cut(f, WEIGHTS, 5), "not a safetensors file", ""),
    "weights cut in the header": (lambda f: cut(f, WEIGHTS, 300), "cut off", ""),
    "weights cut in the data": (lambda f: cut(f, WEIGHTS, -1), "cut off", ""),
    "weights longer": (lambda f: write(f, WEIGHTS, (f / WEIGHTS).read_bytes() + b"x"), "longer than", ""),
    "weights a web page": (
        lambda f: write(f, WEIGHTS, b"<!DOCTYPE html><html>" * 9),
        "not a safetensors",
        "",
    ),
    "weights a pickle": (lambda f: write(f, WEIGHTS, b"PK\3\4" + bytes(50)), "cut off|not a safetensors", ""),
    "header too long": (
        lambda f: write(f, WEIGHTS, (200_000_000).to_bytes(8, "little") + bytes(99)),
        "200,000,000 bytes",
        "",
    ),
    "header of a wrong type": (lambda f: header(f, lambda h: h[NORM].update(dtype="F33")), "F33", ""),
    "header with a wrong shape": (lambda f: header(f, lambda h: h[NORM].update(shape=[31])), NORM, ""),
    "header with integers": (lambda f: header(f, lambda h: h[NORM].update(dtype="I32")), "I32", ""),
    "header with a gap": (lambda f: header(f, lambda h: h.pop(NORM)), "do not follow|longer than", ""),
    "header with another name": (
        lambda f: header(f, lambda h: h.update({"model.norn.weight": h.pop(NORM)})),
        f"incomplete: 1 lack, {NORM}",
        "",
    ),
    "config empty": (lambda f: write(f, "config.json", ""), "it is empty", ""),
    "config cut": (lambda f: cut(f, "config.json", -20), "not JSON", ""),
    "config a list": (lambda f: write(f, "config.json", "[]"), "not a JSON object", ""),
    "config of zeros": (lambda f: write(f, "config.json", bytes(500)), "not JSON", ""),
    "config nested": (lambda f: write(f, "config.json", "[" * 100_000), "not JSON", ""),
    "config with a mark": (
        lambda f: write(f, "config.json", b"\xef\xbb\xbf" + (f / "config.json").read_bytes()),
        "byte order mark",
        "UTF-8",
    ),
    "config a pointer": (lambda f: write(f, "config.json", POINTER), "pointer", "git lfs pull"),
    "no heads": (lambda f: change(f, "config.json", num_attention_heads=0), "num_attention_heads: 0", ""),
    "no layers": (lambda f: change(f, "config.json", num_hidden_layers=0), "num_hidden_layers: 0", ""),
    "heads in words": (lambda f: change(f, "config.json", num_attention_heads="4"), '"4"', ""),
    "a vocabulary of half": (lambda f: change(f, "config.json", vocab_size=1.5), "vocab_size: 1.5", ""),
    "odd heads": (lambda f: change(f, "config.json", num_attention_heads=3, head_dim=None), "", ""),
    "another width": (lambda f: change(f, "config.json", hidden_size=64), "another shape", ""),
    "other key heads": (lambda f: change(f, "config.json", num_key_value_heads=1), "another shape", ""),
    "fewer layers": (lambda f: change(f, "config.json", num_hidden_layers=1), "belong nowhere", ""),
    "more layers": (lambda f: change(f, "config.json", num_hidden_layers=3), "incomplete", ""),
    "no such family": (lambda f: change(f, "config.json", model_type="lama"), "lama", ""),
    "a family that is a list": (lambda f: change(f, "config.json", model_type=["llama"]), "", ""),
    "RoPE in words": (lambda f: change(f, "config.json", rope_parameters="long"), "", ""),
    "an activation unknown": (lambda f: change(f, "config.json", hidden_act="gelo"), "gelo", ""),
    "layers of MLX": (
        lambda f: change(f, "config.json", quantization={"bits": 4, "group_size": 64}),
        "MLX",
        "original",
    ),
    "weights that belong to nobody": (
        lambda f: weights_with(
            f, lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": w[NORM].clone()})
        ),
        "q_proj.bias",
        "",
    ),
    "a weight that lacks": (lambda f: weights_with(f, lambda w: w.pop(NORM)), f"1 lack, {NORM}", ""),
    "an adapter beside": (lambda f: write(f, "adapter_config.json", "{}"), "adapter_config.json", "peft"),
    "an adapter's weights beside": (lambda f: write(f, "adapter_model.safetensors", b""), "adapter", "peft"),
    "generation_config cut": (lambda f: cut(f, "generation_config.json", -5), "not JSON", ""),
    "generation_config a list": (lambda f: write(f, "generation_config.json", "[1]"), "a JSON object", ""),
    "an end in words": (
        lambda f: write(f, "generation_config.json", '{"eos_token_id": ["</s>"]}'),
        "eos_token_id",
        "",
    ),
    "tokenizer empty": (lambda f: write(f, "tokenizer.json", ""), "", ""),
    "tokenizer cut": (lambda f: cut(f, "tokenizer.json", 900), "", ""),
    "tokenizer a pointer": (lambda f: write(f, "tokenizer.json", POINTER), "", ""),
    "tokenizer_config cut": (lambda f: cut(f, "tokenizer_config.json", 30), "", ""),
    "tokenizer_config a list": (lambda f: write(f, "tokenizer_config.json", "[]"), "", ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_sentence_and_exit_code_2(whole, tmp_path, scope, name):
    spoil, said, hint = BROKEN[name]
    folder = shutil.copytree(whole, tmp_path / "it")
    spoil(folder)
    result = scope("generate", "hi", "-m", folder, "--raw", "--max-new-tokens", "3", "--offline", "-q")
    assert (result.code, result.stdout) == (2, ""), result.stderr
    lines = result.stderr.strip().splitlines()
    assert lines[0].startswith("error: ") and len(lines) == 2 and lines[1].startswith("hint: ")
    assert hint in lines[1]
    with pytest.raises(ModelError, match=said or None):
        load(folder)


def load(folder):
    return open_model(ModelSettings(name=str(folder), device="cpu"), offline=True).load()


def test_a_whole_folder_is_none_of_it(whole, in_shards, scope):
    assert scope("generate", "hi", "-m", whole, "--raw", "--max-new-tokens", "3", "-q").code == 0
    assert scope("generate", "hi", "-m", in_shards, "--raw", "--max-new-tokens", "3", "-q").code == 0


def test_a_mark_before_the_generation_config_is_none_of_it(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "it")
    write(folder, "generation_config.json", b'\xef\xbb\xbf{"eos_token_id": 7}')
    assert load(folder).eos_ids[0] == 7


IN_SHARDS = {
    "index cut": (lambda f: cut(f, INDEX, -30), "not JSON"),
    "index without places": (lambda f: write(f, INDEX, "{}"), "weight_map"),
    "index with a list": (lambda f: write(f, INDEX, '{"weight_map": ["a"]}'), "weight_map"),
    "index with numbers": (lambda f: write(f, INDEX, '{"weight_map": {"a": 1}}'), "names 1"),
    "index with a path": (
        lambda f: write(f, INDEX, '{"weight_map": {"a": "../x.safetensors"}}'),
        "not a file of this folder",
    ),
    "index of pickles": (
        lambda f: write(f, INDEX, '{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}'),
        "never from pickle",
    ),
    "a file lacks": (lambda f: sorted(f.glob("model-*"))[1].unlink(), "model-00002-of"),
    "two files lack": (lambda f: [one.unlink() for one in sorted(f.glob("model-*"))[:2]], "and 1 more"),
    "a file is a pointer": (lambda f: write(f, sorted(f.glob("model-*"))[1].name, POINTER), "pointer"),
}


@pytest.mark.parametrize("name", IN_SHARDS)
def test_a_broken_set_of_files_says_which(in_shards, tmp_path, scope, name):
    spoil, said = IN_SHARDS[name]
    folder = shutil.copytree(in_shards, tmp_path / "it")
    spoil(folder)
    result = scope("generate", "hi", "-m", folder, "--raw", "--max-new-tokens", "3", "--offline", "-q")
    assert (result.code, result.stdout, said in result.stderr) == (2, "", True), result.stderr
    assert len(result.stderr.strip().splitlines()) == 2


def test_an_adapter_alone_names_its_base(tmp_path):
    write(tmp_path, "adapter_config.json", '{"base_model_name_or_path": "org/base"}')
    write(tmp_path, "adapter_model.safetensors", b"")
    with pytest.raises(ModelError, match=r"an adapter.* for org/base, not a model"):
        load(tmp_path)


def test_headers_are_those_that_safetensors_reads(whole, in_shards):
    for folder in (whole, in_shards):
        mine = {}
        for file in weight_files(folder):
            mine |= header_of(file)
            theirs = load_file(file)
            assert {name: tuple(one.shape) for name, one in theirs.items()} == {
                name: shape for name, (_, shape) in header_of(file).items()
            }
        assert len(mine) == len(list(tiny_model().state_dict()))


def test_json_is_read_with_and_without_a_mark(tmp_path):
    for content in (b'{"a": 1}', b'\xef\xbb\xbf{"a": 1}'):
        write(tmp_path, "it.json", content)
        assert read_json(tmp_path / "it.json") == {"a": 1}
