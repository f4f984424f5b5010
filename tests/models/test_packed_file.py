"""A packed model written beside itself and read back: the same to the bit, or not read at all."""

import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from scope_cli.models.kept import SOURCE_FILE
from scope_cli.models.model import open_model
from scope_cli.native import weights
from scope_cli.settings.schema import ModelSettings
from tests.helpers.packable import CONFIGS
from tests.helpers.tiny import tiny_tokenizer

IDS = torch.arange(20).unsqueeze(0)


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path, monkeypatch):
    """A model folder of each shape, and a cache of its own."""
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    return save(tmp_path / "model", request.param)


@pytest.fixture
def tied(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    return save(tmp_path / "model", "tied")


def save(folder, kind, seed=0):
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def opened(folder, load_in="int4", dtype="float32", say=lambda line: None):
    return open_model(ModelSettings(name=str(folder), device="cpu", load_in=load_in, dtype=dtype), say=say)


def state(model):
    """Everything it computes with."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def same(one, other):
    one, other = state(one), state(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def files_of(folder):
    return sorted((folder.parent / "cache").rglob("packed-*.safetensors"))


@pytest.mark.parametrize("load_in", ["int4", "int8"])
def test_a_second_start_has_the_same_model_without_packing_it(folder, load_in, monkeypatch):
    said = []
    first = opened(folder, load_in, say=said.append)
    model = first.load().model
    assert said == [f"packing the weights of {folder} to {load_in}, once"] and first.loading_bytes > 0
    monkeypatch.setattr(weights, "pack_rows", None)  # packing would fail
    second = opened(folder, load_in, say=said.append)
    assert len(said) == 1 and second.loading_bytes == 0 and second.weight_bytes == first.weight_bytes
    again = second.load().model
    assert same(model, again) and not again.training
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in state(again).values())
    with torch.no_grad():
        sdpa = {"attention": "sdpa"}
        assert torch.equal(first.load(**sdpa).model(IDS).logits, second.load(**sdpa).model(IDS).logits)


def test_a_tied_table_is_one_tensor_in_the_file_and_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    folder = save(tmp_path / "model", "odd")
    opened(folder).load()
    model = opened(folder).load().model
    assert model.lm_head.packed is model.model.embed_tokens.packed


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def header_only(file):
    file.write_bytes(file.read_bytes()[:200])


def empty(file):
    file.write_bytes(b"")


def garbage(file):
    file.write_bytes(os.urandom(3000))


def flipped(file):
    content = bytearray(file.read_bytes())
    content[-5000] ^= 1
    file.write_bytes(content)


def longer(file):
    file.write_bytes(file.read_bytes() + b"0")


def of_another_key(file):
    save_file(load_file(file), file, {"key": "x", "sha256": "x"})


def a_folder(file):
    file.unlink()
    file.mkdir()


def without_a_tensor(file):
    with safe_open(file, "pt") as whole:
        said = whole.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors.pop(min(tensors))
    file.unlink()
    save_file(tensors, file, said)


@pytest.mark.parametrize(
    "damage", [cut, header_only, empty, garbage, flipped, longer, of_another_key, without_a_tensor, a_folder]
)
def test_a_damaged_file_is_made_anew_without_a_word(tied, damage, capfd):
    model = opened(tied).load().model
    (file,) = files_of(tied)
    good = {name: tensor.clone() for name, tensor in load_file(file).items()}
    damage(file)
    assert same(opened(tied).load().model, model)
    if damage is not a_folder:  # what somebody put there stays
        made = load_file(file)
        assert made.keys() == good.keys() and all(torch.equal(made[name], good[name]) for name in good)
    assert capfd.readouterr().err == ""


def test_other_weights_of_the_same_place_are_packed_anew(tied):
    before = opened(tied).load().model
    shutil.rmtree(tied)
    save(tied, "tied", seed=1)
    after = opened(tied).load().model
    assert not same(before, after) and same(opened(tied).load().model, after)


def test_another_dtype_and_other_bits_are_other_files_or_made_anew(tied):
    models = {key: opened(tied, *key).load().model for key in [("int4", "float32"), ("int8", "float32")]}
    assert len(files_of(tied)) == 2
    for key, model in models.items():
        assert same(opened(tied, *key).load().model, model)
    half = opened(tied, "int4", "bfloat16").load().model
    assert half.model.norm.weight.dtype == torch.bfloat16


def test_a_place_that_cannot_be_written_costs_nothing_but_time(tied, monkeypatch):
    monkeypatch.setattr("scope_cli.models.packed_file.write", raising(OSError(28, "No space left on device")))
    model = opened(tied).load().model
    assert files_of(tied) == [] and same(opened(tied).load().model, model)


def raising(error):
    def fail(*args):
        raise error

    return fail


def test_the_users_own_folder_gets_no_file_and_a_converted_one_keeps_it_beside(tied):
    before = sorted(path.name for path in tied.iterdir())
    opened(tied).load()
    assert sorted(path.name for path in tied.iterdir()) == before
    (tied / SOURCE_FILE).write_text("{}")
    opened(tied).load()
    assert len(list(tied.glob("packed-int4.safetensors"))) == 1


def test_what_a_killed_process_left_goes_with_the_next_file(tied):
    opened(tied).load()
    (file,) = files_of(tied)
    left = file.with_name(".scope-0123.new")
    left.write_text("half")
    file.unlink()
    opened(tied).load()
    assert file.exists() and not left.exists()
