"""The cache over thousands of tokens, its state, and what the audit notices."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.layers import Causal
from scope_cli.cache.policy_layer import PolicyLayer
from scope_cli.cache.policy_slots import FREE
from scope_cli.engine.plan import plan_run
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.run_plan import policy_of
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.policies.schedule import Schedule
from tests.helpers.caches import finish, loaded_tiny, walk
from tests.helpers.plain import load_profile


@pytest.mark.once
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(
    ("tokens", "budget", "interval"),
    [
        *((500, 32, interval) for interval in (1, 8, 37)),
        *(pytest.param(4000, 256, interval, marks=pytest.mark.long) for interval in (1, 64, 300)),
    ],
)
def test_15_budgets_of_tokens_stay_within_the_budget_and_the_buffers(
    tmp_path, family, tokens, budget, interval
):
    most, allocated, pointers = 0, set(), set()
    how = {"budget": budget, "recent": budget // 4, "interval": interval}
    for cache in walk(loaded_tiny(tmp_path, family), tokens, **how):
        reading = cache.reading()
        most = max(most, cache.lanes[0].most_held)
        allocated.add(reading.allocated_bytes)
        pointers.add(tuple(tensor.data_ptr() for tensor in cache.tensors().values()))
        assert reading.kept_generated <= budget
    assert most == budget + 1  # the budget, and the current token before its eviction
    assert len(allocated) == len(pointers) == 1
    assert reading.moved_bytes == 0 and reading.evictions >= 12 and reading.reference_moved_bytes > 0
    assert cache.audit().passed and cache.audit().policy_active
    assert sum(tensor.nbytes for tensor in cache.tensors().values()) == reading.allocated_bytes


def test_the_plan_knows_the_bytes_before_anything_is_allocated(tmp_path):
    for strategy, unprotected in (("slide", False), ("adaptive", False), ("full", False), ("slide", True)):
        loaded = loaded_tiny(tmp_path, "gemma3")
        settings = {"budget": 40, "recent": 8, "strategy": strategy, "protect_prompt": not unprotected}
        *_, cache = walk(loaded, 100, **settings)
        planned = cache.shape.cache_bytes(loaded.geometry, 4)
        assert planned == sum(tensor.nbytes for tensor in cache.tensors().values())


def test_a_lane_is_the_same_after_another_prompt_went_through_it(tmp_path):
    """Nothing leaks: a cache that is used again holds what a fresh one holds."""
    loaded = loaded_tiny(tmp_path)
    *_, fresh = walk(loaded, 50, budget=16, recent=4, interval=4)
    profile = load_profile(
        "default", {"decode.budget": 16, "decode.recent": 4, "sampling.max_new_tokens": 51}
    )
    plan = plan_run(profile, loaded.geometry, 30, ring=1)
    for _ in range(2):
        with torch.no_grad():
            torch.manual_seed(0)
            finish(read_prompt(loaded.model, fresh, torch.randint(0, 256, (1, 30)), plan.schedule))
    reading = fresh.reading(0)
    assert (reading.kept_prompt, reading.kept_generated, reading.evictions) == (30, 0, 0)
    assert fresh.reading().evictions > 0, "the job's total goes on"
    assert fresh.audit(0).passed


def moved_to_another_head(layer):
    """A generated token that is not recent is gone in one head, and held twice in another: as many bytes."""
    positions = layer.positions[0]
    older = ((positions[0] >= 30) & (positions[0] < 126)).nonzero()[0, 0]
    free = (positions[1] == FREE).nonzero()[0, 0]
    positions[1, free] = positions[0, older]
    positions[0, older] = FREE


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda layer: layer.positions[0, 0].masked_fill_(layer.positions[0, 0] == 30 + 99, FREE), "recent"),
        (lambda layer: layer.positions[0, 0, :3].fill_(FREE), "live slots"),
        (lambda layer: layer.store.buffers.append(layer.store.buffers.pop()[..., :-1, :].clone()), "buffers"),
        (lambda layer: moved_to_another_head(layer), "tokens held or evicted by head"),
        (lambda layer: layer.positions[0, 0, 0].fill_(90), "prompt tokens by head"),
    ],
)
def test_the_audit_notices(tmp_path, damage, told):
    *_, cache = walk(loaded_tiny(tmp_path), 100, budget=16, recent=4, interval=4)
    assert cache.audit().passed
    damage(next(layer for layer in cache.layers if isinstance(layer, PolicyLayer)))
    audit = cache.audit()
    assert not audit.passed and any(told in problem for problem in audit.problems)


@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 7), (5, 1), (5, 8), (64, 64)])
def test_a_chunks_query_sees_the_tokens_up_to_its_own(start, tokens):
    """Bit for bit what torch's own lower-right mask gives."""
    torch.manual_seed(0)
    query = torch.randn(1, 4, tokens, 16)
    keys, values = torch.randn(2, 1, 2, start + tokens, 16)
    mask = Causal(tokens, start + tokens).mask(query.device)
    if mask is not None:
        rows = [[key <= start + row for key in range(start + tokens)] for row in range(tokens)]
        assert mask.tolist() == rows and mask.dtype == torch.bool  # a byte for each pair
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(query, keys, values, mask, is_causal=mask is None, enable_gqa=True)
    reference = attend(query, keys, values, causal_lower_right(tokens, start + tokens), enable_gqa=True)
    assert torch.equal(out, reference)


