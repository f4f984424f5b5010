"""Scores against the plain formula; and what every probe has to notice."""

import pytest
import torch

from scope_cli.engine.replay import replay
from scope_cli.measure.evaluate.probes import KINDS, make_probe
from scope_cli.measure.evaluate.recall import AskedModel, recall
from scope_cli.measure.evaluate.statistics import Blocks, paired_difference
from scope_cli.models.model import open_model
from scope_cli.settings.schema import ModelSettings
from tests.helpers.caches import loaded_tiny
from tests.helpers.plain import load_profile
from tests.measure.evaluate.newest_go import broken

FEW = ("list",)  # each takes 11 CPU seconds; make test-long tries all
SMALL = {"decode.budget": 24, "decode.interval": 6}


def asked_tiny(tmp_path, kind, tokens=300):
    loaded = loaded_tiny(tmp_path)

    def encode(text):
        return list(text.encode())

    return AskedModel.of(loaded, make_probe(kind, 0, tokens, encode, encode))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_scores_its_own_tokens(tmp_path, kind):
    asked = asked_tiny(tmp_path, kind)
    settings = load_profile("default", {**SMALL, "sampling.max_new_tokens": len(asked.probe.output_ids)})
    found = recall(asked, settings)
    ids = asked.probe.output_ids
    logits = torch.cat([rows for rows, _cache in replay(asked.loaded, settings, asked.probe.prompt_ids, ids)])
    rows = logits.log_softmax(-1)
    for answer, question in zip(found.answers, asked.probe.questions, strict=True):
        span = range(question.start, question.start + question.tokens)
        logprobs = [rows[at, ids[at]].item() for at in span]
        ranks = [sum(other > rows[at, ids[at]] for other in rows[at]).item() for at in span]
        assert answer.logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
        assert answer.rank == max(ranks)
        assert answer.hits == sum(rank == 0 for rank in ranks) / len(ranks)
        assert answer.exact == (max(ranks) == 0)
        assert answer.at == question.at


def test_evictions_between_a_fact_and_its_question_are_counted(tmp_path):
    """slide with budget 24 and interval 6 evicts when token 25 has been fed, then at every sixth."""
    asked = asked_tiny(tmp_path, "output-fact")
    found = recall(asked, load_profile("default", {**SMALL, "decode.strategy": "slide"}))

    def evictions(fed):
        return max(0, (fed - 25) // 6 + 1)

    for answer, question in zip(found.answers, asked.probe.questions, strict=True):
        assert answer.evictions == evictions(question.start) - evictions(question.stated)
    assert found.answers[0].evictions > 10


def test_full_against_full_is_exactly_zero(tmp_path):
    asked = asked_tiny(tmp_path, "output-fact")
    assert recall(asked, load_profile("full")) == recall(asked, load_profile("full"))


@pytest.fixture(scope="module")
def embedded():
    return open_model(ModelSettings(name="smollm2-135m", load_in=None)).load()


@pytest.mark.real_model
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in FEW else pytest.mark.long) for kind in KINDS]
)
def test_a_policy_that_evicts_the_newest_is_caught_by_every_probe(embedded, kind, monkeypatch):
    """Caught: its answers are less probable than the full cache's, also where the interval leaves doubt.

    Holding the newest in place of the oldest is not caught so where the answers stand in the (protected)
    prompt: there the broken policy fails because it forgets what it is being asked.
    """
    encode = lambda text: embedded.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    plain = load_profile("full").profile.prompt
    asked = AskedModel.of(
        embedded, make_probe(kind, 0, 192, lambda text: embedded.opened.encode(text, plain), encode)
    )
    keys = {"decode.budget": 32, "decode.recent": 1, "decode.interval": 8, "decode.scorer": "recency"}
    policy = load_profile("default", keys)
    full, sound = recall(asked, load_profile("full")), recall(asked, policy)
    with broken(monkeypatch):
        wrong = recall(asked, policy)

    def difference(one, other):
        first, second = (Blocks.of([a.logprob for a in found.answers], block=1) for found in (one, other))
        return paired_difference([first], [second])

    assert difference(full, full).mean == 0
    caught = difference(wrong, full)
    assert caught.mean < -0.25
    assert caught.high is None or caught.high < 0
    assert (caught.high is None) == kind.endswith("fact"), "three questions are too few for an interval"
    if kind != "output-fact":
        assert difference(sound, full).mean > caught.mean / 2
