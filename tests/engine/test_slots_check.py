"""`auto` is int8, unless int8 moves the model too far."""

import pytest
import torch

from scope_cli.engine import slots_check
from scope_cli.engine.plan import plan_run
from scope_cli.engine.run import new_cache, settled_shape
from scope_cli.formats.base import PLAIN, SHORT, SlotFormat
from scope_cli.settings.load import load_profile
from tests.helpers.caches import loaded_tiny


def shape_of(loaded, **keys):
    settings = load_profile("default", {"sampling.max_new_tokens": 5, **keys})
    plan = plan_run(settings, loaded.geometry, 10)
    return settings.profile, plan.shape


AUTO = {"cache.keys": "auto", "cache.values": "auto"}


def test_auto_is_int8_where_that_is_next_to_free(tmp_path, monkeypatch):
    loaded = loaded_tiny(tmp_path, "llama")
    monkeypatch.setattr(slots_check, "MOST_KL", 10.0)
    profile, shape = shape_of(loaded, **AUTO)
    assert shape.form == SHORT["int8"] and settled_shape(loaded, profile, shape) == (shape, None)
    assert new_cache(loaded, profile, shape).layers[0].keys.dtype == torch.int8


@pytest.mark.parametrize(("values", "otherwise"), [("auto", PLAIN), ("int4", SlotFormat("plain", "int4"))])
def test_auto_is_plain_where_int8_moves_the_model(tmp_path, monkeypatch, values, otherwise):
    loaded = loaded_tiny(tmp_path, "llama-32")
    monkeypatch.setattr(slots_check, "MOST_KL", -1.0)
    profile, shape = shape_of(loaded, **{**AUTO, "cache.values": values})
    settled, note = settled_shape(loaded, profile, shape)
    assert settled.form == otherwise and "move this model by a KL of" in note
    assert new_cache(loaded, profile, shape).shape.form == otherwise


def test_a_model_is_looked_at_once_and_only_for_auto(tmp_path, monkeypatch):
    loaded, looked = loaded_tiny(tmp_path, "llama"), []
    moved = slots_check.moved
    monkeypatch.setattr(slots_check, "moved", lambda *told: looked.append(1) or moved(*told))
    new_cache(loaded, *shape_of(loaded, **{"cache.keys": "int8"}))
    assert not looked
    for _ in range(3):
        new_cache(loaded, *shape_of(loaded, **AUTO))
    assert len(looked) == 1


def test_keys_with_a_few_very_large_channels_are_noticed(tmp_path):
    """As the biases of Qwen2.5 make them."""
    loaded = loaded_tiny(tmp_path, "qwen2", torch.float32)
    before = slots_check.moved(loaded, lambda shape: new_cache(loaded, shape_of(loaded)[0], shape))
    for layer in loaded.model.model.layers:
        layer.self_attn.k_proj.bias.data[::8] += 3000.0
    after = slots_check.moved(loaded, lambda shape: new_cache(loaded, shape_of(loaded)[0], shape))
    assert after > slots_check.MOST_KL and after > 3 * before
