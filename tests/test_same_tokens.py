"""With a budget that fits everything, every strategy writes what transformers' own `generate` writes."""

import pytest
import torch

from tests.helpers.greedy import plain, write
from tests.helpers.tiny import FAMILIES, tiny_model

PROMPT = list(b"The keeper of the lighthouse wrote every evening, and ")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["full", "slide", "adaptive", "discontinuous"])
def test_a_budget_that_fits_everything_changes_no_token(family, strategy):
    expected = plain(tiny_model(family, torch.float32, "sdpa"), PROMPT, 60)
    assert len(set(expected)) > 10, "the text must be one that can differ"
    got = write(tiny_model(family, torch.float32), PROMPT, 60, strategy=strategy, budget=10_000, recent=64)
    assert got == expected


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mistral-window"])
def test_a_small_budget_does_change_the_text(family):
    """So the test above compares something that could have differed."""
    model = tiny_model(family, torch.float32)
    small = write(model, PROMPT, 60, strategy="slide", budget=8, recent=4)
    assert small != write(model, PROMPT, 60, strategy="full")
