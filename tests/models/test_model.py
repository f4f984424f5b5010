"""Folders of tiny random models in, geometry, bytes, prompt ids and loaded weights out."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from scope_cli.errors import ModelError, UsageError
from scope_cli.geometry import LayerGeometry
from scope_cli.machine.device import resolve_device
from scope_cli.models import choices
from scope_cli.models.architecture import geometry_of, stored_dtype
from scope_cli.models.attention import output_weight
from scope_cli.models.choices import dtype_of, load_in_of
from scope_cli.models.model import LoadedModel, OpenedModel, open_model
from scope_cli.models.model_folder import ModelFolder
from scope_cli.models.skeleton import weight_bytes
from scope_cli.settings.schema import ModelSettings, PromptSettings

WORDS = ["<unk>", "<s>", "</s>", "<user>", "<system>", "<assistant>", "a", "b", "c"]
UNK, START, END, USER, SYSTEM, ASSISTANT, A, B, C = range(len(WORDS))
TEMPLATE = (
    "<s> {% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}a"
)
SIZES = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 7,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral": MistralConfig(**SIZES, sliding_window=16),
    "gemma3": Gemma3TextConfig(**(SIZES | {"num_hidden_layers": 6}), head_dim=8, sliding_window=16),
}


def tiny_tokenizer(chat_template=None):
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> a folder with a tiny random model and its tokenizer."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for family, config in CONFIGS.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(root / family)
        tiny_tokenizer(TEMPLATE).save_pretrained(root / family)
    return {family: root / family for family in CONFIGS}


def folder_at(path):
    return ModelFolder("it", path, "made up")


def opened(folder, **settings):
    return open_model(ModelSettings(name=str(folder), device="cpu", **settings), offline=True)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_full_attention_families_have_every_layer_under_the_policy(folders, family):
    geometry = opened(folders[family]).geometry
    width = 8 if family == "qwen3" else 4
    assert geometry.layers == (LayerGeometry("full", heads=6, kv_heads=2, head_dim=width),) * 2
    assert (geometry.context, geometry.hidden, geometry.vocab) == (128, 24, 32)


def test_gemma_3_has_five_window_layers_to_one_full_one(folders):
    layers = opened(folders["gemma3"]).geometry.layers
    assert [layer.kind for layer in layers] == ["window"] * 5 + ["full"]
    assert [layer.window for layer in layers] == [16] * 5 + [0]


def test_a_sliding_mistral_has_no_layer_under_the_policy():
    assert geometry_of(MistralConfig(**SIZES)).policy_layers == 0
    assert geometry_of(MistralConfig(**SIZES, sliding_window=None)).policy_layers == 2


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (LlamaConfig(**SIZES, layer_types=["full_attention", "linear_attention"]), "linear_attention layers"),
        (LlamaConfig(**SIZES, attention_chunk_size=8), "chunked_attention layers"),
        (Gemma2Config(**SIZES), "attn_logit_softcapping"),
        (DeepseekV3Config(**(SIZES | {"num_key_value_heads": 6})), "kv_lora_rank"),
        (T5Config(), "encoder"),
    ],
)
def test_an_attention_that_cannot_be_bounded_is_refused_by_name(config, why):
    with pytest.raises(ModelError, match=why) as caught:
        geometry_of(config)
    assert "Llama" in caught.value.hint


@pytest.mark.parametrize("family", CONFIGS)
def test_weight_bytes_from_the_headers_are_those_of_the_loaded_parameters(folders, family):
    loaded = opened(folders[family]).load(attention="sdpa")
    assert loaded.opened.weight_bytes == sum(p.nbytes for p in loaded.model.parameters())


def test_weight_bytes_follow_the_dtype_and_sum_over_shards(folders, tmp_path):
    llama = AutoModelForCausalLM.from_pretrained(folders["llama"])
    llama.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weight_bytes(folder_at(tmp_path), CONFIGS["llama"], torch.bfloat16) == 2 * llama.num_parameters()


def test_only_matrices_of_linear_layers_are_estimated_at_their_quantised_size(folders):
    llama = AutoModelForCausalLM.from_pretrained(folders["llama"])
    linear = sum(p.numel() for name, p in llama.named_parameters() if name.endswith("proj.weight"))
    rest = llama.num_parameters() - linear
    assert (
        weight_bytes(folder_at(folders["llama"]), CONFIGS["llama"], torch.bfloat16, "4bit")
        == int(linear * 0.5625) + 2 * rest
    )
    assert (
        weight_bytes(folder_at(folders["llama"]), CONFIGS["llama"], torch.bfloat16, "8bit")
        == linear + 2 * rest
    )


def test_loaded_weights_are_frozen_and_have_the_dtype_asked_for(folders, capfd):
    loaded = opened(folders["llama"], dtype="float64").load(attention="sdpa")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float64}
    assert not any(p.requires_grad for p in loaded.model.parameters()) and not loaded.model.training
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_quantised_weights_answer_nearly_like_the_plain_ones(tmp_path, load_in, caplog):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}  # in 32s, for 4bit
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES | sizes)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ids = torch.tensor([[1, 6, 7, 8]])
    plain = opened(tmp_path).load(attention="sdpa").model(ids).logits
    quantised = opened(tmp_path, load_in=load_in).load(attention="sdpa").model(ids).logits
    assert 0 < (plain - quantised).abs().max() < 0.3 * plain.abs().max()
    assert not caplog.records  # 8bit would warn in each layer


def llama_in_64s(folder, **more):
    """A model whose matrices can all be packed."""
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES | sizes | more)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("load_in", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_have_the_bytes_that_were_planned(tmp_path, load_in, dtype, tied):
    folder = llama_in_64s(tmp_path, tie_word_embeddings=tied)
    loaded = opened(folder, load_in=load_in, dtype=dtype).load(attention="sdpa")
    rotary = {name for name, _ in loaded.model.named_buffers() if "inv_freq" in name}
    tensors = [*loaded.model.parameters()]
    tensors += [buffer for name, buffer in loaded.model.named_buffers() if name not in rotary]
    assert loaded.opened.weight_bytes == sum(tensor.nbytes for tensor in tensors)
    assert loaded.opened.describe()["load_in"] == load_in


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_the_estimate_for_bitsandbytes_is_near_what_it_loads(tmp_path, load_in):
    folder = llama_in_64s(tmp_path, hidden_size=512, intermediate_size=1024)
    loaded = opened(folder, load_in=load_in).load(attention="sdpa")
    held = 0
    for parameter in loaded.model.parameters():
        state = getattr(parameter, "quant_state", None)  # 4bit keeps its scales there
        held += parameter.nbytes + (state.absmax.nbytes if state is not None else 0)
    assert loaded.opened.weight_bytes == pytest.approx(held, rel=0.02)


def test_auto_packs_a_quantised_file_on_a_cpu_when_no_dtype_is_asked_for():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)

    def chosen(quantised, device=cpu, **settings):
        folder = ModelFolder("m", Path("nowhere"), "made up", quantised)
        return load_in_of(ModelSettings(**settings), str(device), folder.quantised)

    assert {chosen(kind) for kind in ("Q4_0", "Q4_1", "Q4_K", "Q4_0, Q4_1")} == {"int4"}
    for kind in ("Q4_K, Q6_K", "Q5_K", "Q5_K, Q6_K", "Q6_K", "Q8_0", "Q2_K", "IQ4_NL", "F16, Q4_K"):
        assert chosen(kind) == "int8"
    assert chosen("Q4_1", gpu) is chosen("Q6_K", gpu) is chosen(None) is chosen("F16") is None
    assert chosen("BF16, F32") is None
    assert chosen("Q4_1", dtype="float32") is chosen("Q4_1", load_in="none") is None
    assert chosen(None, load_in="int8") == "int8" and chosen(None, gpu, load_in="8bit") == "8bit"
    with pytest.raises(ModelError, match="for a CPU, not for cuda:0"):
        chosen("Q4_1", gpu, load_in="int4")


@pytest.mark.parametrize("load_in", ["int4", "int8"])
def test_criticalkv_computes_with_the_plain_weights_of_packed_ones(tmp_path, load_in):
    loaded = opened(llama_in_64s(tmp_path), load_in=load_in).load()
    plain = opened(tmp_path, load_in=None).load().model.model.layers[0].self_attn.o_proj.weight
    module = loaded.model.model.layers[0].self_attn
    weight = output_weight(module)
    assert weight.shape == plain.shape and weight.dtype == torch.float32
    assert (weight - plain).abs().max() < {"int4": 0.1, "int8": 0.01}[load_in] * plain.abs().max()
    assert output_weight(module) is weight  # unpacked once


def test_a_broken_bitsandbytes_is_said_with_a_way_out(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="needs bitsandbytes") as caught:
        opened(folders["llama"], load_in="4bit").load(attention="sdpa")
    assert "load_in" in caught.value.hint


def test_a_checkpoint_that_lacks_weights_is_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["llama"], tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 lack, model\.norm\.weight"):
        opened(folder).load(attention="sdpa")


def test_a_folder_without_a_tokenizer_is_a_model_error(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "mute", ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(ModelError, match="cannot read"):
        opened(folder)


def test_a_gpu_that_is_not_there_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelError, match="no GPU") as caught:
        resolve_device("cuda")
    assert "--device cpu" in caught.value.hint
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert current == [1, 0], "Triton and CUDA graphs work on the current one"
    with pytest.raises(ModelError, match="there are 2"):
        resolve_device("cuda:2")


def test_the_automatic_dtype_is_float32_on_a_cpu_and_the_checkpoints_own_on_a_gpu():
    half = LlamaConfig(**SIZES, dtype="float16")
    assert dtype_of("auto", "cpu", stored_dtype(half)) == "float32"
    assert dtype_of("auto", "cuda", stored_dtype(half)) == "float16"
    assert dtype_of("auto", "cuda", stored_dtype(LlamaConfig(**SIZES))) == "bfloat16"
    assert dtype_of("float64", "cuda", stored_dtype(half)) == "float64"


@pytest.mark.parametrize("amx", [True, False])
def test_eight_lanes_are_bfloat16_on_a_cpu_that_multiplies_it_in_hardware(monkeypatch, amx):
    monkeypatch.setattr(choices, "has_amx", lambda: amx)
    stored = stored_dtype(LlamaConfig(**SIZES))
    assert dtype_of("auto", "cpu", stored, lanes=8) == ("bfloat16" if amx else "float32")
    assert dtype_of("auto", "cpu", stored, lanes=7) == "float32"
    assert dtype_of("float32", "cpu", stored, lanes=8) == "float32"


def test_a_prompt_goes_through_the_chat_template_and_special_tokens_are_not_doubled(folders):
    model = opened(folders["llama"])
    assert model.encode("a b", PromptSettings()) == [START, USER, A, B, ASSISTANT]
    with_system = model.encode("a b", PromptSettings(system="c"))
    assert with_system == [START, SYSTEM, C, USER, A, B, ASSISTANT]


def test_a_raw_prompt_is_what_the_tokenizer_makes_of_it(folders):
    assert opened(folders["llama"]).encode("a b", PromptSettings(raw=True)) == [START, A, B]


def test_a_model_without_a_template_takes_the_prompt_as_it_is(folders, tmp_path):
    folder = shutil.copytree(folders["llama"], tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    assert opened(folder).encode("a b", PromptSettings()) == [START, A, B]
    with pytest.raises(UsageError, match="no chat template"):
        opened(folder).encode("a b", PromptSettings(system="c"))


def test_a_system_message_without_a_place_is_refused(folders, tmp_path):
    with pytest.raises(UsageError, match="--raw was given"):
        opened(folders["llama"]).encode("a", PromptSettings(raw=True, system="c"))
    folder = shutil.copytree(folders["llama"], tmp_path / "strict")
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    with pytest.raises(UsageError, match="System role not supported") as caught:
        opened(folder).encode("a", PromptSettings(system="c"))
    assert "system message" in caught.value.hint


def test_an_output_ends_at_the_ids_of_all_sources_once(folders, tmp_path):
    assert opened(folders["llama"]).eos_ids == (7, END)
    folder = shutil.copytree(folders["llama"], tmp_path / "two")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2, 5]}')
    assert opened(folder).eos_ids == (5, 2)
    (folder / "generation_config.json").unlink()
    assert opened(folder).eos_ids == (7, END)


def test_a_loaded_model_can_be_put_together_in_memory():
    config = CONFIGS["llama"]
    tokenizer = tiny_tokenizer(TEMPLATE)
    weights = AutoModelForCausalLM.from_config(config).eval()
    folder = ModelFolder("tiny", Path("nowhere"), "made in memory")
    model = OpenedModel(
        "tiny", folder, config, tokenizer, geometry_of(config), torch.device("cpu"), torch.float32, 0
    )
    loaded = LoadedModel(weights, model)
    assert (loaded.name, loaded.eos_ids, loaded.dtype) == ("tiny", (7, END), torch.float32)
    assert loaded.tokenizer is tokenizer and loaded.geometry.policy_layers == 2


def test_the_record_of_a_run_names_source_shape_and_dtype(folders):
    facts = opened(folders["llama"]).describe()
    assert facts["source"] == "local folder"
    assert (facts["layers"], facts["heads"], facts["kv_heads"], facts["head_dim"]) == (2, 6, 2, 4)
    assert (facts["dtype"], facts["device"], facts["context"]) == ("float32", "cpu", 128)


@pytest.fixture
def own_folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_code_that_comes_with_a_model_is_not_run(own_folder, tmp_path):
    """auto_map names classes of the folder's own files; a model that transformers knows does without."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    code += "class Config(C): pass\nclass Model(M): config_class = Config\n"
    (own_folder / "own.py").write_text(code)
    file = own_folder / "config.json"
    named = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": named}))
    opened = open_model(ModelSettings(name=str(own_folder), device="cpu"), offline=True)
    assert type(opened.config) is LlamaConfig
    assert type(opened.load().model).__module__.startswith("transformers.")
    assert not ran.exists()


def test_weights_are_never_read_from_pickle(own_folder):
    opened = open_model(ModelSettings(name=str(own_folder), device="cpu"), offline=True)
    weights = opened.load().model.state_dict()
    (own_folder / "model.safetensors").unlink()
    torch.save(weights, own_folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        opened.load()
