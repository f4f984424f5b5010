"""Prompts that begin alike: what one has read the next copies, and writes bit for bit what it would have."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scope_cli.engine.beginning import Beginnings
from scope_cli.engine.chunks import LEAST
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run_plan import make_plan
from scope_cli.events import Finished
from scope_cli.models.model import LoadedModel
from tests.engine.test_lanes import ends_of, failing_first
from tests.helpers.lanes import ids_of, models, settings_of, work_of, written  # noqa: F401  a fixture

CHUNK = 32


def works_of(loaded, chosen, beginnings, rests, new_tokens):
    """One for each rest, behind one of the beginnings, each with a seed of its own."""
    works = []
    for seed, (which, rest) in enumerate(rests):
        ids = [*beginnings[which], *ids_of(100 + seed, rest)]
        work = work_of(loaded, chosen, seed, len(ids), new_tokens=new_tokens)
        works.append(replace(work, prompt_ids=ids))
    return works


def with_window(loaded, window):
    """The layers that have a sliding window have one of so many tokens."""
    geometry = loaded.opened.geometry
    layers = tuple(
        replace(layer, window=window) if layer.kind == "window" else layer for layer in geometry.layers
    )
    return LoadedModel(loaded.model, replace(loaded.opened, geometry=replace(geometry, layers=layers)))


def reused(events) -> list[int]:
    ends = {event.prompt: event for event in events if isinstance(event, Finished)}
    assert all(end.reused_prompt_tokens + end.read_tokens == end.prompt_tokens for end in ends.values())
    return [ends[number].reused_prompt_tokens for number in range(len(ends))]


def texts_and_reused(loaded, chosen, works, lanes, copying=True):
    shape = shared_shape([work.plan for work in works], lanes)
    if copying:
        texts, events, _ = written(loaded, chosen, works, shape)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Beginnings, "of", lambda self, prompt_ids: None)
            texts, events, _ = written(loaded, chosen, works, shape)
    return texts, reused(events)


@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_a_text_is_bit_for_bit_the_same_whether_its_beginning_was_read_or_copied(models, data):  # noqa: F811
    loaded = models[data.draw(st.sampled_from(["llama", "gemma3", "llama-mqa"]), "family")]
    slots = data.draw(st.sampled_from([{}, {"cache.keys": "int8", "cache.values": "int8"}]), "slots")
    chosen = settings_of(
        **{
            "prefill.chunk": CHUNK,
            "decode.strategy": data.draw(st.sampled_from(["slide", "adaptive", "full"]), "strategy"),
            "decode.scorer": data.draw(st.sampled_from(["attention", "window", "accumulated"]), "scorer"),
            "decode.protect_prompt": data.draw(st.booleans(), "protect"),
            "prefill.method": data.draw(st.sampled_from(["full", "full", "snapkv"]), "method"),
            "prefill.budget": 50,
            "prefill.window": 8,
            **slots,
        }
    )
    length = data.draw(st.integers(LEAST, 5 * CHUNK), "beginning")
    beginnings = [ids_of(7, length), [*ids_of(7, LEAST), *ids_of(8, length)]]
    rests = data.draw(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 60)), min_size=3, max_size=6), "prompts"
    )
    works = works_of(loaded, chosen, beginnings, rests, data.draw(st.integers(1, 30), "output"))
    lanes = data.draw(st.integers(1, 4), "lanes")
    read, none = texts_and_reused(loaded, chosen, works, lanes, copying=False)
    copied, tokens = texts_and_reused(loaded, chosen, works, lanes)
    assert copied == read
    assert all(count >= before for count, before in zip(tokens, none, strict=True))
    if chosen.profile.prefill.method.name == "full" and chosen.profile.decode.protect_prompt:
        ring = make_plan(chosen, loaded.geometry, 10).shape.ring
        pairs = pairwise(work.prompt_ids for work in works)
        if loaded is not models["gemma3"] and any(
            may_be_copied(after, before, ring) for before, after in pairs
        ):
            assert sum(tokens) > 0
    elif not chosen.profile.decode.protect_prompt:
        assert tokens == none


def in_common(one, other) -> int:
    """Slowly: whole chunks that are the same, with enough left to read."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    while count % CHUNK or len(one) - count < 1:
        count -= 1
    return count if count >= LEAST else 0


def may_be_copied(one, other, ring) -> int:
    """Of that, what leaves as many tokens to read as the scorer has queries of: they are this prompt's."""
    count = in_common(one, other)
    while count and len(one) - count < ring:
        count -= CHUNK
    return count if count >= LEAST else 0


