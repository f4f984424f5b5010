"""Every scorer against its formula, written out with loops in float64.

On a model with two heads to a KV head, and on one with heads == kv_heads.
"""

from math import log

import pytest
import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.errors import ScopeError
from scope_cli.policies import plugins, policy
from scope_cli.policies.policy import output_norms, weigh_by_output
from tests.helpers.oracle import splitmix
from tests.policies.scorers.plain import (
    LaneOf,
    by_position,
    close,
    heads_of,
    kept,
    last_view,
    mean,
    model_of,
    softmax,
    written,
)

FAMILIES = pytest.mark.parametrize("family", ["llama", "llama-mha"])
MEMO = 1e-6  # memos and ranks are float32


def score_of(view, name, **options):
    return plugins.build("scorers", name, options).score(view)


def uniform(view, head, position, salt=0) -> float:
    """What `SlotView.uniform` promises, on Python's integers; lane 0 of layer 1."""
    state = int(view.seeds[0]) + salt
    for part in (view.layer, head.index, int(view.n[0]), position):
        state = splitmix(state + part + 1)
    return (state >> 40) / 2**24


# Attention over a window


@FAMILIES
@pytest.mark.parametrize("queries", ["mean", "max"])
@pytest.mark.parametrize("group", ["mean", "max", "logit_max"])
def test_window_is_attention_over_the_newest_queries(family, queries, group):
    view = last_view("window", family=family)
    for head in heads_of(view):
        assert len(head.queries) == 16
        got = by_position(view, score_of(view, "window", queries=queries, group=group), head.index)
        assert close(got, head.attention(16, queries, group))


@FAMILIES
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_window_pools_along_the_text(family, pooling):
    """SnapKV at decode is a window of 32 with a kernel of 5."""
    view = last_view({"name": "window", "window": 32}, family=family)
    scores = score_of(view, "window", window=32, kernel=5, pooling=pooling)
    for head in heads_of(view):
        assert len(head.queries) == 32
        expected = head.pool(head.attention(32), 5, pooling)
        assert close(by_position(view, scores, head.index), expected)


def test_a_query_that_came_before_the_text_had_that_many_does_not_count():
    cache, _ = next(written({"name": "window", "window": 32}, lanes=(LaneOf(prompt=5),)))
    view = cache.policy_layers[1].view()
    for head in heads_of(view):
        assert len(head.queries) == 6
        assert close(by_position(view, score_of(view, "window", window=32), head.index), head.attention(32))


def test_a_query_whose_whole_sight_was_evicted_does_not_count():
    """An unprotected prompt without sinks can be forgotten up to the newest token."""
    view = last_view("window")
    gone = view.positions < int(view.now[0]) - 2
    view.positions = view.positions.masked_fill(gone, -1)
    view.is_held = view.positions >= 0
    for head in heads_of(view):
        head.queries = {p: query for p, query in head.queries.items() if p >= min(head.held)}
        assert len(head.queries) == 3
        assert close(by_position(view, score_of(view, "window"), head.index), head.attention(3))


@FAMILIES
def test_window_with_memory_decays_at_every_eviction(family):
    """G-KV: F = max(0.8 F, f / max f)."""
    remembered = {}

    def watch(view):
        if view.layer != 1:
            return
        for head in heads_of(view):
            now = head.attention(16, group="logit_max")
            top = max(now.values())
            old = remembered.get(head.index, {})
            remembered[head.index] = {p: max(0.8 * old.get(p, 0.0), a / top) for p, a in now.items()}
            got = by_position(view, scorer.score(view), head.index)
            assert close(got, remembered[head.index], MEMO)

    options = {"name": "window", "memory": 0.8, "group": "logit_max"}
    scorer = plugins.build("scorers", "window", {"memory": 0.8, "group": "logit_max"})
    *_, (cache, _) = written(options, family=family, watch=watch)
    assert cache.reading().evictions == 7 and set(remembered) == set(range(view_heads(cache)))
    oldest = min(p for p in remembered[0] if p >= 30)
    assert oldest < 70, "something was remembered over several evictions"


