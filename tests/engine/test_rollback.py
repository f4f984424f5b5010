"""What was taken back has left no trace: what stays is what a lane computes that was only fed that."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scope_cli.engine import decode, rollback
from scope_cli.engine.loops import ExactWatch, LoopWatch, NearWatch
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import Run
from scope_cli.engine.sampling import AS_SET, Asked, Change, Sampler
from scope_cli.events import Finished, TakenBack, Token
from scope_cli.machine.gauge import PeakMeter
from scope_cli.settings.schema import SamplingSettings
from tests.engine.test_state import Notebook, going_on
from tests.helpers.lanes import SCORERS, settings_of, work_of
from tests.helpers.picking import pick

STRATEGIES = ["slide", "adaptive", "discontinuous", "rpc", "full"]


class Coarse(ExactWatch):
    """Sees an id's remainder alone, so that a random model is in a loop every few tokens."""

    def feed(self, token_id):
        return super().feed(token_id % 4)

    def note(self, token_id):
        self.feed(token_id)


SHORT = partial(Coarse, 6, 2, 6)


@pytest.fixture(autouse=True)
def loops_are_short(monkeypatch):
    monkeypatch.setattr(decode.Lane.__dataclass_fields__["watch"], "default_factory", SHORT)
    init = decode.Lane.__init__
    monkeypatch.setattr(
        decode.Lane, "__init__", lambda self, *args, **more: init(self, *args, **({"watch": SHORT()} | more))
    )
    monkeypatch.setattr(rollback, "EVERY", 7)
    monkeypatch.setattr(rollback, "WARM", 5)
    monkeypatch.setattr(rollback, "ANOTHER", 20)


def events_of(loaded, chosen, works, shape, keep=None, interrupted=lambda: False):
    with PeakMeter(loaded.device) as peak:
        return list(Run(loaded, chosen.profile, shape, peak, keep=keep).run(works, interrupted))


def by_prompt(events, kind):
    found = {}
    for event in events:
        if isinstance(event, kind):
            found.setdefault(event.prompt, []).append(event)
    return found


def told(tokens):
    return [(one.n, one.token_id, one.logprob, one.text) for one in tokens]


def looping(on_loop="rollback", **more):
    return settings_of(**{"sampling.on_loop": on_loop, "sampling.max_new_tokens": 60, **more})


def works_of(loaded, chosen, lengths, temperature):
    return [
        work_of(loaded, chosen, seed, tokens, new_tokens=60, temperature=temperature)
        for seed, tokens in enumerate(lengths)
    ]


def fed(loaded, chosen, works, shape, ids, monkeypatch):
    """The same prompts in lanes that take back nothing and are given these ids, by prompt."""
    calm = [replace(one, sampling=one.sampling.model_copy(update={"on_loop": "ignore"})) for one in works]
    calm = [
        replace(one, plan=replace(one.plan, max_new_tokens=len(ids[number])))
        for number, one in enumerate(calm)
    ]

    def known(self, logits, so_far, change=None):
        prompt = so_far[0].tolist()
        number = next(n for n, one in enumerate(works) if prompt[: len(one.prompt_ids)] == one.prompt_ids)
        one = torch.tensor([[ids[number][len(prompt) - len(works[number].prompt_ids)]]])
        return Asked(logits, logits, known=one)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "ask", known)
        return by_prompt(events_of(loaded, chosen, calm, shape), Token)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_what_stays_is_bit_for_bit_what_a_lane_computes_that_was_fed_it(models, named, data):
    loaded = models[data.draw(st.sampled_from(["llama", "gemma3", "llama-mqa"]), "family")]
    chosen = looping(
        **{
            "decode.strategy": data.draw(st.sampled_from(STRATEGIES), "strategy"),
            "decode.scorer": named(data.draw(st.sampled_from(SCORERS), "scorer"), loaded.geometry),
            "decode.interval": "auto",
            "cache.kv": data.draw(st.sampled_from(["plain", "int8"]), "kv"),
        }
    )
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3), "prompts")
    works = works_of(loaded, chosen, lengths, data.draw(st.sampled_from([0.0, 0.3]), "temperature"))
    shape = shared_shape([one.plan for one in works], data.draw(st.integers(1, len(works)), "lanes"))
    events = events_of(loaded, chosen, works, shape)
    tokens = by_prompt(events, Token)
    ids = {number: [one.token_id for one in found] for number, found in tokens.items()}
    with pytest.MonkeyPatch.context() as patch:
        calm = fed(loaded, chosen, works, shape, ids, patch)
    for number, found in tokens.items():
        assert told(found) == told(calm[number])
    check(events, tokens)


def check(events, tokens):
    """Told once and in order; what was taken back begins otherwise now, and the end says all of it."""
    ends = by_prompt(events, Finished)
    for number, found in tokens.items():
        (end,) = ends[number]
        assert end.audit.passed
        assert [one.n for one in found] == list(range(1, end.output_tokens + 1))
        assert list(end.taken_back) == by_prompt(events, TakenBack).get(number, [])