@pytest.mark.parametrize("scorer", ["attention", "window"])
def test_as_much_is_copied_as_whole_chunks_allow(models, scorer):  # noqa: F811
    loaded = models["llama"]
    chosen = settings_of(**{"prefill.chunk": CHUNK, "decode.scorer": scorer})
    beginnings = [ids_of(7, 130), ids_of(7, 95), ids_of(7, 63), ids_of(7, 192)]
    rests = [(0, 20), (1, 30), (2, 50), (3, 1), (3, 40), (0, 3), (3, 0)]
    works = works_of(loaded, chosen, beginnings, rests, 5)
    texts, tokens = texts_and_reused(loaded, chosen, works, len(works))
    assert texts == texts_and_reused(loaded, chosen, works, len(works), copying=False)[0]
    ring = make_plan(chosen, loaded.geometry, 10).shape.ring
    for number, work in enumerate(works):
        ids = work.prompt_ids
        expected = max((may_be_copied(ids, one.prompt_ids, ring) for one in works[:number]), default=0)
        assert tokens[number] == expected, number
    assert tokens[:6] == [0, 64, 0, 128, 192, 128 if ring == 1 else 96]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "more", [{}, {"cache.kv": "int8"}, {"prefill.method": "snapkv", "prefill.budget": 50}]
)
@pytest.mark.parametrize(
    ("common", "copied"), [(63, 0), (64, 64), (65, 64), (100, 64), (300, 256), (700, 512), (1_100, 1_024)]
)
def test_by_itself_64_tokens_are_enough(models, family, more, common, copied):  # noqa: F811
    loaded, chosen = with_window(models[family], 2_000), settings_of(**more)
    works = works_of(loaded, chosen, [ids_of(7, common)], [(0, 3), (0, 90)], 5)
    texts, found = texts_and_reused(loaded, chosen, works, 2)
    assert texts == texts_and_reused(loaded, chosen, works, 2, copying=False)[0]
    assert found == [0, copied if "prefill.method" not in more else 0]


def test_one_lane_goes_on_with_what_lies_in_its_own_slots(models):  # noqa: F811
    loaded, chosen = models["llama"], settings_of(**{"prefill.chunk": CHUNK})
    works = works_of(loaded, chosen, [ids_of(7, 100)], [(0, 20), (0, 30), (0, 40)], 30)
    texts, tokens = texts_and_reused(loaded, chosen, works, 1)
    assert tokens == [0, 96, 96]
    assert texts == texts_and_reused(loaded, chosen, works, 1, copying=False)[0]


@pytest.mark.parametrize("lanes", [1, 2])
def test_nothing_is_copied_from_a_row_that_failed(models, monkeypatch, lanes):  # noqa: F811
    """Its slots were wiped: what it held may have been no numbers."""
    loaded, chosen = models["llama"], settings_of(**{"prefill.chunk": CHUNK})
    works = works_of(loaded, chosen, [ids_of(7, 100)], [(0, 20), (0, 30)], 20)
    _, alone = ends_of(loaded, chosen, works[1:], lanes)
    failing_first(monkeypatch, 0)
    ends, ids = ends_of(loaded, chosen, works, lanes)
    assert ids == {1: alone[0]}
    if lanes == 1:  # with two it has been read and copied before the first of the pair failed
        assert ends[1].reused_prompt_tokens == 0


@pytest.mark.parametrize(("window", "tokens"), [(150, 96), (130, 0)])
def test_a_sliding_window_is_copied_until_it_comes_around(models, window, tokens):  # noqa: F811
    """120 prompt tokens and 20 of the output; in 130 slots the last ones lie where the first ones were."""
    loaded = with_window(models["gemma3"], window)
    chosen = settings_of(**{"prefill.chunk": CHUNK})
    works = works_of(loaded, chosen, [ids_of(7, 100)], [(0, 20), (0, 30)], 20)
    texts, found = texts_and_reused(loaded, chosen, works, 1)
    assert found == [0, tokens]
    assert texts == texts_and_reused(loaded, chosen, works, 1, copying=False)[0]


def test_a_prompt_that_was_compressed_or_may_be_evicted_is_not_copied_from(models):  # noqa: F811
    loaded = models["llama"]
    compressed = {"prefill.method": "snapkv", "prefill.window": 8}
    for more, first in (
        ({**compressed, "prefill.budget": 50}, 20),
        ({**compressed, "prefill.budget": 140}, 60),  # the second fits, and is kept whole
        ({"decode.protect_prompt": False}, 20),
    ):
        chosen = settings_of(**{"prefill.chunk": CHUNK, **more})
        works = works_of(loaded, chosen, [ids_of(7, 100)], [(0, first), (0, 30)], 20)
        assert texts_and_reused(loaded, chosen, works, 2)[1] == [0, 0]
