"""Each method against its formula, written with loops in float64, from the prompt to what is held."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.policies import plugins
from scope_cli.policies.prefills.base import choose, precise
from scope_cli.policies.received import QUERY_BLOCK
from tests.policies.prefills.helpers import PROMPT, WINDOW, prompt_of, prompt_positions, read, rows, views

BUDGET = 20
ALL_QUERIES = {"name": "think", "queries": 1000}  # it makes the staging remember every query
FAMILIES = ["llama", "llama-mha", "gemma3"]
BEFORE = range(PROMPT - WINDOW)


def seen(family, method, **options):
    """Views with every query of the prompt."""
    chosen = {"method": {"name": method, **options}, "budget": BUDGET, "wrap": [ALL_QUERIES]}
    return views(family, prompt_of(), chosen)


def kept(family, method, budget=BUDGET, wrap=(), **options):
    chosen = {"method": {"name": method, **options}, "budget": budget, "wrap": list(wrap)}
    return prompt_positions(read(family, prompt_of(), chosen, chunk=16)[0])


def best(scores, budget=BUDGET):
    """Positions: the window, and the highest scored before it."""
    ranked = sorted(BEFORE, key=lambda p: (-scores[p], -p))
    return sorted([*ranked[: budget - WINDOW], *range(PROMPT - WINDOW, PROMPT)])


def mean_over_group(view, per_query):
    """Sum over the queries, mean over the group: [kv_heads][prompt]."""
    heads = view.queries.shape[0]
    group = heads // view.kv_heads
    total = [[0.0] * view.prompt for _ in range(view.kv_heads)]
    for (head, _), row in per_query.items():
        for j, p in enumerate(row):
            total[head // group][j] += p / group
    return total


def window_attention(view):
    return mean_over_group(view, rows(view, view.queries[:, -WINDOW:]))


def pooled(scores, kernel, how):
    out = []
    for i in BEFORE:
        near = [scores[j] for j in range(i - kernel // 2, i + kernel // 2 + 1) if j in BEFORE]
        out.append(max(near) if how == "max" else sum(near) / kernel)  # avg counts zeros beyond the ends
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_keeps_both_ends(family):
    expected = [*range(BUDGET - WINDOW), *range(PROMPT - WINDOW, PROMPT)]
    assert all(head == expected for layer in kept(family, "streaming") for head in layer)


def test_h2o_computes_a_block_of_rows_at_a_time():
    method, layer = plugins.build("prefills", "h2o", {}), SimpleNamespace(heads=6)
    rows = QUERY_BLOCK  # of queries
    assert method.observing(layer, 3, 1000) == 2 * 6 * 3 * 1000
    assert method.observing(layer, 10 * rows, 1000) == 2 * 6 * rows * 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_h2o_keeps_what_every_causal_query_looked_at(family):
    expected = [
        [best(scores) for scores in mean_over_group(view, rows(view, view.queries))]
        for view in seen(family, "h2o")
    ]
    assert kept(family, "h2o") == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kernel", "pooling"), [(7, "max"), (3, "avg"), (1, "max"), (7, "avg")])
def test_snapkv_keeps_what_the_window_looked_at_and_its_neighbours(family, kernel, pooling):
    options = {"kernel": kernel, "pooling": pooling}
    expected = [
        [pooled(scores, kernel, pooling) for scores in window_attention(view)]
        for view in seen(family, "snapkv", **options)
    ]
    for view, layer in zip(seen(family, "snapkv", **options), expected, strict=True):
        got = plugins.build("prefills", "snapkv", options).score(view)[:, : PROMPT - WINDOW]
        torch.testing.assert_close(got, torch.tensor(layer, dtype=torch.float64), atol=1e-12, rtol=0)
    # Pools make equals of neighbours, which the last bit of a sum tells apart: compare their scores.
    for layer, held in zip(expected, kept(family, "snapkv", **options), strict=True):
        for scores, head in zip(layer, held, strict=True):
            got = sorted(scores[p] for p in head if p in BEFORE)
            assert got == pytest.approx(sorted(scores, reverse=True)[: BUDGET - WINDOW][::-1], abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_pyramidinfer_weighs_the_newest_queries_most(family):
    for view in seen(family, "pyramidinfer", distance_weight=3.0):
        per_query = rows(view, view.queries[:, -WINDOW:])
        weight = {PROMPT - WINDOW + i: 1 + 2 * i / (WINDOW - 1) for i in range(WINDOW)}
        weighted = {key: [p * weight[key[1]] / 10 for p in row] for key, row in per_query.items()}
        expected = torch.tensor(mean_over_group(view, weighted), dtype=torch.float64)
        got = plugins.build("prefills", "pyramidinfer", {"distance_weight": 3.0}).score(view)
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_keydiff_keeps_the_keys_that_differ_most(family):
    expected = []
    for view in seen(family, "keydiff"):
        layer = []
        for head in view.keys.tolist():
            norms = [math.sqrt(math.fsum(x * x for x in key)) for key in head]
            channels = range(len(head[0]))
            mean = [
                math.fsum(key[c] / norm for key, norm in zip(head, norms, strict=True)) / PROMPT
                for c in channels
            ]
            length = math.sqrt(math.fsum(x * x for x in mean))
            cosine = [
                math.fsum(key[c] * mean[c] for c in channels) / norm / length
                for key, norm in zip(head, norms, strict=True)
            ]
            layer.append(best([-c for c in cosine]))
        expected.append(layer)
    assert kept(family, "keydiff") == expected


def rotation(t, inv_freq, width):
    """The matrix that rotates a query at position t."""
    matrix = torch.eye(width, dtype=torch.float64)
    half = len(inv_freq)
    for j, frequency in enumerate(inv_freq.tolist()):
        c, s = math.cos(t * frequency), math.sin(t * frequency)
        matrix[j, j], matrix[j, j + half], matrix[j + half, j], matrix[j + half, j + half] = c, -s, s, c
    return matrix


@pytest.mark.parametrize("family", FAMILIES)
def test_expected_is_the_gaussian_estimate_of_the_attention_to_come(family):
    options = {"future": 9, "sinks": 3, "epsilon": 0.01}
    for view in seen(family, "expected", **options):
        width = view.keys.shape[2]
        turns = [rotation(PROMPT + t, view.inv_freq, width) for t in range(9)]
        ahead = sum(turns) / 9
        scores = [[0.0] * PROMPT for _ in range(view.kv_heads)]
        group = view.queries.shape[0] // view.kv_heads
        for head in range(view.queries.shape[0]):
            plain = [
                rotation(t, view.inv_freq, width).T @ view.queries[head, t].double() for t in range(3, PROMPT)
            ]
            mean = sum(plain) / len(plain)
            covariance = sum(torch.outer(q - mean, q - mean) for q in plain) / len(plain)
            mean, covariance = ahead @ mean, ahead @ covariance @ ahead.T
            logits = torch.tensor(
                [
                    float(mean @ key * view.scale + key @ covariance @ key * view.scale**2 / 2)
                    for key in view.keys[head // group, 3:]
                ],
                dtype=torch.float64,
            )
            for j, p in enumerate(logits.softmax(0).tolist()):
                scores[head // group][3 + j] += p / group
        for head, row in enumerate(scores):
            for j in range(3, PROMPT):
                row[j] = (row[j] + 0.01) * float(view.values[head, j].norm())
        highest = max(max(row[3:]) for row in scores)
        expected = torch.tensor([[highest] * 3 + row[3:] for row in scores], dtype=torch.float64)
        got = plugins.build("prefills", "expected", options).score(view)
        torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-7)  # inv_freq is float32


def test_random_is_another_choice_for_another_head_layer_and_seed():
    (first, second) = seen("llama", "random")
    build = plugins.build("prefills", "random", {})
    scores = [*build.score(first), *build.score(second)]
    first.drawn_seed += 1
    scores += [*build.score(first)]
    assert len({tuple(row.tolist()) for row in scores}) == len(scores)
    assert all(0.3 < float(row.mean()) < 0.7 for row in scores)
    lags = [torch.corrcoef(torch.stack([scores[4][:-1], scores[0][1:]]))[0, 1]]  # a seed is no shift
    assert all(abs(float(lag)) < 0.4 for lag in lags)


def test_among_equals_the_newer_stays():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0, 0.0]])
    assert choose(scores, 3, 1).tolist() == [[False, False, True, True, False, True]]


# Budgets of layers


def check_budgets(budgets, layers, budget, prompt, window):
    assert len(budgets) == layers
    assert sum(budgets) == budget * layers, "the total is unchanged, to the token"
    assert all(window <= tokens <= prompt for tokens in budgets)
    assert budgets == sorted(budgets, reverse=True), "no layer keeps more than the one below"


@st.composite
def sizes(draw):
    window = draw(st.integers(1, 64))
    budget = draw(st.integers(window, 4096))
    return {
        "layers": draw(st.integers(1, 80)),
        "window": window,
        "budget": budget,
        "prompt": draw(st.integers(budget + 1, 3 * budget + 50)),
    }


@given(sizes=sizes(), beta=st.integers(1, 40))
def test_pyramidkv_divides_the_budget_exactly(sizes, beta):
    budgets = plugins.build("prefills", "pyramidkv", {"beta": beta}).budgets(**sizes)
    check_budgets(budgets, **sizes)
    if sizes["prompt"] >= 2 * sizes["budget"] and sizes["layers"] > 1:  # nobody hands anything on
        average = sizes["budget"] - sizes["window"]
        first, last = average * (2 - 1 / beta), average / beta
        for i, tokens in enumerate(budgets):
            even = first + (last - first) * i / (sizes["layers"] - 1)
            assert abs(tokens - sizes["window"] - even) < 1 + 1e-6


@given(sizes=sizes(), decay=st.floats(0.05, 1), shape=st.sampled_from(["cosine", "geometric"]))
def test_pyramidinfer_divides_the_budget_exactly(sizes, decay, shape):
    method = plugins.build("prefills", "pyramidinfer", {"decay": decay, "shape": shape})
    budgets = method.budgets(**sizes)
    check_budgets(budgets, **sizes)
    below_prompt = [tokens - sizes["window"] for tokens in budgets if tokens < sizes["prompt"]]
    for before, after in itertools.pairwise(below_prompt):
        assert after + 2 >= before * decay - 1e-3, "at least `decay` of the layer below"


@pytest.mark.parametrize("shape", ["cosine", "geometric"])
def test_pyramidinfer_keeps_a_share_of_the_layer_below(shape):
    method = plugins.build("prefills", "pyramidinfer", {"decay": 0.6, "shape": shape})
    budgets = method.budgets(budget=1000, prompt=9000, window=10, layers=6)
    lengths = [1.0]
    for layer in range(1, 6):
        ratio = 0.6 + (0.4 * (math.cos(math.pi * layer / 6) + 1) / 2 if shape == "cosine" else 0)
        lengths.append(lengths[-1] * ratio)
    expected = [10 + length * 990 * 6 / sum(lengths) for length in lengths]
    assert budgets == pytest.approx(expected, abs=1)


def test_pyramidkv_hands_on_what_a_layer_cannot_take():
    pyramid = plugins.build("prefills", "pyramidkv", {})
    assert pyramid.budgets(budget=50, prompt=100, window=10, layers=3) == [88, 50, 12]
    assert pyramid.budgets(budget=50, prompt=60, window=10, layers=3) == [60, 60, 30]


@pytest.mark.parametrize("method", ["pyramidkv", {"name": "pyramidinfer", "decay": 0.3}])
def test_the_pyramid_is_what_the_lane_allocates_and_holds(method):
    cache, plan, _ = read("gemma3", prompt_of(), {"method": method, "budget": BUDGET})
    slots = [layer.first_evictable for layer in cache.policy_layers]
    assert slots == [tokens for tokens in plan.prompt.kept if tokens] and slots[0] > slots[1]
    assert sum(slots) == BUDGET * 2
    assert [len(head) for layer in prompt_positions(cache) for head in layer] == [
        tokens for layer, tokens in zip(cache.policy_layers, slots, strict=True) for _ in layer.positions[0]
    ]


# Wrappers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("floor", "cap"), [(0.2, 2.0), (0.5, 1.3), (1.0, 2.0), (0.2, 1.0)])
def test_adakv_gives_the_budget_to_the_highest_scores_of_a_layer(family, floor, cap):
    wrap = [{"name": "adakv", "floor": floor, "cap": cap}]
    expected = []
    for view in seen(family, "h2o"):
        scores = mean_over_group(view, rows(view, view.queries))
        ranked = [sorted(BEFORE, key=lambda p, row=row: (-row[p], -p)) for row in scores]
        held = [
            {*range(PROMPT - WINDOW, PROMPT), *order[: max(0, int(floor * BUDGET) - WINDOW)]}
            for order in ranked
        ]
        flat = sorted(((scores[h][p], h, p) for h in range(view.kv_heads) for p in BEFORE), reverse=True)
        for _, head, position in flat:
            if sum(map(len, held)) < BUDGET * view.kv_heads and len(held[head]) < int(cap * BUDGET):
                held[head].add(position)
        expected.append([sorted(head) for head in held])
    assert kept(family, "h2o", wrap=wrap) == expected
    if cap > 1 > floor and family == "llama":  # the random gemma3's heads share evenly
        assert len({len(head) for layer in expected for head in layer}) > 1, "heads differ"


def test_adakv_pads_to_the_head_that_keeps_most_and_says_so():
    cache, plan, _ = read("llama-mha", prompt_of(), {"method": "h2o", "budget": BUDGET, "wrap": ["adakv"]})
    padding = 0
    for layer, held in zip(cache.policy_layers, prompt_positions(cache), strict=True):
        assert layer.first_evictable == max(map(len, held)) <= 2 * BUDGET
        padding += sum(layer.first_evictable - len(head) for head in held) * 2 * 8 * 8
        free = layer.positions[0] < 0
        assert (layer.bias[0, :, 0][free] == -torch.inf).all()
    assert cache.reading().padding_bytes == padding > 0
    assert plan.shape.prompt_slots == (2 * BUDGET,) * 2, "before the prompt is read, the most it can take"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("budget", [5, 6, 8, 20, 45])
def test_mass_keeps_one_share_of_attention_in_every_layer(family, budget):
    held = kept(family, "keydiff", budget, wrap=["mass"])
    counts = [len(layer[0]) for layer in held]
    assert sum(counts) == budget * len(counts)
    curves = []
    for view in seen(family, "keydiff"):
        heads = view.queries.shape[0]
        per_query = rows(view, view.queries[:, -WINDOW:])
        mass = [sum(row[j] for row in per_query.values()) / heads / WINDOW for j in range(PROMPT)]
        curves.append([0.0, *torch.tensor(sorted(mass, reverse=True)).double().cumsum(0).tolist()])
    # There is a threshold that every layer reaches with its last token and not before, its window apart.
    reached_before = [curve[n - 1] for curve, n in zip(curves, counts, strict=True) if n > WINDOW]
    reached = [curve[n] for curve, n in zip(curves, counts, strict=True)]
    assert max(reached_before, default=0) <= min(reached) + 1e-9
    assert family != "llama" or budget < 20 or len(set(counts)) > 1, (
        "with room, layers keep different numbers"
    )


@pytest.mark.parametrize("tau", [0.3, 0.7, 0.95, 1.0])
def test_mass_with_tau_keeps_as_many_as_it_takes(tau):
    chosen = {"method": "snapkv", "wrap": [{"name": "mass", "tau": tau}]}
    cache, plan, _ = read("llama", prompt_of(), chosen)
    for view, held, layer in zip(
        views("llama", prompt_of(), chosen), prompt_positions(cache), cache.policy_layers, strict=True
    ):
        per_query = rows(view, view.queries[:, -WINDOW:])
        mass = sorted((sum(row[j] for row in per_query.values()) for j in range(PROMPT)), reverse=True)
        needed = next(n for n in range(1, PROMPT + 1) if sum(mass[:n]) >= tau * sum(mass) - 1e-12)
        assert len(held[0]) == layer.first_evictable == max(WINDOW, needed)
    assert plan.shape.prompt_slots == (PROMPT, PROMPT)
    assert cache.reading().allocated_bytes <= plan.shape.cache_bytes(cache.geometry, 8)
    assert cache.audit().passed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["full", "snapkv"])
def test_think_zeroes_the_weakest_channels_before_the_window(family, method):
    budget = {} if method == "full" else {"budget": BUDGET}
    think = {"name": "think", "share": 0.4, "queries": 11}
    cache, _, _ = read(family, prompt_of(), {"method": method, **budget, "wrap": [think]})
    whole, _, _ = read(family, prompt_of(), {"method": "full"})
    originals = views(family, prompt_of(), {"method": method, **budget, "wrap": [think]})
    for layer, full, view in zip(cache.policy_layers, whole.policy_layers, originals, strict=True):
        group = view.queries.shape[0] // view.kv_heads
        for head in range(view.kv_heads):
            held = {p: slot for slot, p in enumerate(layer.positions[0, head].tolist()) if p >= 0}
            pruned_positions = [p for p in held if p < PROMPT - WINDOW]
            weight = []
            for c in range(8):
                q = [
                    float(view.queries[h, i, c]) ** 2
                    for h in range(head * group, (head + 1) * group)
                    for i in range(-11, 0)
                ]
                k = [float(full.keys[0, head, p, c]) ** 2 for p in pruned_positions]
                weight.append(sum(q) / len(q) * sum(k) / len(k))
            weakest = sorted(range(8), key=lambda c: weight[c])[:3]  # 40% of 8, rounded down
            for p, slot in held.items():
                expected = precise(full.keys[0, head, p]).clone()
                if p < PROMPT - WINDOW:
                    expected[weakest] = 0
                assert torch.equal(layer.keys[0, head, slot], expected)
