"""From a GGUF file's blocks straight into packed weights: the very codes, in little memory, resumable."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scope_cli.errors import ModelError
from scope_cli.models import tensor_file
from scope_cli.models.gguf.blocks import EXACT
from scope_cli.models.model import open_model
from scope_cli.models.packed import PackedEmbedding, PackedLinear
from scope_cli.models.registry import find
from scope_cli.settings.schema import ModelSettings
from tests.models.gguf.files import FIXED, write


def opened(path, say=lambda line: None, **settings):
    return open_model(ModelSettings(name=str(path), device="cpu", **settings), say=say)


def pairs(packed, plain):
    """(name, weight as packed, plain weight) of what is packed."""
    for name, module in packed.model.named_modules():
        if isinstance(module, PackedLinear):
            yield name, module.weight, plain.model.get_submodule(name).weight
        elif isinstance(module, PackedEmbedding):
            rows = torch.arange(module.num_embeddings)
            yield name, module(rows), plain.model.get_submodule(name).weight


@pytest.mark.parametrize("architecture", FIXED)
def test_every_architecture_is_packed_from_its_blocks_to_the_very_weights(tmp_path, architecture):
    path = write(tmp_path / "tiny.gguf", architecture, kind="Q8_0").path
    packed = opened(path).load(attention="sdpa")
    files = {file.name for file in packed.opened.folder.path.iterdir()}
    assert "packed-int8.safetensors" in files
    assert "model.safetensors" not in files
    plain = opened(path, load_in=None).load(attention="sdpa")
    for name, ours, theirs in pairs(packed, plain):
        if "layers" not in name:  # head and table are no Q8_0 in the file
            assert torch.allclose(ours, theirs, atol=float(theirs.abs().max()) / 200), name
        else:
            assert torch.equal(ours, theirs), name
    for name, module in plain.model.named_modules():  # and all of the rest is what it was
        kept = packed.model.get_submodule(name)
        if not isinstance(kept, PackedLinear | PackedEmbedding):
            own = dict(module.named_parameters(recurse=False))
            there = dict(kept.named_parameters(recurse=False))
            assert own.keys() == there.keys() and all(torch.equal(own[one], there[one]) for one in own)


@pytest.mark.parametrize(("kind", "load_in"), [(kind, f"int{4 if n == 0 else 8}") for kind, n in EXACT])
def test_types_that_are_held_exactly_keep_every_weight(tmp_path, kind, load_in):
    path = write(tmp_path / "tiny.gguf", kind=kind, hidden_size=512, intermediate_size=768).path
    packed = opened(path, load_in=load_in).load(attention="sdpa")
    plain = opened(path, load_in=None).load(attention="sdpa")
    assert packed.opened.loss < 1e-3 if kind == "Q4_K" else packed.opened.loss == 0
    for name, ours, theirs in pairs(packed, plain):
        if "layers" not in name:  # head and table have 8 bits in both forms
            continue
        scale = theirs.abs().max() / 1000 if kind == "Q4_K" else 1e-7  # Q4_K's scales are rounded to float16
        assert (ours - theirs).abs().max() <= scale, name


def test_the_first_start_says_what_it_takes_and_the_second_has_nothing_to_do(tmp_path):
    path, told = write(tmp_path / "tiny.gguf", kind="Q4_1").path, []
    model = opened(path, told.append)
    assert told == [] and model.loading_bytes == 0
    loaded = model.load(attention="sdpa")
    assert len(told) == 1 and told[0].startswith("packing tiny.gguf to int4, once: ")
    file = model.folder.path / "packed-int4.safetensors"
    assert abs(file.stat().st_size - model.weight_bytes) < 10_000
    again = opened(path, told.append)
    assert len(told) == 1 and again.weight_bytes == model.weight_bytes
    pages = again.load(attention="sdpa").model.lm_head.packed
    assert torch.equal(pages, loaded.model.lm_head.packed) and len(told) == 1


def test_where_the_disk_has_no_room_nothing_is_begun(tmp_path, monkeypatch):
    path = write(tmp_path / "tiny.gguf", kind="Q4_1").path
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"packing tiny\.gguf to int4 takes .* are free there"):
        opened(path).load(attention="sdpa")
    assert not list(find(str(path)).path.glob("*.safetensors*"))


def test_a_conversion_that_was_killed_goes_on_where_it_was(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "tiny.gguf", kind="Q4_1").path
    model = opened(path)
    whole = model.load(attention="sdpa").opened.folder.path / "packed-int4.safetensors"
    expected = whole.read_bytes()
    whole.unlink()

    monkeypatch.setattr(tensor_file, "MARK_BYTES", 1)  # every tensor is noted
    written = []

    def killed(self, task, completed):
        written.append(completed)
        if len(written) == 8:
            raise KeyboardInterrupt

    made = counting(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rich.progress.Progress.update", killed)
        opened(path).load(attention="sdpa")
    before = len(made)
    assert not whole.exists() and before > 0
    opened(path).load(attention="sdpa")
    assert whole.read_bytes() == expected
    assert len(made) < before + len(set(made)), "what was done was done again"
    assert not list(whole.parent.glob(".*part*"))


def counting(monkeypatch):
    """The names of the matrices whose rows are read, as often as they are."""
    from scope_cli.models.gguf import packing

    made = []
    rows = packing.Rows

    def counted(header, weight):
        made.append(weight.name)
        return rows(header, weight)

    monkeypatch.setattr(packing, "Rows", counted)
    return made


PEAK = """
import sys
from pathlib import Path
import gguf.quants  # what is imported, and the model's modules, are no part of the conversion
from scope_cli.models.model import open_model
from scope_cli.models.skeleton import skeleton
from scope_cli.models.packing import entries_of
from scope_cli.models.tensor_file import write
from scope_cli.settings.schema import ModelSettings

