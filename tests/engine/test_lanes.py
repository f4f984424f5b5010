"""Several prompts side by side: each gives bit for bit what it gives with other neighbours, in any row."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import STEP, CacheShape
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import Run, generate, new_work
from scope_cli.engine.run_plan import policy_of
from scope_cli.engine.sampling import Sampler
from scope_cli.events import Finished, PromptProgress, PromptRead, Token
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.machine.gauge import PeakMeter
from scope_cli.models.attention import attend_step
from tests.helpers.lanes import LANES, SCORERS, ids_of, settings_of, work_of, written


@settings(max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_a_lane_is_bit_for_bit_the_same_whatever_the_others_hold_and_in_any_row(models, named, data):
    loaded = models[data.draw(st.sampled_from(["llama", "gemma3", "llama-mqa"]), "family")]
    budget = data.draw(st.integers(2, 40), "budget")
    chosen = settings_of(
        **{
            "decode.strategy": data.draw(st.sampled_from(["slide", "adaptive", "full"]), "strategy"),
            "decode.scorer": named(data.draw(st.sampled_from(SCORERS), "scorer"), loaded.geometry),
            "decode.protect_prompt": data.draw(st.booleans(), "protect"),
            "decode.budget": budget,
            "decode.recent": data.draw(st.integers(1, budget), "recent"),
            "decode.interval": data.draw(st.integers(1, 9), "interval"),
        }
    )
    longest = data.draw(st.sampled_from([20, 90, 700]), "longest")
    works = [
        work_of(
            loaded,
            chosen,
            seed=data.draw(st.integers(0, 99), "seed"),
            prompt_tokens=data.draw(st.integers(1, longest), "prompt"),
            new_tokens=data.draw(st.integers(1, 50), "output"),
            temperature=data.draw(st.sampled_from([0.0, 1.0]), "temperature"),
        )
        for _ in range(data.draw(st.integers(2, 6), "prompts"))
    ]
    shape = shared_shape([work.plan for work in works], LANES)
    texts, _, _ = written(loaded, chosen, works, shape)
    order = list(range(len(works)))
    random.Random(data.draw(st.integers(0, 9))).shuffle(order)
    shuffled, _, _ = written(loaded, chosen, [works[number] for number in order], shape)
    for place, number in enumerate(order):
        assert shuffled[place] == texts[number], "with other neighbours, in another row"
    alone, _, _ = written(loaded, chosen, works[:1], shape)
    assert alone[0] == texts[0], "with the other rows empty"
    ahead, _, _ = written(loaded, chosen, works, shape, ahead=True)
    assert ahead == texts, "launched before the host knew the token"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("group", [1, 2, 7, 8])
def test_attention_is_bit_for_bit_the_same_through_every_prefix_that_lanes_read(group, dtype):
    """Masked keys add exact zeros; but where a block of keys ends must not depend on the other lanes."""
    chance = torch.Generator().manual_seed(group)
    layer_geometry = LayerGeometry("full", heads=group, kv_heads=1, head_dim=64)
    geometry = Geometry((layer_geometry,), 10_000, 64, 64)
    policy = policy_of(settings_of().profile.decode)
    for slots in (100, 333, 576, 1_151, 1_700):
        shape = CacheShape(LANES, (slots - 20,), 20, slots)
        cache = ScopeCache(geometry, shape, policy, dtype=dtype)
        layer = cache.layers[0]
        for buffer in (layer.keys, layer.values):
            buffer.normal_(generator=chance)
        for held in (slots // 7, slots // 2, slots - 50):
            layer.bias.fill_(-torch.inf)
            layer.bias[..., torch.randperm(held, generator=chance)[: held * 3 // 4]] = 0
            query = torch.randn(LANES, group, 1, 64, generator=chance).to(dtype)
            seen = {}
            for cache.fixed_reads in (False, True):  # plain and compiled
                for used in range(held, slots + 1):
                    layer.set_read_slots(used)
                    assert used <= layer.read_slots <= layer.slots and layer.read_slots % STEP == 0
                    if layer.read_slots not in seen:
                        seen[layer.read_slots] = attend_step(layer, query, query[:, :1], query[:, :1])
            first, *others = seen.values()
            for other in others:
                assert torch.equal(first, other), sorted(seen)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_one_lane_and_several_agree(models, family):
    """Rounding differs with the number of rows; the tokens do where two are almost equally probable."""
    loaded, chosen = models[family], settings_of(**{"sampling.temperature": 0.0})
    works = [work_of(loaded, chosen, seed, 20 + 9 * seed, temperature=0.0) for seed in range(5)]
    texts, events, _ = written(loaded, chosen, works, shared_shape([work.plan for work in works], LANES))
    for number, work in enumerate(works):
        alone, _, _ = written(loaded, chosen, [work], shared_shape([work.plan], 1))
        for (token, logprob), (other, other_logprob) in zip(alone[0], texts[number], strict=True):
            assert abs(logprob - other_logprob) < 1e-3
            assert token == other
    assert any(isinstance(event, Finished) and event.reading.evictions for event in events)


def test_a_finished_lane_takes_the_next_prompt_while_the_others_go_on(models):
    loaded, chosen = models["llama"], settings_of()
    works = [
        work_of(loaded, chosen, seed, 30, new_tokens=tokens) for seed, tokens in enumerate((5, 40, 40, 9))
    ]
    _, events, cache = written(loaded, chosen, works, shared_shape([work.plan for work in works], LANES))
    read = [event for event in events if isinstance(event, PromptRead)]
    assert [(event.prompt, event.lane) for event in read] == [(0, 0), (1, 1), (2, 2), (3, 0)]
    after = events[events.index(read[3]) :]
    assert {event.prompt for event in after if isinstance(event, Token)} == {1, 2, 3}
    ends = {event.prompt: event for event in events if isinstance(event, Finished)}
    assert [ends[number].output_tokens for number in range(4)] == [5, 40, 40, 9]
    assert cache.reading().evictions == sum(end.reading.evictions for end in ends.values())
    assert ends[0].reading.kept_generated == 4 and ends[3].reading.kept_generated == 8


def test_a_long_prompt_holds_the_others_up_for_one_chunk_at_a_time(models):
    loaded, chosen = models["llama"], settings_of(**{"prefill.chunk": 16})
    works = [work_of(loaded, chosen, seed, tokens, 20) for seed, tokens in enumerate((8, 96))]
    _, events, _ = written(loaded, chosen, works, shared_shape([work.plan for work in works], 2))
    kinds = [type(event).__name__ for event in events if event.prompt == 1 or isinstance(event, Token)]
    assert kinds[:13] == ["PromptProgress", "Token"] * 6 + ["PromptRead"]


def test_samples_of_one_prompt_read_it_once_and_differ_by_their_seed(models):
    loaded, chosen = models["llama"], settings_of(**{"sampling.max_new_tokens": 12})
    prompt = ids_of(3, 50)
    works = [new_work(chosen, loaded.geometry, prompt, nth) for nth in range(3)]
    events = list(generate(loaded, chosen.profile, works))
    progress = [event for event in events if type(event).__name__ == "PromptProgress"]
    assert {event.prompt for event in progress} == {0}, "the other two were copied"
    ends = [event for event in events if isinstance(event, Finished)]
    assert ends[0].reading.moved_bytes == 0 and ends[1].reading.moved_bytes > 0
    assert (
        ends[1].reading.moved_bytes == next(e for e in events if isinstance(e, PromptRead)).reading.held_bytes
    )
    texts = {number: [] for number in range(3)}
    for event in events:
        if isinstance(event, Token):
            texts[event.prompt].append(event.token_id)
    assert len({tuple(text) for text in texts.values()}) == 3
    shape = shared_shape([work.plan for work in works], 3)
    alone, _, _ = written(loaded, chosen, works[1:2], shape)
    assert [token for token, _ in alone[0]] == texts[1], "as if it had been read by itself"


def test_what_fails_in_one_lane_leaves_the_others_alone(models):
    loaded, chosen = models["llama"], settings_of()
    works = [work_of(loaded, chosen, seed, 10 + seed, 12) for seed in range(3)]
    shape = shared_shape([work.plan for work in works], 2)
    texts, _, _ = written(loaded, chosen, works, shape)
    bad = replace(works[1], prompt_ids=[*works[1].prompt_ids[:-1], 10**6])  # no such token
    with PeakMeter(loaded.device) as peak:
        job = Run(loaded, chosen.profile, shape, peak)
        failed = []
        events = [
            event
            for event in job.run(
                [works[0], bad, works[2]], fail=lambda row, error: failed.append((row, error))
            )
            if event is not None
        ]
    assert [row for row, _ in failed] == [1] and isinstance(failed[0][1], IndexError)
    for number in (0, 2):
        got = [event.token_id for event in events if isinstance(event, Token) and event.prompt == number]
        assert got == [token for token, _ in texts[number]]


def test_a_lane_ends_when_its_time_is_up(models):
    loaded, chosen = models["llama"], settings_of()
    works = [replace(work_of(loaded, chosen, 1, 10), max_seconds=0.0), work_of(loaded, chosen, 2, 10)]
    ends = [event for event in generate(loaded, chosen.profile, works) if isinstance(event, Finished)]
    assert [(end.prompt, end.reason, end.output_tokens) for end in ends] == [
        (0, "time", 1),
        (1, "length", 40),
    ]


def test_an_interruption_ends_what_runs_and_begins_nothing_else(models):
    loaded, chosen = models["llama"], settings_of()
    works = [work_of(loaded, chosen, seed, 10) for seed in range(5)]
    seen = []
    shape = shared_shape([work.plan for work in works], 2)
    for event in generate(loaded, chosen.profile, works, shape, lambda: len(seen) > 12):
        seen.append(event)
    ends = [event for event in seen if isinstance(event, Finished)]
    assert {(end.prompt, end.reason) for end in ends} == {(0, "interrupted"), (1, "interrupted")}


def test_prompts_that_make_slots_of_their_own_size_follow_one_another_in_one_lane(models):
    """With adakv the cache is made anew for each prompt; the ones that fit their budget too."""
    loaded = models["llama"]
    chosen = settings_of(
        **{
            "prefill.method": "snapkv",
            "prefill.budget": 30,
            "prefill.window": 4,
            "prefill.wrap": [{"name": "adakv"}],
        }
    )
    works = [work_of(loaded, chosen, seed, tokens, 30) for seed, tokens in enumerate((25, 90, 28, 70))]
    texts, _, _ = written(loaded, chosen, works, shared_shape([work.plan for work in works], 1))
    for number, work in enumerate(works):
        alone, _, _ = written(loaded, chosen, [work], shared_shape([work.plan], 1))
        for (token, logprob), (other, other_logprob) in zip(alone[0], texts[number], strict=True):
            assert token == other and abs(logprob - other_logprob) < 1e-3  # slots of another size round apart


def test_a_lane_that_cannot_be_sampled_leaves_the_others_alone(models, monkeypatch):
    loaded, chosen = models["llama"], settings_of()
    works = [work_of(loaded, chosen, seed, 10 + seed, 12) for seed in range(3)]
    shape = shared_shape([work.plan for work in works], 2)
    texts, _, _ = written(loaded, chosen, works, shape)
    ask = Sampler.ask

    def broken(self, logits, ids, change):
        if ids.shape[1] == 11 + 4 and self._draws.generator.initial_seed() == 1:
            raise RuntimeError("no probabilities")
        return ask(self, logits, ids, change)

    monkeypatch.setattr(Sampler, "ask", broken)
    with PeakMeter(loaded.device) as peak:
        job, failed = Run(loaded, chosen.profile, shape, peak), []
        events = list(job.run(works, fail=lambda row, error: failed.append((row, str(error)))))
    assert failed == [(1, "no probabilities")]
    for number in (0, 2):
        got = [event.token_id for event in events if isinstance(event, Token) and event.prompt == number]
        assert got == [token for token, _ in texts[number]]


def failing_first(monkeypatch, seed):
    """Sampling fails at the first token of the prompt with this seed."""
    ask = Sampler.ask

    def broken(self, logits, ids, change):
        if self._draws.generator.initial_seed() == seed:
            raise RuntimeError("no probabilities")
        return ask(self, logits, ids, change)

    monkeypatch.setattr(Sampler, "ask", broken)


def ends_of(loaded, chosen, works, lanes):
    """By prompt: its end, and its ids; what fails is left out."""
    shape = shared_shape([work.plan for work in works], lanes)
    ends, ids = {}, {}
    with PeakMeter(loaded.device) as peak:
        for event in Run(loaded, chosen.profile, shape, peak).run(works, fail=lambda row, error: None):
            if isinstance(event, Token):
                ids.setdefault(event.prompt, []).append(event.token_id)
            if isinstance(event, Finished):
                ends[event.prompt] = event
    return ends, ids


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize(
    "more", [{}, {"prefill.method": "snapkv", "prefill.budget": 20, "prefill.window": 4}]
)
def test_a_prompt_that_failed_at_its_first_token_is_read_again_for_the_next(models, monkeypatch, lanes, more):
    loaded, chosen = models["llama"], settings_of(**more)
    first, second = (work_of(loaded, chosen, seed, 50) for seed in (0, 1))
    second = replace(second, prompt_ids=first.prompt_ids)
    _, alone = ends_of(loaded, chosen, [second], lanes)
    failing_first(monkeypatch, 0)
    ends, ids = ends_of(loaded, chosen, [first, second], lanes)
    assert ids == {1: alone[0]}
    assert ends[1].audit.passed and ends[1].reading.evictions > 0


def test_the_audit_notices_a_lane_that_was_copied_from_one_that_had_left(models, monkeypatch):
    """Its cache stores nothing, and counts as if nothing had been written."""
    loaded, chosen = models["llama"], settings_of()
    first = work_of(loaded, chosen, 0, 50)
    second = replace(first, seed=1)
    failing_first(monkeypatch, 0)
    monkeypatch.setattr(ScopeCache, "can_copy", lambda self, source: True)
    monkeypatch.setattr(Run, "_source_of", lambda self, work: self._newest and self._newest[1])
    ends, _ = ends_of(loaded, chosen, [first, second], 1)
    assert not ends[1].audit.passed and not ends[1].audit.bytes_accounted
    assert "39 tokens were fed, 50 + 0 counted" in ends[1].audit.problems[0]


@pytest.mark.parametrize("method", ["random", "snapkv"])
def test_samples_share_a_compressed_prompt_where_chance_had_no_part_in_it(models, method):
    loaded = models["llama"]
    chosen = settings_of(**{"prefill.method": method, "prefill.budget": 20, "prefill.window": 4})
    prompt = ids_of(3, 60)
    works = [new_work(chosen, loaded.geometry, prompt, nth) for nth in range(3)]
    _, ids = ends_of(loaded, chosen, works, 3)
    for number, work in enumerate(works):
        _, alone = ends_of(loaded, chosen, [work], 3)
        assert alone[0] == ids[number], "as if it had been read by itself"
    reads = [event for event in generate(loaded, chosen.profile, works) if isinstance(event, PromptProgress)]
    assert {event.prompt for event in reads} == ({0, 1, 2} if method == "random" else {0})


def test_samples_that_copied_their_prompt_evict_as_if_they_had_read_it(models):
    """Queries and memos are copied too."""
    loaded = models["llama"]
    for scorer in ("rkv", "accumulated"):
        chosen = settings_of(
            **{
                "decode.scorer": scorer,
                "decode.protect_prompt": False,
                "decode.total_budget": 45,
                "decode.interval": 1,
            }
        )
        works = [new_work(chosen, loaded.geometry, ids_of(3, 50), nth) for nth in range(3)]
        ends, ids = ends_of(loaded, chosen, works, 3)
        for number, work in enumerate(works):
            end, alone = ends_of(loaded, chosen, [work], 3)
            assert end[0].reading.evictions == ends[number].reading.evictions > 0
            assert alone[0] == ids[number]