def test_the_audit_compares_what_is_held_with_what_was_fed(tmp_path):
    *_, cache = walk(loaded_tiny(tmp_path, "gemma3"), 100, budget=16, recent=4, interval=4)
    assert cache.audit(0, 30, 100).passed
    audit = cache.audit(0, 30, 101)
    assert not audit.passed and not audit.bytes_accounted
    assert "lane 0, 30 + 101 tokens were fed, 30 + 100 counted" in audit.problems
    assert any("by head, 101 written" in problem for problem in audit.problems)
    assert any("the window does not hold the newest 8 tokens" in problem for problem in audit.problems)
    assert not cache.audit(0, 29, 100).passed


def test_the_audit_notices_evictions_that_did_not_come(tmp_path, monkeypatch):
    """And says so in words of its own, whatever else is wrong then."""
    loaded = loaded_tiny(tmp_path)
    monkeypatch.setattr(Schedule, "most_held", property(lambda self: self.planned))  # room for everything
    monkeypatch.setattr(Schedule, "excess", lambda self, n, held: 0)
    *_, cache = walk(loaded, 17, budget=16, recent=4, interval=4)
    assert cache.audit().problems == ("the budget was exceeded and nothing was evicted",)
    assert cache.audit().policy_active is False
    *_, cache = walk(loaded, 18, budget=16, recent=4, interval=4)
    assert "lane 0 held more than its budget, or lost recent tokens" in cache.audit().problems


@pytest.mark.parametrize("tokens", [0, 1, 40])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_prompt_beyond_the_total_budget_is_no_false_alarm_before_the_first_step(tmp_path, family, tokens):
    loaded = loaded_tiny(tmp_path, family)
    *_, cache = walk(loaded, tokens, budget=8, recent=4, protect_prompt=False, total_budget=20, sinks=2)
    audit = cache.audit(0, 30, tokens)
    assert audit.passed and audit.policy_active == (None if tokens == 0 else True)


@pytest.mark.parametrize("strategy", ["adaptive", "discontinuous", "slide", "rpc"])
def test_a_total_budget_holds_where_the_planned_output_fits_the_budget(tmp_path, strategy):
    loaded = loaded_tiny(tmp_path)
    settings = {"budget": 60, "recent": 10, "protect_prompt": False, "total_budget": 50}
    most = 0
    for cache in walk(loaded, 59, strategy=strategy, **settings):
        most = max(most, *((layer.positions >= 0).sum(-1).max().item() for layer in cache.policy_layers))
    assert cache.audit(0, 30, 59).passed and cache.audit().policy_active
    assert most <= 50


