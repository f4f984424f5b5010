"""What every scorer promises; the test finds the files by itself."""

import pytest
import torch

from scope_cli import plugins
from scope_cli.scorers.base import SlotView
from tests.test_cache import loaded_tiny, walk


@pytest.fixture
def view(tmp_path):
    """The slots of a layer after 60 tokens, some of them evicted."""
    *_, cache = walk(loaded_tiny(tmp_path), 60, budget=16, recent=4, interval=4)
    return SlotView(cache, cache.policy_layers[1])


@pytest.fixture(params=plugins.names("scorers"))
def scorer(request):
    return plugins.build("scorers", request.param, {})


def test_scores_are_finite_float32_for_every_held_token(scorer, view):
    scores = scorer.score(view)
    assert scores.shape == view.positions.shape
    assert scores.dtype in (torch.float32, torch.float64)
    assert scores[view.positions >= 0].isfinite().all()
    assert scores[view.is_candidate].unique().numel() > 1, "candidates can be told apart"


def test_scoring_is_pure(scorer, view):
    before = {name: value.clone() for name, value in vars(view).items() if isinstance(value, torch.Tensor)}
    first = scorer.score(view)
    assert torch.equal(first, scorer.score(view))
    assert all(torch.equal(value, getattr(view, name)) for name, value in before.items())


def test_the_order_of_the_slots_does_not_matter(scorer, view):
    order = torch.randperm(view.positions.shape[2])
    expected = scorer.score(view)[:, :, order]
    view.keys, view.values = view.keys[:, :, order], view.values[:, :, order]
    for name in ("positions", "is_prompt", "is_recent", "is_candidate"):
        setattr(view, name, getattr(view, name)[:, :, order])
    torch.testing.assert_close(scorer.score(view), expected)