def view_heads(cache: ScopeCache) -> int:
    return cache.policy_layers[0].geometry.kv_heads


def test_a_window_of_one_with_shared_heads_is_tova():
    """One query, averaged over all heads of the layer; all of them keep the same tokens."""
    *_, (cache, _) = written({"name": "window", "window": 1}, share="layer", recent=1, interval=1)
    for layer in cache.policy_layers:
        assert torch.equal(layer.positions[0, 0].sort().values, layer.positions[0, 1].sort().values)
    view = cache.policy_layers[1].view(cache.facts([6]))
    scores = cache.policy.scores(view)
    heads = list(heads_of(view))
    rows = [head.attention() for head in heads]
    expected = {p: mean([row[p] for row in rows]) for p in heads[0].held}
    for head in heads:
        assert close(by_position(view, scores, head.index), expected)


# Memories of every token


@FAMILIES
@pytest.mark.parametrize("chunk", [7, 512])
def test_accumulated_is_all_attention_received_the_prompts_too(family, chunk):
    """With the prompt unprotected, 30 of 30 queries in the ring, then one per token."""
    mass = {}

    def watch(view):
        if view.layer != 1:
            return
        for head in heads_of(view):
            if head.index not in mass:  # every prompt query is still in the ring
                assert [p for p in sorted(head.queries) if p < 30] == list(range(30))
                mass[head.index] = dict.fromkeys(range(30), 0.0)
                for position in range(30):
                    members = [softmax(member) for member in head.logits(position)]
                    for p in range(position + 1):
                        mass[head.index][p] += mean([member[p] for member in members])
            for p, a in head.attention().items():
                mass[head.index][p] = mass[head.index].get(p, 0.0) + a
            got = by_position(view, view.memo("mass"), head.index)
            assert close(got, {p: mass[head.index][p] for p in head.held}, MEMO)

    how = {"protect_prompt": False, "total_budget": 40, "chunk": chunk, "family": family}
    *_, (cache, _) = written("accumulated", watch=watch, ring=64, **how)
    assert cache.reading().evictions > 5 and len(mass) == view_heads(cache)


