"""What `auto` means is one rule: whoever loads, plans or measures asks it."""

import pytest
import torch

from scope_cli.measure.profiling.source import source_of, target_of
from scope_cli.models import choices
from scope_cli.models.model import open_model
from scope_cli.settings.schema import ModelSettings


@pytest.fixture(params=[True, False], ids=["amx", "no amx"])
def amx(request, monkeypatch):
    monkeypatch.setattr(choices, "has_amx", lambda: request.param)
    return request.param


@pytest.mark.parametrize("lanes", [1, 7, 8, 32])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_a_plan_has_the_dtype_that_the_model_is_opened_with(tiny_folder, amx, lanes, dtype):
    settings = ModelSettings(name=str(tiny_folder), device="cpu", dtype=dtype)
    planned = target_of(source_of(settings.name), settings, memory_given=False, lanes=lanes)
    opened = open_model(settings, offline=True, lanes=lanes)
    assert planned.dtype == str(opened.dtype).removeprefix("torch.")
    assert planned.weight_bytes == opened.weight_bytes and planned.load_in == opened.load_in
    by_rule = "bfloat16" if amx and lanes >= 8 else "float32"
    assert planned.dtype == (by_rule if dtype == "auto" else dtype)


def test_eight_lanes_asked_of_a_batch_are_opened_as_eight_lanes_of_generate(
    scope, tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(choices, "has_amx", lambda: True)
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in "abcdefgh":
        (prompts / f"{name}.txt").write_text(f"prompt {name}")
    out = tmp_path / "out"
    argv = ("--model", tiny_folder, "--device", "cpu", "--max-new-tokens", 2, "--lanes", 8)
    result = scope("batch", prompts, "-o", out, *argv)
    assert result.code == 0, result.stderr
    record = (out / "a.txt.run.json").read_text()
    assert '"dtype": "bfloat16"' in record
    assert "cpu bfloat16" in scope("generate", "hi", "--samples", 8, *argv[:-2]).stderr


def test_the_rule_by_hand(amx):
    def of(name="auto", device="cpu", stored="float16", load_in=None, lanes=1, quantised=None):
        return choices.dtype_of(name, device, stored, load_in, lanes, quantised)

    assert of() == of(lanes=7) == of(load_in="int4", lanes=8) == "float32"
    assert of(lanes=8) == ("bfloat16" if amx else "float32")
    assert of(device="cuda:0") == of(device="cuda", lanes=8) == "float16"
    assert of(device="mps", stored=None) == "bfloat16"
    assert of(device="cuda", stored="float32", quantised="Q4_K, Q6_K") == "bfloat16"
    assert of(device="cuda", stored="float32", quantised="F32") == "float32"
    assert of(device="cuda", stored="float16", quantised="F16") == "float16"
    assert of(stored="float32", quantised="Q4_K") == of("float32", "cuda", quantised="Q4_K") == "float32"
    assert of("float64", "cuda") == of("float64", lanes=8) == "float64"


def test_this_machines_amx_is_what_torch_finds():
    assert choices.has_amx() == torch.cpu._is_amx_tile_supported()
