"""Whether a step may be the native one is found when a model is loaded, remembered, and said where not."""

import pytest
import torch

from scope_cli.engine.run import generate
from scope_cli.engine.step import EagerStep, NativeStep, new_step
from scope_cli.models import decoders
from scope_cli.models.architecture import geometry_of
from scope_cli.models.step_test import why_not_native
from tests.families import model_of
from tests.helpers.lanes import settings_of, work_of


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))


def asked(row, folder, dtype=torch.float32):
    from scope_cli.models.attention import ATTENTION

    model = model_of(row).to(dtype)
    model.save_pretrained(folder)
    model.set_attn_implementation(ATTENTION)
    return why_not_native(model, geometry_of(model.config), dtype, folder, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", ["llama", "gemma3_text", "phi3 (longrope)", "granite"])
def test_a_model_of_the_table_passes(native, tmp_path, row, dtype):
    assert asked(row, tmp_path, dtype) is None


def test_a_row_that_is_wrong_is_found_and_remembered(native, tmp_path, monkeypatch):
    monkeypatch.setitem(decoders.ROWS, "llama", decoders.Row(offset=0.5))
    assert asked("llama", tmp_path).startswith("it gives other numbers for this model")
    monkeypatch.undo()
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    assert asked("llama", tmp_path).startswith("it gives other numbers"), "not remembered"


def test_a_model_that_is_in_no_row_is_told(native, tmp_path):
    assert asked("gpt2", tmp_path) == "gpt2 models are not in its table"


def test_who_does_not_get_the_native_step_reads_one_note(native, models):
    from dataclasses import replace

    loaded, chosen = models["llama"], settings_of()
    works = [work_of(loaded, chosen, seed, 10, 3) for seed in range(2)]
    assert next(generate(loaded, chosen.profile, works)).notes == ()
    plain = replace(loaded, why_not_native="it is not wanted here")
    assert next(generate(plain, chosen.profile, works)).notes == (
        "the native step is not used, a token takes several times longer: it is not wanted here",
    )


def test_the_step_of_a_cpu_is_the_native_one_where_it_may_be(native, models):
    from scope_cli.engine.plan import shared_shape
    from scope_cli.engine.run import new_cache

    loaded, chosen = models["llama"], settings_of()
    shape = shared_shape([work_of(loaded, chosen, 1, 10, 3).plan], 1)
    cache = new_cache(loaded, chosen.profile, shape)
    for may, kind in ((True, NativeStep), (False, EagerStep)):
        assert type(new_step(loaded.model, cache, False, print, may)) is kind
