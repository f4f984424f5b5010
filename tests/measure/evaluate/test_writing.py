"""Lanes write what single runs write; repetition is counted as one would by hand."""

import torch

from scope_cli.engine.run import generate, new_work
from scope_cli.events import Finished, Token
from scope_cli.measure.evaluate.loops import repetition, unique_ngrams
from scope_cli.measure.evaluate.writing import write_all
from tests.helpers.caches import loaded_tiny
from tests.helpers.plain import load_profile

PROMPTS = [
    list(text.encode()) for text in ("a longer beginning of it", "b", "three words here", "and so on, then")
]


def test_every_prompt_gets_the_output_of_a_run_of_its_own(tmp_path):
    loaded = loaded_tiny(tmp_path, dtype=torch.float64)
    for keys in (
        {"decode.budget": 16, "decode.interval": 4},
        {"decode.budget": 16, "decode.interval": 4, "decode.protect_prompt": False},
        {"decode.strategy": "full", "prefill.method": "snapkv", "prefill.budget": 12, "prefill.window": 4},
    ):
        settings = load_profile(
            "default",
            {**keys, "sampling.max_new_tokens": 60, "sampling.temperature": 1.0, "sampling.seed": 5},
        )
        got = {one.prompt: one for one in write_all(loaded, settings, dict(enumerate(PROMPTS)), lanes=3)}
        assert sorted(got) == [0, 1, 2, 3]
        for number, prompt in enumerate(PROMPTS):
            work = new_work(settings, loaded.geometry, prompt, number)
            events = list(generate(loaded, settings.profile, [work]))
            tokens = [event for event in events if isinstance(event, Token)]
            (finished,) = [event for event in events if isinstance(event, Finished)]
            one = got[number]
            assert one.ids == [event.token_id for event in tokens]
            assert one.text == "".join(event.text for event in tokens) + finished.text
            assert (one.reason, one.evictions) == (finished.reason, finished.reading.evictions)


def test_bytes_are_those_of_a_lane(tmp_path):
    loaded = loaded_tiny(tmp_path)
    settings = load_profile(
        "default", {"decode.budget": 16, "sampling.max_new_tokens": 60, "sampling.ignore_eos": True}
    )
    (alone,) = write_all(loaded, settings, {0: PROMPTS[0]})
    three = list(write_all(loaded, settings, dict.fromkeys(range(3), PROMPTS[0]), lanes=3))
    assert [one.bytes.held_mean for one in three] == [alone.bytes.held_mean] * 3
    assert [one.bytes.full_peak for one in three] == [alone.bytes.full_peak] * 3
    assert alone.bytes.held_mean < alone.bytes.held_peak < alone.bytes.full_mean < alone.bytes.full_peak


def test_what_an_interruption_cut_is_not_an_output(tmp_path):
    loaded = loaded_tiny(tmp_path)
    settings = load_profile("default", {"sampling.max_new_tokens": 5, "sampling.ignore_eos": True})
    seen: list[int] = []
    prompts = dict(enumerate(PROMPTS))
    for one in write_all(loaded, settings, prompts, lanes=1, interrupted=lambda: len(seen) >= 2):
        seen.append(one.prompt)
        assert len(one.ids) == 5
    assert len(seen) == 2


def test_a_loop_of_four_copies_is_one_and_three_are_none():
    words = list(range(100, 130))
    assert repetition([*range(50), *words * 4]).looped
    found = repetition([*range(50), *words * 4])
    assert (found.loop_start, found.loop_period, found.loop_tokens) == (50, 30, 120)
    assert not repetition([*range(50), *words * 3]).looped


def test_unique_ngrams_are_counted_over_all_of_them():
    assert unique_ngrams([1, 2, 3, 4, 5, 6]) == 1
    assert unique_ngrams([1, 2, 3, 4, 1, 2, 3, 4]) == 4 / 5
    assert unique_ngrams([7] * 10) == 1 / 7
    assert unique_ngrams([1, 2]) == 1