@pytest.mark.once
@pytest.mark.parametrize("strategy", ["slide", "adaptive", "unified"])
@pytest.mark.parametrize("budget", [2, 3, 4, 8, 32, 65, 127])
def test_four_scorers_keep_different_tokens_at_every_budget(tmp_path, budget, strategy):
    loaded = loaded_tiny(tmp_path)
    settings = {"budget": budget, "strategy": strategy}
    if strategy == "unified":
        settings = {"budget": budget, "protect_prompt": False, "total_budget": max(8, budget), "sinks": 2}
    held = {}
    for scorer in ("attention", "recency", "random", "knorm"):
        seen = []
        for cache in walk(loaded, max(40, budget + 50), prompt_tokens=10, scorer=scorer, **settings):
            seen.append(torch.stack([layer.positions.sort(-1).values for layer in cache.policy_layers]))
        audit = cache.audit()
        assert audit.passed
        held[scorer] = torch.stack(seen)
        leaves_room = cache.count(0).schedule.kept_by_score > 0
        assert leaves_room == (strategy != "adaptive" or budget > 2), (
            "adaptive allows the last one at the end"
        )
        assert (audit.evicted_by_score > 0) == leaves_room
    for one, other in combinations(held, 2):
        assert torch.equal(held[one], held[other]) != leaves_room, (one, other)


def test_the_audit_tells_tokens_that_a_score_chose_from_those_that_age_did(tmp_path):
    loaded = loaded_tiny(tmp_path)
    for interval, by_score, by_age in (
        (1, True, False),
        (12, True, False),
        (13, False, True),
        (64, False, True),
    ):
        *_, cache = walk(loaded, 100, budget=16, recent=4, interval=interval)
        audit = cache.audit()
        assert audit.evicted_by_score + audit.evicted_by_age == cache.reading().evicted_tokens
        assert (audit.evicted_by_score > 0, audit.evicted_by_age > 0) == (by_score, by_age)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_step_at_rest_leaves_lanes_that_run_as_they_were(tmp_path, family):
    """What the warm-up of a CUDA graph relies on, in the middle of a text."""
    loaded = loaded_tiny(tmp_path, family)
    *_, cache = walk(loaded, 30, budget=16, recent=4, scorer="accumulated")
    before = {name: tensor.clone() for name, tensor in cache.tensors().items()}
    assert int(cache.running.sum()) == 1
    with torch.no_grad(), cache.at_rest():
        loaded.model(
            input_ids=torch.ones(1, 1, dtype=torch.int64),
            position_ids=cache.next_position[None],
            use_cache=False,
            scope_cache=cache,
        )
    for name, tensor in cache.tensors().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("scorer", ["accumulated", "lru", {"name": "window", "memory": 0.8}])
def test_what_a_scorer_remembered_is_gone_with_the_prompt(tmp_path, scorer):
    *_, cache = walk(loaded_tiny(tmp_path), 30, budget=16, recent=4, scorer=scorer)
    memos = [memo for layer in cache.policy_layers for memo in layer.memos.values()]
    assert memos and all(bool(memo.any()) for memo in memos)
    cache.start_prompt(0, cache.count(0).schedule)
    assert not any(bool(memo.any()) for memo in memos)


def bare(kinds, prompt, new, heads=1, lanes=1, **decode):
    """A cache without a model, whose first lane has read a prompt of random keys and values."""
    layers = tuple(LayerGeometry(kind, heads, heads, 4, window=12 * (kind == "window")) for kind in kinds)
    geometry = Geometry(layers, context=4096, hidden=8, vocab=16)
    profile = load_profile(
        "default", {"sampling.max_new_tokens": new, **{f"decode.{key}": to for key, to in decode.items()}}
    )
    plan = plan_run(profile, geometry, prompt)
    cache = ScopeCache(geometry, replace(plan.shape, lanes=lanes), policy_of(profile.profile.decode))
    cache.start_prompt(0, plan.schedule)
    cache.start_chunk(0, prompt)
    for layer in cache.layers:
        layer.read(cache.chunk, *torch.randn(2, 1, heads, prompt, 4))
    cache.end_chunk()
    cache.start_decode(0)
    return cache