def test_a_loop_of_a_greedy_model_is_taken_back_and_its_first_token_does_not_follow(models):
    loaded, chosen = models["llama"], looping()
    works = works_of(loaded, chosen, [9], 0.0)
    shape = shared_shape([one.plan for one in works], 1)
    calm = looping("ignore")
    whole = by_prompt(events_of(loaded, calm, works_of(loaded, calm, [9], 0.0), shape), Token)[0]
    with_loop = [one.token_id for one in whole]
    watch, loop = SHORT(), None
    for one in with_loop:
        if (loop := watch.feed(one)) is not None:
            break
    assert loop is not None, "this test is about a loop"
    events = events_of(loaded, chosen, works, shape)
    ids = [one.token_id for one in by_prompt(events, Token)[0]]
    first = by_prompt(events, TakenBack)[0][0]
    place = loop.start + loop.period
    assert (first.n, first.tokens, first.period, first.attempt) == (
        place,
        loop.tokens - loop.period,
        loop.period,
        1,
    )
    assert ids[:place] == with_loop[:place]
    assert ids[place] != with_loop[place]
    where = next(at for at, event in enumerate(events) if isinstance(event, TakenBack))
    assert max(one.n for one in events[:where] if isinstance(one, Token)) <= place


def test_a_loop_that_cannot_be_left_ends_the_text_after_the_last_attempt(models, monkeypatch):
    """Whatever is chosen, the watch says that the last token repeats the one before."""
    monkeypatch.setattr(rollback, "ATTEMPTS", 3)

    def says_so(self, token_id):
        self._tokens += 1
        return rollback.Loop(1, 8, self._tokens - 8, True) if self._tokens > 12 else None

    monkeypatch.setattr(Coarse, "feed", says_so)
    monkeypatch.setattr(Coarse, "safe", property(lambda self: min(self._tokens, 9)))
    loaded, chosen = models["llama"], looping()
    works = works_of(loaded, chosen, [9], 1.0)
    events = events_of(loaded, chosen, works, shared_shape([one.plan for one in works], 1))
    assert [(one.n, one.tokens, one.attempt) for one in by_prompt(events, TakenBack)[0]] == [
        (9, 4, 1),
        (9, 4, 2),
        (9, 4, 3),
    ]
    (end,) = by_prompt(events, Finished)[0]
    assert (end.reason, end.output_tokens) == ("loop", 13)
    check(events, by_prompt(events, Token))


@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("strategy", ["slide", "adaptive"])
def test_a_state_of_any_moment_goes_on_to_the_same_text(models, tmp_path, strategy, temperature):
    """Between two snapshots, with tokens that wait, on the way back to a place."""
    loaded, chosen, book = models["llama"], looping(**{"decode.strategy": strategy}), Moments(tmp_path)
    works = works_of(loaded, chosen, [9, 30], temperature)
    shape = shared_shape([one.plan for one in works], 2)
    whole = events_of(loaded, chosen, works, shape, book)
    tokens, ends = by_prompt(whole, Token), by_prompt(whole, Finished)
    assert by_prompt(whole, TakenBack)
    for moment in range(0, len(book.moments[0]), 3):
        at = [min(moment, len(book.moments[number]) - 1) for number in range(2)]
        again = [replace(one, state=partial(book.at, n, at[n])) for n, one in enumerate(works)]
        rest = events_of(loaded, chosen, again, shape)
        for number in range(2):
            shown = book.at(number, at[number]).numbers["written"]
            assert told(by_prompt(rest, Token).get(number, [])) == told(tokens[number])[shown:]
            ended, before = by_prompt(rest, Finished)[number][0], ends[number][0]
            assert (ended.reason, ended.text, ended.reading) == (before.reason, before.text, before.reading)
            assert [one.n for one in ended.taken_back] == [one.n for one in before.taken_back]


class Moments(Notebook):
    """Keeps every state, in the order in which they came."""

    def __init__(self, folder):
        super().__init__(folder)
        self.moments = {}

    def take(self, number, state):
        super().take(number, state)
        self.moments.setdefault(number, []).append(self.kept[number, state.numbers["written"]])

    def at(self, number, moment):
        self.kept[number, -1] = self.moments[number][moment]
        return self.state(number, -1)


