"""The attention that a step tells a scorer: what the scorer would compute, and only where somebody asks."""

import pytest
import torch
from torch import Tensor

from scope_cli.formats.base import PLAIN, SHORT
from scope_cli.models.architecture import geometry_of
from scope_cli.models.native_step import NativeStep
from tests.native.test_step import TOKENS, Run, model_for, prompt_of


def told_and_computed(native, run: Run) -> list[tuple[Tensor, Tensor]]:
    """Attention of every token of 24, of layers together: as the step tells it, and from the queries."""
    found, forget = [], run.cache.evict

    def compare(facts, most):
        for layers in run.cache.together:
            told = layers.view(facts).attention(window=1)
            given, run.cache.told = run.cache.told, False
            found.append((told.clone(), layers.view(facts).attention(window=1)))
            run.cache.told = given
            assert given and told.data_ptr() == layers.slots.told.data_ptr()
        forget(facts, most)

    run.cache.evict = compare
    run.logits(NativeStep(run.model, run.cache, native.library))
    return found


@pytest.mark.parametrize("form", [PLAIN, SHORT["int8"]], ids=["plain", "int8"])
@pytest.mark.parametrize("row", ["llama", "gemma3_text", "qwen3", "phi3"])
@pytest.mark.parametrize("scorer", ["attention", "accumulated"])
def test_a_step_tells_the_attention_that_scorers_compute(native, monkeypatch, row, form, scorer):
    model = model_for(row)
    if form.packs and form.problem(geometry_of(model.config).layers[0].head_dim):
        pytest.skip("heads that cannot be packed")
    told_in = {}
    for instructions in native.all_instructions():
        native.use(instructions)
        run = Run(model, [prompt_of(70, 0), prompt_of(381, 1)], scorer=scorer, form=form)
        told_in[instructions] = told_and_computed(native, run)
        assert len(told_in[instructions]) >= (TOKENS if scorer == "accumulated" else 8)
        for told, computed in told_in[instructions]:
            torch.testing.assert_close(told, computed, atol=2e-6 if not form.packs else 1e-4, rtol=1e-3)
    for pairs in zip(*told_in.values(), strict=True):
        assert all(torch.equal(told, pairs[0][0]) for told, _ in pairs)


def test_it_tells_only_where_somebody_asks_and_it_is_what_is_meant(native):
    model = model_for("llama")
    for more, tells in (
        ({"scorer": "attention"}, True),
        ({"scorer": "attention", "form": SHORT["int8"], "exact": 2}, False),
        ({"scorer": "recency"}, False),
    ):
        run = Run(model, [prompt_of(70, 0)], **more)
        step = NativeStep(model, run.cache, native.library)
        found = []
        for token in range(TOKENS):
            step(torch.tensor([[token]]))
            told, before = run.cache.told, run.cache.count(0).evictions
            run.cache.end_step()
            found.append((told, run.cache.count(0).evictions > before))
            assert not run.cache.told
        assert {evicts for _, evicts in found} == {False, True}
        assert all(told == (tells and evicts) for told, evicts in found)