def field(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

model = open_model(ModelSettings(name=sys.argv[1], device="cpu"))
entries = entries_of(model.folder, skeleton(model.config, model.dtype), 4 if model.load_in == "int4" else 8)
before = field("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
write(Path(sys.argv[2]), entries, "key")
print(field("VmHWM") - before, sum(entry.bytes for entry in entries))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_packing_takes_less_memory_than_the_packed_model_and_two_tensors(tmp_path, kind):
    """Q6_K through its numbers, some rows at a time."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2}
    path = write(tmp_path / "tiny.gguf", kind=kind, **sizes).path
    run = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "out")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(run, check=True, capture_output=True, text=True, env=env)
    grown, packed = map(int, ran.stdout.split())
    assert grown < packed + 2 * 2048 * 8192, (grown, packed)
    assert grown < 100 * 2**20, grown


def test_few_rows_stay_plain(tmp_path):
    model = opened(write(tmp_path / "tiny.gguf", "qwen3moe", kind="Q8_0").path).load(attention="sdpa").model
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    assert gates and not any(isinstance(gate, PackedLinear) for gate in gates)
    assert isinstance(model.model.layers[0].self_attn.q_proj, PackedLinear)


def test_whoever_keeps_states_converts_nothing(scope, tmp_path):
    """A state says of what model it is: by the file itself, not by a plain copy of its weights."""
    path = write(tmp_path / "tiny.gguf", kind="Q4_1").path
    text, said = tmp_path / "text.txt", ("--max-new-tokens", "4", "--ignore-eos", "--model", path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    for command in (
        ("generate", "hi", "--output", text, "--keep-checkpoint"),
        ("prompt", "save", "hi", "--output", tmp_path / "hi.scope"),
        ("generate", "--prompt-cache", tmp_path / "hi.scope"),
        ("batch", tmp_path / "prompts.jsonl", "--output-dir", tmp_path / "out", "--checkpoint-every", "0"),
    ):
        ran = scope(*command, *(said if command[0] != "prompt" else said[3:]))
        assert ran.code == 0, ran.stderr
    ran = scope("resume", text, "--max-new-tokens", "8")
    assert ran.code == 0, ran.stderr
    assert [file.name for file in find(str(path)).path.glob("*.safetensors")] == ["packed-int4.safetensors"]
