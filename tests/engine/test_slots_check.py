"""`auto` is int8, unless int8 moves the model too far, or a step would have to unpack it in PyTorch."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from scope_cli.api import generate as written
from scope_cli.engine import slots_check, slots_known
from scope_cli.engine.run import new_cache, new_work
from scope_cli.engine.slots_check import computed, moved, settle, slots_of
from scope_cli.errors import ModelError
from scope_cli.events import Started
from scope_cli.formats.base import PLAIN, SHORT, SlotFormat
from scope_cli.machine import memory
from scope_cli.settings.load import load_profile
from scope_cli.settings.policy import CacheSettings
from tests.helpers.caches import loaded_tiny

LONG = list(range(slots_check.LOOKED_AT + 5))


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(slots_known, "_found", {})
    monkeypatch.setattr(slots_check, "reads_packed", lambda loaded: True)
    save_file({}, tmp_path / "model.safetensors")  # what a model is known by


@pytest.fixture
def kl(monkeypatch):
    """What a text moves the model by, by its length; and the lengths that were asked for."""
    passage, found, asked = len(slots_check.PASSAGE), {}, []

    def fake(loaded, ids):
        asked.append(len(ids))
        return found["passage" if len(ids) == passage else "prompt"]

    monkeypatch.setattr(slots_check, "moved", fake)
    found.update(passage=0.0, prompt=0.0)
    return found, asked


def settings(**keys):
    return load_profile("default", {"sampling.max_new_tokens": 5, **keys})


def test_auto_is_the_default():
    assert CacheSettings().kv == "auto" and settings().open_slots


def test_auto_is_int8_where_that_is_next_to_free(tmp_path, kl):
    loaded = loaded_tiny(tmp_path, "llama")
    work = new_work(settings(), loaded.geometry, LONG)
    settled, (same,) = settle(loaded, settings(), [work])
    assert same == work and settled.profile.cache.kv == "int8" and not settled.open_slots
    cache = new_cache(loaded, settled.profile, work.plan.shape)
    assert cache.layers[0].keys.dtype == torch.int8


@pytest.mark.parametrize(("values", "otherwise"), [("auto", PLAIN), ("int4", SlotFormat("plain", "int4"))])
def test_auto_is_plain_where_int8_moves_the_model(tmp_path, kl, values, otherwise):
    kl[0]["passage"] = 0.3
    loaded, asked = loaded_tiny(tmp_path, "llama-32"), settings(**{"cache.values": values})
    settled, (work,) = settle(loaded, asked, [new_work(asked, loaded.geometry, LONG)])
    assert settled.profile.cache.form == work.plan.shape.form == otherwise
    assert work.notes == (
        f"slots are {otherwise}: in int8 they move this model by a KL of 0.3, 0.005 is the most",
    )
    assert new_cache(loaded, settled.profile, work.plan.shape).shape.form == otherwise


def test_one_prompt_is_looked_at_as_well(tmp_path, kl):
    loaded = loaded_tiny(tmp_path)
    kl[0]["prompt"] = 0.01
    works = [new_work(settings(), loaded.geometry, LONG) for _ in range(3)]  # its samples
    settled, works = settle(loaded, settings(), works)
    assert settled.profile.cache.kv == "plain" and "a KL of 0.01 on this prompt" in works[2].notes[0]
    assert kl[1][1:] == [slots_check.LOOKED_AT]


def test_of_several_prompts_none_decides_for_the_others(tmp_path, kl):
    loaded = loaded_tiny(tmp_path)
    kl[0]["prompt"] = 0.01
    works = [new_work(settings(), loaded.geometry, ids) for ids in (LONG, LONG[1:])]
    assert settle(loaded, settings(), works)[0].profile.cache.kv == "int8" and len(kl[1]) == 1


def test_a_prompt_that_is_too_short_says_nothing(tmp_path, kl):
    loaded = loaded_tiny(tmp_path)
    kl[0]["prompt"] = 0.01
    works = [new_work(settings(), loaded.geometry, LONG[: slots_check.COMPARED - 1])]
    assert settle(loaded, settings(), works)[0].profile.cache.kv == "int8"


def test_a_model_is_looked_at_once_and_only_for_auto(tmp_path, kl, monkeypatch):
    loaded, asked = loaded_tiny(tmp_path), kl[1]
    slots_of(loaded, settings(**{"cache.kv": "k8v4"}))
    assert asked == []
    for _ in range(2):
        slots_of(loaded, settings())
    assert len(asked) == 1
    monkeypatch.setattr(slots_known, "_found", {})  # as another process
    slots_of(loaded, settings())
    assert len(asked) == 1
    (note,) = (tmp_path / "cache" / "slots").iterdir()
    note.write_text("{")
    monkeypatch.setattr(slots_known, "_found", {})
    slots_of(loaded, settings())
    assert len(asked) == 2 and json.loads(note.read_text())["kl"] == 0.0


def test_what_a_model_is_known_by_is_all_that_its_numbers_depend_on(tmp_path):
    one = computed(loaded_tiny(tmp_path).opened)
    others = [replace(one, dtype="bfloat16"), replace(one, load_in="int4"), replace(one, device="cuda")]
    assert len({other.note for other in (one, *others)}) == 4
    before = one.note
    (tmp_path / "config.json").write_text("{}")
    assert one.note != before


def test_nothing_is_written_where_the_folder_cannot_be(tmp_path, kl, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    loaded = loaded_tiny(tmp_path)
    for _ in range(2):
        slots_of(loaded, settings())
    assert len(kl[1]) == 1


def test_a_plan_counts_auto_as_int8_until_more_is_known(tmp_path, kl):
    loaded = loaded_tiny(tmp_path)
    known = computed(loaded.opened)
    assert known.foreseen(settings()).profile.cache.form == SHORT["int8"]
    known.remember(float("inf"))
    assert known.foreseen(settings()).profile.cache.kv == "plain"
    assert known.foreseen(settings(**{"cache.kv": "int8"})).profile.cache.kv == "int8"
    (tmp_path / "model.safetensors").unlink()
    assert known.foreseen(settings()).open_slots, "a plan needs no weights"
    assert replace(known, device="mps").foreseen(settings()).profile.cache.kv == "plain"


def test_a_step_without_a_kernel_for_int8_slots_has_plain_ones(tmp_path, kl, monkeypatch):
    monkeypatch.setattr(slots_check, "reads_packed", lambda loaded: False)
    settled, why = slots_of(loaded_tiny(tmp_path), settings())
    assert settled.profile.cache.kv == "plain" and why.startswith("slots are plain: without a kernel")
    assert kl[1] == []


def test_which_steps_read_int8_slots(tmp_path, monkeypatch):
    monkeypatch.undo()
    loaded = loaded_tiny(tmp_path)
    monkeypatch.setattr(slots_check, "why_not", lambda: None)
    assert slots_check.reads_packed(loaded)
    assert not slots_check.reads_packed(replace(loaded, why_not_native="not in the table"))
    monkeypatch.setattr(slots_check, "why_not", lambda: "no compiler")
    assert not slots_check.reads_packed(loaded)
    for device, kernel, reads in (("cuda", None, False), ("cuda", print, True), ("mps", print, False)):
        monkeypatch.setattr(slots_check.attention, "KERNEL", kernel)
        there = replace(loaded, opened=replace(loaded.opened, device=torch.device(device)))
        assert slots_check.reads_packed(there) == reads


@pytest.mark.parametrize(
    ("dtype", "head_dim", "taken"),
    [("bfloat16", 256, True), ("float32", 128, True), ("float32", 256, False), ("float64", 64, False)],
)
def test_the_kernel_takes_heads_that_fit_every_cards_shared_memory(monkeypatch, dtype, head_dim, taken):
    """tests/models/test_kernel_compiles.py: what it takes compiles for all of them."""
    monkeypatch.setattr(slots_check.attention, "KERNEL", print)
    assert slots_check.attention.kernel_takes(getattr(torch, dtype), head_dim) == taken


def test_plain_slots_that_do_not_fit_are_told_before_anything_is_written(tmp_path, kl, monkeypatch):
    kl[0]["passage"] = 1.0
    loaded = loaded_tiny(tmp_path)
    work = new_work(settings(), loaded.geometry, LONG)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(ModelError, match="not enough memory"):
        settle(loaded, settings(), [work])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_text_is_read_both_ways_in_any_dtype(tmp_path, dtype):
    found = moved(loaded_tiny(tmp_path, "llama", dtype), LONG)
    assert 0 < found < 0.5


def test_a_model_that_gives_no_numbers_gets_plain_slots(tmp_path):
    loaded = loaded_tiny(tmp_path)
    loaded.model.lm_head.weight.data[:] = float("nan")
    settled, why = slots_of(loaded, settings())
    assert settled.profile.cache.kv == "plain" and "a KL of inf" in why
    assert computed(loaded.opened).known_kl() == float("inf")


def test_keys_with_a_few_very_large_channels_are_noticed(tmp_path):
    """As the biases of Qwen2.5 make them."""
    loaded = loaded_tiny(tmp_path, "qwen2", torch.float32)
    before = moved(loaded, LONG)
    for layer in loaded.model.model.layers:
        layer.self_attn.k_proj.bias.data[::8] += 3000.0
    after = moved(loaded, LONG)
    assert after > slots_known.MOST_KL and after > 3 * before


def test_from_python_a_run_says_which_slots_it_has(tmp_path, kl):
    loaded = loaded_tiny(tmp_path)
    for most, form in ((0.0, "int8"), (1.0, "plain")):
        slots_known._found.clear()
        kl[0]["passage"] = most
        computed(loaded.opened).note.unlink(missing_ok=True)
        text = written(loaded, "hello", changes={"sampling.max_new_tokens": 3})
        "".join(text)
        assert isinstance(text.started, Started) and text.started.profile["cache"]["kv"] == form
        assert ("slots int8" in text.started.policy) == (form == "int8")
        assert any("in int8 they move" in note for note in text.started.notes) == (form == "plain")
