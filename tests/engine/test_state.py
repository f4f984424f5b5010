"""A lane that left through a file goes on bit for bit as one that stayed; the file is whole, or refused."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scope_cli.cache.state import OtherShape
from scope_cli.engine.cadence import Cadence
from scope_cli.engine.checkpoint import Checkpoint, Refused, read_checkpoint, read_facts, write_checkpoint
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import Run
from scope_cli.engine.state import LaneState
from scope_cli.events import Finished, Token
from scope_cli.machine.gauge import PeakMeter
from tests.helpers.caches import loaded_tiny
from tests.helpers.lanes import SCORERS, settings_of, work_of

STRATEGIES = ["slide", "adaptive", "discontinuous", "rpc", "full"]


class Notebook:
    """Keeps every state as the bytes of a file, by prompt and tokens written."""

    def __init__(self, folder, ends=False):
        self.folder, self.ends, self.kept, self.sizes = folder, ends, {}, set()

    def due(self):
        return True

    def saving(self):
        return nullcontext()

    def take(self, number, state):
        file = self.folder / "state"
        write_checkpoint(file, Checkpoint(state.numbers, state.tensors), width=4096)
        self.kept[number, state.numbers["written"]] = file.read_bytes()

    def state(self, number, written):
        file = self.folder / "read"
        file.write_bytes(self.kept[number, written])
        found = read_checkpoint(file)
        return LaneState(found.tensors, found.facts)


def run_all(loaded, chosen, works, shape, keep=None, interrupted=lambda: False, compiled=False):
    """By prompt: ids and log-probabilities from the first one that was written here; and the ends."""
    with PeakMeter(loaded.device) as peak:
        job = Run(loaded, chosen.profile, shape, peak, compiled, keep=keep)
        events = list(job.run(works, interrupted))
    texts: dict[int, list] = {}
    for event in events:
        if isinstance(event, Token):
            texts.setdefault(event.prompt, []).append((event.n, event.token_id, event.logprob, event.text))
    return texts, {event.prompt: event for event in events if isinstance(event, Finished)}


def going_on(works, book, written):
    """The same works, each from its so many tokens on."""
    return [
        replace(work, state=partial(book.state, number, written[number]) if written[number] else None)
        for number, work in enumerate(works)
    ]


def same_end(a: Finished, b: Finished):
    """But for the seconds and the memory of the process."""
    timed = {"prefill_s": 0, "decode_s": 0, "prefill_peak_bytes": 0, "decode_peak_bytes": 0, "lane": 0}
    return replace(a, **timed) == replace(b, **timed)


@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_a_lane_goes_on_bit_for_bit_from_any_token(models, named, tmp_path_factory, data):
    loaded = models[data.draw(st.sampled_from(["llama", "gemma3", "llama-mqa"]), "family")]
    budget = data.draw(st.integers(4, 40), "budget")
    chosen = settings_of(
        **{
            "decode.strategy": data.draw(st.sampled_from(STRATEGIES), "strategy"),
            "decode.scorer": named(data.draw(st.sampled_from(SCORERS), "scorer"), loaded.geometry),
            "decode.protect_prompt": data.draw(st.booleans(), "protect"),
            "decode.budget": budget,
            "decode.recent": data.draw(st.integers(1, budget - 1), "recent"),
            "decode.interval": "auto",
            "sampling.repetition_penalty": data.draw(st.sampled_from([1.0, 1.1]), "penalty"),
        }
    )
    lengths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=4), "prompts")
    temperature = data.draw(st.sampled_from([0.0, 1.0]), "temperature")
    works = [
        work_of(loaded, chosen, seed, tokens, temperature=temperature) for seed, tokens in enumerate(lengths)
    ]
    shape = shared_shape([work.plan for work in works], data.draw(st.integers(1, len(works)), "lanes"))
    book = Notebook(tmp_path_factory.mktemp("kept"))
    whole, ends = run_all(loaded, chosen, works, shape, book)
    assert len({len(content) for content in book.kept.values()}) <= len(set(lengths)), "a state grew"
    at = [data.draw(st.integers(0, 39), "from") for _ in works]
    again = [
        replace(work, state=partial(book.state, number, at[number]) if at[number] else None)
        for number, work in enumerate(works)
    ]
    rest, ends_of_rest = run_all(loaded, chosen, again, shape)
    assert all(rest[number] == whole[number][at[number] :] for number in range(len(works)))
    assert all(same_end(ends[number], ends_of_rest[number]) for number in range(len(works)))


@pytest.mark.parametrize("exact", [0, 3])
@pytest.mark.parametrize("kv", ["int8", "k8v4"])
def test_a_lane_of_packed_slots_goes_on_bit_for_bit(tmp_path, kv, exact):
    loaded = loaded_tiny(tmp_path / "model", "llama-32")
    chosen = settings_of(**{"cache.kv": kv, "cache.exact": exact, "decode.budget": 12, "decode.recent": 4})
    works = [work_of(loaded, chosen, seed, 9 + seed) for seed in range(2)]
    shape, book = shared_shape([work.plan for work in works], 2), Notebook(tmp_path)
    whole, _ = run_all(loaded, chosen, works, shape, book)
    for written in (1, 17, 30):
        rest, _ = run_all(loaded, chosen, going_on(works, book, [written, written + 2]), shape)
        assert rest == {number: whole[number][written + 2 * number :] for number in range(2)}


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_compiled_lane_goes_on_bit_for_bit(models, tmp_path, lanes):
    chosen = settings_of()
    works = [work_of(models["llama"], chosen, seed, 9) for seed in range(lanes)]
    shape, book = shared_shape([work.plan for work in works], lanes), Notebook(tmp_path)
    whole, _ = run_all(models["llama"], chosen, works, shape, book, compiled=True)
    again = [
        replace(work, state=partial(book.state, number, 17 + number)) for number, work in enumerate(works)
    ]
    rest, _ = run_all(models["llama"], chosen, again, shape, compiled=True)
    assert rest == {number: whole[number][17 + number :] for number in range(lanes)}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scorer", ["lru", "accumulated", "window"])
def test_a_finished_text_goes_on_when_it_may_be_longer(models, tmp_path, strategy, scorer):
    """As if it had been longer from the start, where a schedule does not plan for the whole length."""
    loaded, book = models["llama"], Notebook(tmp_path, ends=True)
    chosen = settings_of(
        **{"decode.strategy": strategy, "decode.scorer": scorer, "decode.interval": "auto"},
        **{"decode.budget": 30, "sampling.max_new_tokens": 60},
    )
    short = [work_of(loaded, chosen, seed, 9, new_tokens=25) for seed in range(2)]
    whole = [work_of(loaded, chosen, seed, 9, new_tokens=90) for seed in range(2)]
    first, _ = run_all(loaded, chosen, short, shared_shape([work.plan for work in short], 2), book)
    longer = [replace(work, state=partial(book.state, number, 25)) for number, work in enumerate(whole)]
    shape = shared_shape([work.plan for work in whole], 2)
    rest, ends = run_all(loaded, chosen, longer, shape)
    assert all(end.output_tokens == 90 and end.audit.passed for end in ends.values())
    assert all(len(first[number] + rest[number]) == 90 for number in range(2))
    if strategy not in ("adaptive", "discontinuous"):
        undisturbed, _ = run_all(loaded, chosen, whole, shape)
        assert all(first[number] + rest[number] == undisturbed[number] for number in range(2))


def test_an_interruption_hands_over_the_states_of_all_that_run(models, tmp_path):
    loaded, chosen, book = models["llama"], settings_of(), Notebook(tmp_path)
    book.due = lambda: False
    works = [work_of(loaded, chosen, seed, 9) for seed in range(3)]
    shape = shared_shape([work.plan for work in works], 3)
    asked = iter(range(1000))
    cut, ends = run_all(loaded, chosen, works, shape, book, interrupted=lambda: next(asked) > 20)
    assert {end.reason for end in ends.values()} == {"interrupted"}
    assert {(number, len(text)) for number, text in cut.items()} == set(book.kept)
    whole, _ = run_all(loaded, chosen, works, shape)
    again = [
        replace(work, state=partial(book.state, number, len(cut[number])))
        for number, work in enumerate(works)
    ]
    rest, _ = run_all(loaded, chosen, again, shape)
    assert all(cut[number] + rest[number] == whole[number] for number in range(3))


def test_a_prompt_that_made_its_own_slots_goes_on(models, tmp_path):
    loaded, book = models["llama"], Notebook(tmp_path)
    chosen = settings_of(
        **{"prefill.method": "snapkv", "prefill.budget": 30, "prefill.window": 4, "prefill.wrap": ["adakv"]}
    )
    works = [work_of(loaded, chosen, seed, tokens) for seed, tokens in enumerate((90, 20, 70))]
    shape = shared_shape([work.plan for work in works], 1)
    whole, _ = run_all(loaded, chosen, works, shape, book)
    again = [replace(work, state=partial(book.state, number, 11)) for number, work in enumerate(works)]
    rest, _ = run_all(loaded, chosen, again, shape)
    assert rest == {number: text[11:] for number, text in whole.items()}


def test_a_state_of_another_scorer_or_of_a_longer_prompt_does_not_fit(models, tmp_path):
    loaded, book = models["llama"], Notebook(tmp_path)
    chosen = settings_of(**{"decode.scorer": "lru"})
    works = [work_of(loaded, chosen, seed, 9) for seed in range(2)]
    run_all(loaded, chosen, works, shared_shape([work.plan for work in works], 2), book)
    other = settings_of()
    again = [replace(work_of(loaded, other, 0, 9), state=partial(book.state, 0, 5))]
    with pytest.raises(OtherShape):
        run_all(loaded, other, again, shared_shape([again[0].plan] * 2, 2))
    longer = work_of(loaded, chosen, 0, 200)
    again = [replace(works[0], state=partial(book.state, 0, 5)), longer]
    with pytest.raises(OtherShape):
        run_all(loaded, chosen, again, shared_shape([work.plan for work in again], 2))


def a_file(folder, written=3):
    file = folder / "kept.state"
    numbers = {"written": written, "text": "sea \u00fc"}
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False]), "c": torch.tensor(7)}
    tensors["d"] = torch.ones(3, dtype=torch.bfloat16)
    return file, numbers, tensors, write_checkpoint(file, Checkpoint(numbers, tensors))


def test_what_is_written_is_read_and_any_safetensors_reader_reads_it(tmp_path):
    from safetensors.torch import load_file

    file, numbers, tensors, width = a_file(tmp_path)
    found = read_checkpoint(file)
    assert found.facts == read_facts(file) == numbers
    for read in (found.tensors, load_file(file)):
        assert all(
            torch.equal(read[name], one) and read[name].dtype == one.dtype for name, one in tensors.items()
        )
    size = file.stat().st_size
    assert write_checkpoint(file, Checkpoint(numbers | {"written": 10**9}, tensors), width) == width
    assert file.stat().st_size == size and [one.name for one in tmp_path.iterdir()] == ["kept.state"]


def test_every_byte_that_a_disk_turns_is_noticed(tmp_path):
    file, *_ = a_file(tmp_path)
    content = file.read_bytes()
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            assert read_checkpoint(file).facts["written"] == 3, "only what means nothing may differ"
        except Refused:
            continue
        assert content[at : at + 1] in b" ", f"byte {at} was turned and not noticed"


@pytest.mark.parametrize("size", [0, 5, 8, 100, -1, -20])
def test_a_file_that_is_cut_off_or_foreign_is_refused(tmp_path, size):
    file, *_ = a_file(tmp_path)
    file.write_bytes(file.read_bytes()[:size])
    for read in (read_facts, read_checkpoint):
        with pytest.raises(Refused):
            read(file)
    file.write_text("Once upon a time.")
    with pytest.raises(Refused, match="state"):
        read_facts(file)


def test_a_disk_that_is_full_leaves_the_state_before(tmp_path, monkeypatch):
    file, numbers, tensors, _ = a_file(tmp_path)
    before = file.read_bytes()

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_checkpoint(file, Checkpoint(numbers | {"written": 4}, tensors))
    assert file.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["kept.state"]


@given(st.lists(st.floats(0.001, 40), min_size=1, max_size=30))
def test_saving_takes_a_hundredth_of_the_time_or_comes_every_five_minutes(costs):
    now, spent = [0.0], 0.0
    cadence = Cadence(clock=lambda: now[0])
    for cost in costs:
        last = now[0]
        while not cadence.due():
            now[0] += 0.5
        wait = now[0] - last
        assert wait <= 300.5
        with cadence.saving():
            now[0] += cost
        assert wait <= 300.5
        spent = cost
        last = now[0]
        while not cadence.due():
            now[0] += 0.5
        assert now[0] - last >= min(300, 100 * spent) - 1


def test_numbers_are_json(models, tmp_path):
    book = Notebook(tmp_path)
    loaded, chosen = models["llama"], settings_of()
    work = work_of(loaded, chosen, 0, 9)
    run_all(loaded, chosen, [work], work.plan.shape, book)
    state = book.state(0, 12)
    assert json.loads(json.dumps(state.numbers)) == state.numbers
    assert len(state.output_ids) == 12 and state.prompt_ids == work.prompt_ids
