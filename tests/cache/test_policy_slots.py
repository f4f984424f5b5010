"""Layers that are looked at together forget what they would forget one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.cache import shape
from scope_cli.cache.policy_slots import lowest
from scope_cli.policies.scorers.base import Scorer
from tests.policies.scorers.plain import LaneOf, written

SCORES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -3e38, 2.5, float("inf")])


@given(st.lists(SCORES, min_size=1, max_size=40), st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_lowest_are_found_the_older_first_among_equals(dtype, scores, data):
    positions = data.draw(st.permutations(range(len(scores))))
    most = data.draw(st.integers(1, len(scores)))
    wanted = sorted(range(len(scores)), key=lambda slot: (scores[slot], positions[slot]))[:most]
    found = lowest(
        torch.tensor([[scores]], dtype=dtype), torch.tensor([[positions]], dtype=torch.int32), most
    )
    assert found[0, 0].tolist() == wanted


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(
    "scorer", ["recency", "attention", "accumulated", "lru", "random", "cascade", "window", "keydiff"]
)
def test_how_many_layers_are_looked_at_together_changes_nothing(scorer, lanes, family, monkeypatch):
    texts = tuple(LaneOf(prompt=30 - 3 * lane, seed=lane, text=lane) for lane in range(lanes))
    states, together = [], []
    for numbers in (1, 2**20):
        monkeypatch.setattr(shape, "LOOKED_AT", numbers)
        *_, (cache, _) = written(scorer, 50, texts, family=family, dtype=torch.float32)
        together.append([len(layers.layers) for layers in cache.together])
        states.append({name: tensor.clone() for name, tensor in cache.tensors().items()})
        assert not cache.audit().problems and cache.reading().evictions
    assert set(together[0]) == {1}
    assert (max(together[1]) > 1) == (scorer != "keydiff")
    for name, tensor in states[0].items():
        if name.endswith(("positions", "vacant", "bias")):
            assert torch.equal(tensor, states[1][name]), name
        else:
            torch.testing.assert_close(tensor, states[1][name], msg=name)


def test_a_scorer_that_does_not_say_otherwise_sees_one_layer_at_a_time():
    assert not Scorer.together
