"""Known outputs replayed under a policy: the model's own logits, with the prompt read once or each time."""

import pytest
import torch

from scope_cli.engine.replay import read_once, replay
from scope_cli.engine.run import generate, new_work
from scope_cli.events import Token
from tests.helpers.caches import loaded_tiny
from tests.helpers.plain import load_profile

PROMPT = list(b"The keeper of the lighthouse wrote every evening, and then he went up the stairs once more.")
WINDOW = {"name": "window", "window": 16, "memory": 0.5}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("scorer", ["attention", "random", "accumulated", "lru", WINDOW])
def test_the_replayed_logits_give_the_log_probabilities_of_the_run(tmp_path, family, scorer):
    loaded = loaded_tiny(tmp_path, family)
    settings = load_profile(
        "default",
        {
            "decode.scorer": scorer,
            "decode.budget": 24,
            "decode.interval": 6,
            "sampling.max_new_tokens": 80,
            "sampling.ignore_eos": True,
        },
    )
    work = new_work(settings, loaded.geometry, PROMPT)
    run = [event for event in generate(loaded, settings.profile, [work]) if isinstance(event, Token)]
    ids = [event.token_id for event in run]
    for state in (None, read_once(loaded, PROMPT)):
        replayed = list(replay(loaded, settings, PROMPT, ids, state))
        logits = torch.cat([logits for logits, _ in replayed])
        got = logits.log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
        expected = torch.tensor([event.logprob for event in run])
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)
        assert replayed[-1][1].reading().evictions == run[-1].reading.evictions > 5
    assert (state is None) == (family == "gemma3")