def write(cache, tokens):
    """Yields the number of tokens written after each."""
    for written in range(1, tokens + 1):
        for layer in cache.layers:
            layer.write(*torch.randn(2, len(cache.lanes), layer.geometry.kv_heads, 1, 4))
        cache.end_step()
        yield written


@pytest.mark.parametrize(
    ("kinds", "heads"), [(["full"], 1), (["window"], 1), (["full", "window", "full"], 2)]
)
def test_what_is_left_of_an_open_prompt_is_counted_in_the_slots(kinds, heads):
    cache = bare(kinds, 9, 40, heads, budget=8, recent=2, interval=3, scorer="recency", protect_prompt=False)
    assert cache.reading().kept_prompt == (9 if "full" in kinds else 0)
    for _ in write(cache, 30):
        reading, positions = cache.reading(), [layer.positions for layer in cache.policy_layers]
        parts = sum(heads for _ in positions) or 1
        assert reading.kept_prompt * parts == sum(int(((one >= 0) & (one < 9)).sum()) for one in positions)
        if positions:
            assert reading.kept_generated * parts == sum(int((one >= 9).sum()) for one in positions)
    assert reading.kept_prompt == 0 and cache.audit().passed


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("scorer", ["accumulated", "lru"])
def test_a_slot_that_is_filled_remembers_nothing_of_what_it_held(scorer, known):
    """Whether a step writes it or output that is known is fed."""
    cache = bare(["full"], 5, 40, heads=2, budget=8, recent=2, interval=3, scorer=scorer)
    (layer,) = cache.policy_layers
    assert layer.memos
    for memo in layer.memos.values():
        memo.fill_(7)
    if known:
        cache.start_known(0, 1)
        layer.read(cache.chunk, *torch.randn(2, 1, 2, 1, 4))
    else:
        layer.write(*torch.randn(2, 1, 2, 1, 4))
    filled = layer.positions == 5
    assert filled.sum(-1).tolist() == [[1, 1]]
    for memo in layer.memos.values():
        assert (memo[filled] == 0).all() and (memo[~filled] == 7).all()


@pytest.mark.parametrize(("lanes", "step"), [(1, 64), (2, 512)])
def test_a_step_reads_what_is_used_in_whole_steps_and_in_blocks_where_lanes_share_it(lanes, step):
    """What a lane computes must not depend on how many slots the others use."""
    cache = bare(["full"], 100, 900, lanes=lanes, budget=700, recent=100)
    (layer,) = cache.layers
    assert layer.slots == 832  # 100 + 701, in whole steps
    for written in write(cache, 740):
        used = 100 + min(written + 1, 701)  # with the token that comes
        assert layer.read_slots == min(832, next(many for many in range(0, 2000, step) if many >= used))


def test_lanes_advance_by_numbers_as_by_pytorch():
    """On a CPU and on a GPU: those that run, once around the ring and some."""
    told = []
    for device in ("cpu", "cuda"):
        cache = bare(["full"], 9, 40, lanes=3)
        cache.device = torch.device(device)
        cache.next_position[2], cache.held[2], cache.running[2] = 70, 30, 1
        for _ in range(cache.shape.ring + 5):
            cache._advance()
        told.append([cache.next_position, cache.held, cache.query_positions])
    assert all(torch.equal(*both) for both in zip(*told, strict=True))
    assert told[0][0].tolist() == [9 + cache.shape.ring + 5, 0, 75 + cache.shape.ring]
