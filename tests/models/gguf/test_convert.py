"""A GGUF file is read whole or refused by name, planned from its header, and converted once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from gguf import GGUFWriter, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer

from scope_cli.errors import ModelError
from scope_cli.models.gguf.header import read
from scope_cli.models.kept import SOURCE_FILE
from scope_cli.models.model import open_model
from scope_cli.models.registry import find, listed
from scope_cli.settings.schema import ModelSettings
from tests.helpers.leftovers import nothing_in
from tests.models.gguf.cases import DIVIDED, SCALING
from tests.models.gguf.files import write


def load(path, **more):
    return open_model(ModelSettings(name=str(path), device="cpu", load_in=None, **more)).load(
        attention="sdpa"
    )


def test_a_file_is_converted_once_without_loss(tmp_path, capfd):
    file = tmp_path / "files" / "tiny.gguf"
    file.parent.mkdir()
    written = write(file)
    told = []

    found = find(str(file), say=told.append)
    assert found.pending and told == [] and not found.path.exists()
    found = found.ready()

    assert capfd.readouterr() == ("", "")
    model = AutoModelForCausalLM.from_pretrained(found.path)
    source = written.source.state_dict()
    assert all(torch.equal(source[name], tensor) for name, tensor in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    assert tokenizer("hi<|im_end|>")["input_ids"] == [260, 259]
    assert (found.name, found.source) == (str(file), "GGUF file tiny.gguf")
    assert found.quantised == "F32"
    assert find(str(file.parent)).path == found.path and not find(str(file)).pending
    assert len(told) == 1 and "converting tiny.gguf to safetensors, once: " in told[0]
    assert str(file) in [row.name for row in listed()]


def test_the_tokenizer_before_and_after_the_conversion_is_the_same(tmp_path):
    found = find(str(write(tmp_path / "tiny.gguf").path))
    before = found.pending.gguf.transformers_tokenizer
    after = AutoTokenizer.from_pretrained(found.ready().path)
    for text in ("hi there", "  two spaces", "<|im_end|>", "é\n", "<eos>2023"):
        assert before(text)["input_ids"] == after(text)["input_ids"]
        assert before.decode(before(text)["input_ids"]) == after.decode(after(text)["input_ids"])
    assert before.added_tokens_encoder == after.added_tokens_encoder
    assert (before.eos_token_id, before.chat_template) == (after.eos_token_id, after.chat_template)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_4_bit_file_runs_in_int4_by_itself_with_its_own_codes(tmp_path, kind):
    file = str(write(tmp_path / "tiny.gguf", kind=kind).path)
    settings = ModelSettings(name=file, device="cpu")
    opened = open_model(settings)
    assert opened.folder.quantised == kind and opened.load_in == "int4"
    packed = opened.load(attention="sdpa").model
    assert open_model(settings).folder.quantised == kind  # found again
    plain = load(file).model
    for name, module in plain.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            blocks = module.weight.unflatten(1, (-1, 32))
            error = (packed.model.layers.get_submodule(name).weight - module.weight).unflatten(1, (-1, 32))
            scale = (blocks.amax(2) - blocks.amin(2)) / 15
            assert (error.abs().amax(2) < scale / 16).all()  # the rounding of the scales, no other code
    assert open_model(settings.model_copy(update={"dtype": "bfloat16"})).load_in is None


def test_16_bits_stay_16_bits_on_disk(tmp_path):
    found = find(str(write(tmp_path / "tiny.gguf", kind="BF16").path)).ready()
    assert json.loads((found.path / "config.json").read_text())["dtype"] == "bfloat16"
    assert (found.path / "model.safetensors").stat().st_size < 3 * (tmp_path / "tiny.gguf").stat().st_size / 2


@pytest.mark.parametrize("named", [1, 2, 3, 0])
def test_the_parts_of_a_split_file_are_one_model_whichever_is_named(tmp_path, named):
    written = write(tmp_path / "tiny.gguf", parts=3)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    model = load(parts[named - 1] if named else tmp_path).model
    source = written.source.state_dict()
    assert all(torch.equal(source[name], tensor) for name, tensor in model.state_dict().items())


def test_a_part_that_is_not_there_is_named_and_nothing_is_written(tmp_path, cache, scope):
    first = write(tmp_path / "tiny.gguf", parts=3).path
    (tmp_path / "tiny-00002-of-00003.gguf").unlink()
    result = scope("generate", "-m", first, "hi")
    assert (result.code, result.stdout) == (2, "")
    assert "part 1 of 3" in result.stderr and "tiny-00002-of-00003.gguf is not there" in result.stderr
    alone = first.rename(tmp_path / "renamed.gguf")
    result = scope("generate", "-m", alone, "hi")
    assert result.code == 2 and "says that it is part 1 of 3" in result.stderr
    assert nothing_in(cache)


@pytest.mark.parametrize(
    "tensor",
    ["blk.1.ffn_up.weight", "blk.0.attn_norm.weight", "token_embd.weight", "output_norm.weight"],
)
def test_a_tensor_that_is_not_there_is_named_and_nothing_is_written(tmp_path, cache, scope, tensor):
    path = write(tmp_path / "tiny.gguf", drop=(tensor,)).path
    for command in (("generate", "-m", path, "hi"), ("models", "show", path), ("models", "pull", path)):
        result = scope(*command)
        assert result.code == 2 and f"it lacks {tensor}" in result.stderr
    assert nothing_in(cache)


def test_layers_that_are_not_there_are_named(tmp_path):
    path = write(tmp_path / "tiny.gguf", metadata={"{arch}.block_count": 4}).path
    with pytest.raises(ModelError, match=r"lacks blk\.2\.attn_norm\.weight and 17 other tensors"):
        find(str(path))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.clamp_kqv", 8.0, "llama) says attention.clamp_kqv = 8.0, which scope does not know"),
        ("something.new", "x", "says something.new = 'x', which scope does not know"),
        ("attention.layer_norm_rms_epsilon", 0.0, "which cannot be"),
        ("attention.layer_norm_rms_epsilon", None, "does not say its llama.attention.layer_norm_rms_epsilon"),
        ("rope.dimension_count", 32, "turns 32 of the 64 dimensions"),
        ("rope.scaling.type", "ntk", "scales its positions by 'ntk'"),
        ("rope.scaling.type", "longrope", "or its tensors lack"),
        ("attention.head_count_kv", 3, "which cannot be"),
        ("attention.value_length", 32, "keys of 64 and values of 32"),
        ("embedding_length", 512, "which makes"),
        ("feed_forward_length", 1 << 30, "which makes"),
    ],
)
def test_a_key_that_is_not_understood_is_refused_by_name(tmp_path, cache, key, value, said):
    path = write(tmp_path / "tiny.gguf", metadata={"{arch}." + key: value}).path
    with pytest.raises(ModelError) as caught:
        find(str(path))
    assert said in str(caught.value) and caught.value.hint and nothing_in(cache)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_scaling_that_the_architecture_cannot_have_is_refused(tmp_path, cache, kind):
    metadata = {SCALING + "type": kind, SCALING + "factor": 4.0}
    with pytest.raises(ModelError, match=f"scales its positions by '{kind}'"):
        find(str(write(tmp_path / "tiny.gguf", "phi3", metadata=metadata).path))


def test_a_key_that_changes_nothing_with_its_value_is_taken(tmp_path):
    more = {
        "{arch}.attention.clamp_kqv": 0.0,
        "{arch}.expert_count": 0,
        "{arch}.rope.scaling.finetuned": True,
    }
    assert find(str(write(tmp_path / "tiny.gguf", metadata=more).path)).pending


def test_a_tensor_that_nobody_asked_for_is_refused_by_name(tmp_path):
    path = write(tmp_path / "tiny.gguf", factors={"blk.0.attn_sinks.weight": [1.0]}).path
    with pytest.raises(ModelError, match=r"has a tensor blk\.0\.attn_sinks\.weight"):
        find(str(path))


@pytest.mark.parametrize(
    ("architecture", "why"), [("gemma2", "capped"), ("deepseek2", "MLA"), ("new", "GGUF")]
)
def test_an_architecture_that_cannot_be_run_is_refused_from_the_header(
    tmp_path, cache, scope, architecture, why
):
    writer = GGUFWriter(tmp_path / "other.gguf", architecture)
    writer.add_block_count(2)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        step()
    result = scope("generate", "-m", tmp_path / "other.gguf", "hi")
    assert result.code == 2 and f"holds a {architecture} model" in result.stderr and why in result.stderr
    assert nothing_in(cache)


def test_planning_and_showing_convert_nothing(tmp_path, cache, scope):
    path = write(tmp_path / "tiny.gguf", kind="Q8_0").path
    plan = scope("profile", "--plan", "-m", path, "--quiet")
    show = scope("models", "show", path)
    assert (plan.code, show.code) == (0, 0) and "conversion" in show.stdout
    assert nothing_in(cache)
    converted = find(str(path)).ready()
    assert "conversion" not in scope("models", "show", path).stdout
    assert scope("profile", "--plan", "-m", path, "--quiet").stdout == plan.stdout
    assert converted.path.is_dir()


def test_what_does_not_fit_in_memory_or_on_the_disk_is_said_before_anything_is_written(
    tmp_path, cache, scope, monkeypatch
):
    path = write(tmp_path / "tiny.gguf").path
    with monkeypatch.context() as patch:
        patch.setattr("scope_cli.machine.memory.free_bytes", lambda device: 1 << 20)
        result = scope("generate", "-m", path, "hi", "--max-new-tokens", "5")
        assert result.code == 2 and "needs" in result.stderr
    cache.mkdir()
    usage = shutil.disk_usage(cache)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    result = scope("generate", "-m", path, "hi", "--max-new-tokens", "5")
    assert result.code == 2 and "1.00 MiB are free there" in result.stderr and "SCOPE_CACHE" in result.stderr
    assert not list(cache.rglob("*.safetensors"))


def test_a_conversion_of_an_older_scope_is_made_again(tmp_path, scope):
    path = write(tmp_path / "tiny.gguf", **DIVIDED).path
    found = find(str(path)).ready()
    old = json.loads((found.path / SOURCE_FILE).read_text())
    del old["conversion"]
    (found.path / SOURCE_FILE).write_text(json.dumps(old))
    (found.path / "config.json").write_text("{}")
    assert [row.ready for row in listed() if row.name == str(path)] == [False]
    assert "outdated" in scope("models", "list").stdout
    again = find(str(path))
    assert again.pending and again.path == found.path
    again.ready()
    assert "longrope" in (found.path / "config.json").read_text()
    assert [row.ready for row in listed() if row.name == str(path)] == [True]


def test_a_file_that_changed_is_converted_anew(tmp_path):
    path = write(tmp_path / "tiny.gguf").path
    first = find(str(path)).ready()
    other = write(path, seed=1)
    second = find(str(path)).ready()
    assert first.path != second.path
    weights = AutoModelForCausalLM.from_pretrained(second.path).state_dict()
    assert torch.equal(weights["model.norm.weight"], other.source.state_dict()["model.norm.weight"])


def test_an_interrupted_conversion_is_no_model_and_the_next_one_works(tmp_path, monkeypatch):
    path = write(tmp_path / "tiny.gguf").path
    rows = "scope_cli.models.gguf.weights._rows"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rows, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        find(str(path)).ready()
    assert not find(str(path)).has_plain
    assert find(str(path)).ready().has_plain and load(path)


@pytest.mark.parametrize(
    ("metadata", "ends"),
    [
        ({}, [257, 259]),
        ({"tokenizer.ggml.eot_token_id": 256}, [257, 256, 259]),
        ({"tokenizer.ggml.eom_token_id": 258, "tokenizer.ggml.eos_token_id": 259}, [259, 258]),
        ({"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.token_type": None}, [259]),
    ],
)
def test_every_end_of_a_turn_ends_an_output(tmp_path, metadata, ends):
    path = write(tmp_path / "tiny.gguf", metadata=metadata).path
    before = open_model(ModelSettings(name=str(path), device="cpu"))
    assert sorted(before.eos_ids) == sorted(ends)
    folder = find(str(path)).ready().path
    said = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert (said if isinstance(said, list) else [said]) == ends
    assert sorted(open_model(ModelSettings(name=str(path), device="cpu")).eos_ids) == sorted(ends)


def test_a_name_that_ends_a_turn_counts_for_a_control_token_only(tmp_path):
    types = [TokenType.NORMAL] * 320
    metadata = {"tokenizer.ggml.token_type": types}
    opened = open_model(ModelSettings(name=str(write(tmp_path / "a.gguf", metadata=metadata).path)))
    assert opened.eos_ids == (257,)


def test_a_tokenizer_that_splits_text_in_an_unknown_way_is_refused(tmp_path):
    path = write(tmp_path / "tiny.gguf", metadata={"tokenizer.ggml.pre": "new-bpe"}).path
    with pytest.raises(ModelError, match=r"splits its text as 'new-bpe' \(tokenizer\.ggml\.pre\)"):
        find(str(path))


def test_digits_are_split_where_the_file_says_so(tmp_path):
    spelt = {"tokenizer.ggml.merges": ["h i", "1 2"], "tokenizer.ggml.pre": "smollm"}
    plain = write(tmp_path / "tiny.gguf").path
    tokens = read(plain).metadata["tokenizer.ggml.tokens"]
    tokens[261] = "12"
    spelt |= {"tokenizer.ggml.tokens": tokens}
    smollm = find(str(write(tmp_path / "a.gguf", metadata=spelt).path)).pending.gguf
    gpt2 = find(str(write(tmp_path / "b.gguf", metadata={**spelt, "tokenizer.ggml.pre": "gpt-2"}).path))
    assert smollm.transformers_tokenizer("12")["input_ids"] == [49, 50]
    assert gpt2.pending.gguf.transformers_tokenizer("12")["input_ids"] == [261]


@pytest.mark.parametrize(("space", "ids"), [(None, [9, 8]), (True, [9, 8]), (False, [8])])
def test_sentencepiece_puts_a_space_in_front_unless_the_file_says_not(tmp_path, space, ids):
    tokens = ["<unk>", "<s>", "</s>", "<0x41>", "a", "b", "▁a", "a▁", "ab", "▁", "<|end|>"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 3],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": None,
        "tokenizer.ggml.add_space_prefix": space,
    }
    gguf = find(str(write(tmp_path / "a.gguf", metadata=metadata).path)).pending.gguf
    assert gguf.transformers_tokenizer("ab")["input_ids"] == [1, *ids]
    assert gguf.config["eos_token_id"] == [2, 10]


def test_no_token_is_added_that_the_model_has_no_weights_for(tmp_path):
    """GPT-2's class would add <|endoftext|>, Llama's <s>: an id beyond the table."""
    gguf = find(str(write(tmp_path / "tiny.gguf").path)).pending.gguf
    tokenizer = gguf.transformers_tokenizer
    assert max(tokenizer("<|endoftext|> <s>")["input_ids"]) < 320 and len(tokenizer) <= 320


PEAK = """
import sys
from pathlib import Path
import gguf.quants  # what is imported is no part of the conversion
from scope_cli.models.gguf.convert import open_gguf
from scope_cli.models.gguf.packing import write_plain

def field(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

model = open_gguf(Path(sys.argv[1]))
before = field("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
write_plain(model, Path(sys.argv[2]), lambda done, total: None)
print(field("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")  # noqa: PTH110
def test_a_conversion_takes_two_tensors_of_memory_at_most(tmp_path):
    path = write(tmp_path / "tiny.gguf", kind="Q8_0", hidden_size=1024, intermediate_size=4096).path
    run = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "out")]
    grown = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert grown < 2 * 4 * 1024 * 4096, "two of the largest tensors, in float32"
    assert (tmp_path / "out").stat().st_size > 100 << 20


def test_scaling_by_an_attention_factor_alone_arrives(tmp_path):
    path = write(tmp_path / "tiny.gguf", metadata={SCALING + "attn_factor": 1.5}).path
    said = find(str(path)).pending.gguf.config["rope_parameters"]
    assert said["attention_factor"] == 1.5 and set(said["long_factor"]) == {1.0}