@FAMILIES
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_lru_keeps_what_was_used_last(family, share):
    stamps = {}

    def watch(view):
        if view.layer != 1:
            return
        n = int(view.n[0])
        for head in heads_of(view):
            stamp = stamps.setdefault(head.index, {})
            used = head.top(head.attention(), -int(-len(head.held) * share // 1), head.held)
            for p in used | {int(view.now[0])}:
                stamp[p] = n
            got = by_position(view, view.memo("stamp"), head.index)
            assert got == {p: stamp.get(p, 0) for p in head.held}

    *_, (cache, _) = written({"name": "lru", "share": share}, family=family, watch=watch)
    assert cache.reading().evictions == 7 and len(stamps) == view_heads(cache)
    assert len(set(stamps[0].values())) > 10


@pytest.mark.parametrize("name", ["accumulated", "lru"])
def test_a_token_fed_to_one_lane_is_no_step_of_the_other(name):
    *_, (cache, _) = written(name, 30, (LaneOf(), LaneOf(text=1)))
    before = {key: memo.clone() for key, memo in cache.tensors().items() if "memos" in key}
    with torch.no_grad():
        model_of("llama", torch.float64)(
            input_ids=torch.tensor([[7]]),
            position_ids=cache.start_known(1, 1),
            use_cache=False,
            scope_cache=cache,
        )
    cache.end_chunk()
    for key, memo in before.items():
        assert torch.equal(cache.tensors()[key][0], memo[0])
        assert not torch.equal(cache.tensors()[key][1], memo[1])


# Keys and values


@FAMILIES
@pytest.mark.parametrize("options", [{}, {"mix": 0.1, "window": 3, "kernel": 3, "threshold": -0.2}])
def test_rkv_is_importance_less_redundancy(family, options, monkeypatch):
    monkeypatch.setattr("scope_cli.policies.scorers.rkv.ROWS", 5)
    view = last_view({"name": "rkv", **options}, family=family)
    rkv = plugins.build("scorers", "rkv", options)
    spared = 0
    for head in heads_of(view):
        candidates = head.candidates
        attention = head.attention(rkv.window, group="logit_max", among=candidates)
        importance = head.pool(attention, rkv.kernel, "max")
        columns = dict.fromkeys(candidates, 0.0)
        for row in candidates:
            unit = head.keys[row] / head.keys[row].norm()
            cosines = {p: float(unit @ head.keys[p] / head.keys[p].norm()) for p in candidates}
            cosines[row] = 0.0
            alike = [p for p in candidates if cosines[p] > rkv.threshold]
            if alike:
                cosines[max(alike)] = 0.0
                spared += 1
            for p in candidates:
                columns[p] += cosines[p]
        redundancy = softmax({p: total / len(candidates) for p, total in columns.items()})
        expected = {p: rkv.mix * importance[p] - (1 - rkv.mix) * redundancy[p] for p in candidates}
        assert close(by_position(view, rkv.score(view), head.index), expected)
    assert spared, "some key was like another"


def test_rkv_spares_the_newest_of_duplicates():
    view = last_view("rkv")
    alike = [next(heads_of(view)).candidates[at] for at in (3, 7, 9)]
    first, *others = [int((view.positions[0, 0] == p).nonzero()) for p in alike]
    for slot in others:
        view.keys[0, 0, slot] = view.keys[0, 0, first] * 2
    rkv = plugins.build("scorers", "rkv", {"threshold": 0.99})
    redundancy = by_position(view, rkv.redundancy(view), 0)
    assert redundancy[alike[0]] > redundancy[alike[1]] > redundancy[alike[2]]


@FAMILIES
def test_keydiff_is_minus_the_cosine_to_the_mean_key(family):
    view = last_view("keydiff", family=family)
    for head in heads_of(view):
        centre = sum(key / key.norm() for key in head.keys.values()) / len(head.held)
        expected = {p: -float(key @ centre / key.norm() / centre.norm()) for p, key in head.keys.items()}
        assert close(by_position(view, score_of(view, "keydiff"), head.index), expected)


@FAMILIES
def test_knorm_is_minus_the_norm(family):
    view = last_view("knorm", family=family)
    for head in heads_of(view):
        expected = {p: -float(sum(x * x for x in key.tolist()) ** 0.5) for p, key in head.keys.items()}
        assert close(by_position(view, score_of(view, "knorm"), head.index), expected)


@FAMILIES
@pytest.mark.parametrize("lag", [3, 4, 8, 32])
def test_lagkv_ranks_within_partitions(family, lag):
    view = last_view("lagkv", family=family)
    view.values[..., 0] = 1.5  # a channel without any range spreads nothing
    for head in heads_of(view):
        candidates = head.candidates
        whole = len(candidates) // lag
        expected = {}
        for part in range(max(0, whole - 1)):
            tokens = candidates[part * lag : (part + 1) * lag]
            following = candidates[(part + 1) * lag : (part + 2) * lag]
            totals = dict.fromkeys(tokens, 0.0)
            for states in (head.keys, head.values):
                after = torch.stack([states[p] for p in following])
                low, high = after.min(0).values, after.max(0).values
                spread = {p: float(((states[p] - low) / (high - low).clamp(min=1e-6)).std()) for p in tokens}
                totals = {p: totals[p] + weight / 2 for p, weight in softmax(spread).items()}
            for rank, p in enumerate(sorted(tokens, key=totals.get)):
                expected[p] = (rank + 1) / lag
        got = by_position(view, score_of(view, "lagkv", lag=lag), head.index)
        if expected:
            assert close(got, expected, MEMO)
        rest = candidates[len(expected) :]
        assert len(rest) >= min(lag, len(candidates))
        assert [got[p] for p in rest] == sorted(got[p] for p in rest) and got[rest[0]] > 1


# Chance


@FAMILIES
def test_vase_is_a_reserve_and_a_lottery(family):
    view = last_view({"name": "vase", "window": 8}, family=family)
    vase = plugins.build("scorers", "vase", {"window": 8})
    for head in heads_of(view):
        attention = head.pool(head.attention(8), 5, "mean")
        tickets = {p: log(attention[p]) - log(-log(uniform(view, head, p))) for p in head.candidates}
        got = by_position(view, vase.lottery(view), head.index)
        assert close(got, tickets, 1e-5)  # the noise is float32
        wide = head.top(head.value_range(), head.keep // 4)
        rest = head.top(tickets, head.keep - len(wide), [p for p in head.candidates if p not in wide])
        assert wide and rest
        assert kept(view, vase.score(view), head) == wide | rest


def test_the_lottery_draws_in_proportion_to_attention():
    """2,000 draws of one token: the highest ticket is a candidate's as often as its share says."""
    view = last_view({"name": "vase", "window": 8})
    vase = plugins.build("scorers", "vase", {"window": 8})
    head = next(heads_of(view))
    weights = head.pool(head.attention(8), 5, "mean")
    total = sum(weights[p] for p in head.candidates)
    wins = dict.fromkeys(head.candidates, 0)
    for seed in range(2000):
        view.seeds = torch.tensor([seed])
        tickets = by_position(view, vase.lottery(view), 0)
        wins[max(head.candidates, key=tickets.get)] += 1
    for p in head.candidates:
        share = weights[p] / total
        assert abs(wins[p] / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5 + 1e-3


@FAMILIES
def test_vase_cur_is_a_sketch_redrawn_at_each_eviction(family):
    view = last_view({"name": "vase", "mode": "cur"}, family=family)
    vase = plugins.build("scorers", "vase", {"mode": "cur"})
    assert vase.ring == 1
    projection = vase.projection(view)  # [lanes, kv_heads, head_dim, rank]
    for head in heads_of(view):
        sketch = projection[0, head.index].double()
        expected = {
            p: float((head.keys[p] @ sketch).square().sum() * (head.values[p] @ sketch).square().sum())
            for p in head.candidates
        }
        assert close(by_position(view, vase.sketch(view), head.index), expected, 1e-6)
        wide = head.top(head.value_range(), head.keep // 4)
        rest = head.top(expected, head.keep - len(wide), [p for p in head.candidates if p not in wide])
        assert kept(view, vase.score(view), head) == wide | rest
    view.n = view.n + 1
    assert not torch.equal(vase.projection(view), projection)


def test_the_sketch_is_normal_with_variance_one_over_rank():
    view = last_view({"name": "vase", "mode": "cur"})
    drawn = plugins.build("scorers", "vase", {"mode": "cur", "rank": 2000}).projection(view)
    scaled = drawn.flatten().double() * 2000**0.5
    assert abs(scaled.mean()) < 0.03 and abs(scaled.var() - 1) < 0.03
    assert abs((scaled.abs() < 1).double().mean() - 0.6827) < 0.01
    assert scaled.unique().numel() > 0.99 * scaled.numel()


# Position


@pytest.mark.parametrize("interval", [1, 6])
@pytest.mark.parametrize("levels", [1, 3, 4])
def test_cascade_drops_what_is_off_its_stride_then_the_oldest(levels, interval):
    """Every eviction of 300 tokens against the sub-caches' spans, written out."""
    evictions = []

    def watch(view):
        scores = cascade.score(view)
        for head in heads_of(view):
            newest = max(head.candidates)
            fits, breaks = [], []
            for p in head.candidates:
                begins, level = 0.0, 0
                while level < levels - 1 and newest - p >= begins + head.keep / levels * 2**level:
                    begins += head.keep / levels * 2**level
                    level += 1
                (breaks if (p - 30) % 2**level else fits).append(p)
            order = breaks + fits  # each the older first: they go in this order
            leaving = len(head.candidates) - head.keep
            assert kept(view, scores, head) == set(order[leaving:])
            evictions.append(len(breaks))

    cascade = plugins.build("scorers", "cascade", {"levels": levels})
    how = {"budget": 24, "recent": 4, "interval": interval}
    *_, (cache, _) = written({"name": "cascade", "levels": levels}, 300, watch=watch, **how)
    assert len(evictions) > 4 * 270 / interval
    assert any(evictions) == (levels > 1)
    index = (cache.policy_layers[0].positions[0, 0] - 30).tolist()
    output = sorted(i for i in index if i >= 0)
    if levels == 4 and interval == 1:  # 5 tokens a level, at strides 1, 2, 4 and 8, and the 4 recent ones
        assert len(output) == 24 and output[-4:] == [296, 297, 298, 299]
        assert [i for i in output if i < 260] == [224, 232, 240, 248, 256]
    if levels == 1:
        assert output == list(range(300 - len(output), 300))


# What lies over every scorer


@FAMILIES
@pytest.mark.parametrize("block", [1, 2**24])
def test_criticalkv_weighs_by_what_a_value_adds_to_the_output(family, block, monkeypatch):
    monkeypatch.setattr(policy, "BLOCK_NUMBERS", block * 3 * 2 * 32)
    view = last_view("attention", family=family, weigh="criticalkv")
    weight = model_of(family, torch.float64).model.layers[1].self_attn.o_proj.weight  # [hidden, heads * 8]
    scores = score_of(view, "attention")
    norms, weighed = output_norms(view), weigh_by_output(view, scores)
    group = 4 // view.keys.shape[1]
    for head in heads_of(view):
        columns = [weight[:, 8 * (head.index * group + member) :][:, :8] for member in range(group)]
        norm = {p: mean([float((w @ head.values[p]).abs().sum()) for w in columns]) for p in head.candidates}
        assert close(by_position(view, norms, head.index), norm)
        raw = by_position(view, scores, head.index)
        first = head.top(raw, head.keep // 2)
        product = {p: (raw[p] + 1e-4) * norm[p] for p in head.candidates}
        rest = head.top(product, head.keep - len(first), [p for p in head.candidates if p not in first])
        assert kept(view, weighed, head) == first | rest


def test_criticalkv_says_that_it_cannot_read_quantised_weights():
    model = model_of("llama", torch.float64)
    plain = [layer.self_attn.o_proj.weight for layer in model.model.layers]
    try:
        for layer in model.model.layers:
            quantised = layer.self_attn.o_proj.weight.to(torch.int8)
            layer.self_attn.o_proj.weight = torch.nn.Parameter(quantised, requires_grad=False)
        with pytest.raises(ScopeError, match=r"quantised \(int8\)"):
            next(written("attention", weigh="criticalkv"))
    finally:
        for layer, weight in zip(model.model.layers, plain, strict=True):
            layer.self_attn.o_proj.weight = weight


# Options


def test_a_kernel_is_odd_and_ranges_hold():
    for name, options in [
        ("window", {"kernel": 4}),
        ("window", {"window": 0}),
        ("window", {"memory": 1.0}),
        ("rkv", {"kernel": 2}),
        ("vase", {"mode": "cube"}),
        ("lru", {"share": 0}),
        ("cascade", {"levels": 0}),
        ("lagkv", {"lag": 1}),
    ]:
        (problem,) = plugins.option_problems("scorers", name, options)
        assert problem[0] in options
    assert "odd" in plugins.option_problems("scorers", "window", {"kernel": 4})[0][1]["msg"]