def test_an_interruption_tells_what_waited_and_the_state_has_it_to_come(models, tmp_path):
    loaded, chosen, book = models["llama"], looping(), Notebook(tmp_path)
    book.due = lambda: False
    works = works_of(loaded, chosen, [9], 0.0)
    shape = shared_shape([one.plan for one in works], 1)
    whole = told(by_prompt(events_of(loaded, chosen, works, shape), Token)[0])
    for most in range(3, 50, 4):
        asked = iter(range(most))
        events = events_of(loaded, chosen, works, shape, book, lambda left=asked: next(left, None) is None)
        (shown,) = (one for _, one in book.kept)
        state = book.state(0, shown)
        ended = by_prompt(events, Finished)[0][0]
        late = [one for one in by_prompt(events, Token).get(0, []) if one.n > shown]
        assert "".join(one.text for one in late) + ended.text == state.numbers["rest"]
        rest = events_of(loaded, chosen, going_on(works, book, [shown]) if shown else works, shape)
        assert whole[:shown] + told(by_prompt(rest, Token)[0]) == whole
        book.kept.clear()


def test_text_that_repeats_nothing_waits_for_nothing():
    back, watch = rollback.Rollback(), LoopWatch()
    for n in range(1, 200):
        assert watch.feed(n) is None
        token = Token(0, n, n, "", 0.0, 0.0, None)
        assert list(back.tell(token, watch.safe)) == [token]


@given(st.lists(st.integers(0, 2), max_size=80), st.booleans())
def test_no_loop_ever_begins_to_repeat_before_what_was_safe(ids, near):
    watch, safe = NearWatch(2, 9, 10, 2) if near else ExactWatch(6, 2, 4), 0
    for token_id in ids:
        loop = watch.feed(token_id)
        assert loop is None or loop.start + loop.period >= safe
        safe = max(safe, watch.safe)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    "more", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.2}]
)
def test_a_forbidden_token_is_not_chosen_however_likely_it_is(temperature, more):
    sampler = Sampler(SamplingSettings(temperature=temperature, **more), 2, (), "cpu")
    logits = torch.zeros(1, 20)
    logits[0, 7], logits[0, 3] = 90, 40
    ids = torch.tensor([[1, 2]])
    assert {pick(sampler, logits, ids)[0] for _ in range(20)} == {7}
    chosen = {pick(sampler, logits, ids, Change((7,), 0.5))[0] for _ in range(20)}
    assert chosen == {3}


def test_warmer_divides_the_logits_by_the_sum_of_both_temperatures():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    for temperature, warmer in ((0.0, 0.5), (0.8, 0.4)):
        changed = Sampler(SamplingSettings(temperature=temperature, seed=5), 0, (), "cpu")
        plain = Sampler(SamplingSettings(temperature=temperature + warmer, seed=5), 0, (), "cpu")
        ids = torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(50):
            a, b = pick(changed, logits, ids, Change(warmer=warmer)), pick(plain, logits, ids)
            assert a == b


def test_the_loops_first_token_is_not_chosen_again_at_its_place(models, monkeypatch):
    """Hardly warmer: a model that was not forbidden it would choose it again."""
    monkeypatch.setattr(rollback, "WARMER", 1e-6)
    take_back, forbidden = rollback.Rollback.take_back, {}

    def noted(self, cache, lane):
        place = self.place_of(self.found)
        token_id = int(lane.ids[0, lane.prompt_ids.shape[1] + place])
        event = take_back(self, cache, lane)
        forbidden.setdefault((event.prompt, event.n), []).append(token_id)
        return event

    monkeypatch.setattr(rollback.Rollback, "take_back", noted)
    loaded, chosen = models["llama"], looping()
    works = works_of(loaded, chosen, [9, 14, 20], temperature=0.0)
    tokens = by_prompt(events_of(loaded, chosen, works, shared_shape([one.plan for one in works], 1)), Token)
    assert len(forbidden) > 3
    assert all(len(set(ids)) == len(ids) for ids in forbidden.values()), "forbidden, and chosen there again"
    kept = [(tokens[prompt][place].token_id, ids) for (prompt, place), ids in forbidden.items()]
    assert all(token_id not in ids for token_id, ids in kept)


def test_some_tokens_from_the_place_on_are_chosen_warmer_and_the_first_is_forbidden():
    back = rollback.Rollback(place=10, attempts=2, forbidden=(3, 7))
    warmer = 2 * rollback.WARMER
    assert [back.change(at) for at in (9, 10, 11, 10 + rollback.WARM - 1, 10 + rollback.WARM)] == [
        AS_SET, Change((3, 7), warmer), Change((), warmer), Change((), warmer), AS_SET
    ]  # fmt: skip
    assert rollback.Rollback(place=0).change(0) == AS_SET, "nothing has been taken back"


def test_there_is_always_a_snapshot_no_younger_than_what_was_told(monkeypatch):
    """While a long paragraph waits, and when all of it is told at once."""
    monkeypatch.setattr(rollback.Snapshot, "of", lambda _cache, lane: SimpleNamespace(written=lane.written))
    back = rollback.Rollback()
    for written in range(500):
        back.told = written if written < 40 or written > 400 else 40
        back.look(None, SimpleNamespace(written=written))
        assert any(one.written <= back.told for one in back._snapshots), written
        assert len(back._snapshots) <= 2
