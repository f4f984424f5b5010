"""The embedded model: the plan's peaks are within 5% of what is measured."""

import pytest

from scope_cli.measure.profiling.runner import run_job
from scope_cli.measure.profiling.worker import Measurement
from tests.helpers.plain import load_profile

pytestmark = pytest.mark.real_model


@pytest.mark.parametrize(
    ("prompt_tokens", "keys"),
    [
        pytest.param(200, {"decode.strategy": "slide", "model.load_in": None}, marks=pytest.mark.long),
        (600, {"decode.strategy": "adaptive", "prefill.method": "snapkv", "prefill.budget": "50%"}),
        (900, {"decode.strategy": "slide", "cache.kv": "int8"}),
        pytest.param(900, {"decode.strategy": "slide", "cache.kv": "k8v4"}, marks=pytest.mark.long),
    ],
)
def test_peaks_are_as_planned(prompt_tokens, keys):
    sizes = {"decode.budget": 64, "decode.recent": 16, "sampling.max_new_tokens": 90}
    settings = load_profile("default", {**sizes, "sampling.ignore_eos": True, **keys})
    typed = sorted(settings.typed)
    job = Measurement(
        "x", settings.profile.as_dict(), settings.source, typed, None, prompt_tokens, offline=True
    )
    result = run_job(job, lambda *_: None)
    errors = result.errors()
    assert result.transfer.evictions > 0 and result.audit == []
    assert {errors[key] for key in errors if key.startswith("kv_")} == {0.0}
    assert all(abs(errors[peak]) < 5 for peak in ("prefill_peak", "decode_peak")), errors
