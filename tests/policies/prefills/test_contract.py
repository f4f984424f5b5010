"""What every prefill method promises, alone and wrapped; the test finds the files by itself."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scope_cli.cache.shape import PromptPlan
from scope_cli.cache.staging import Staging
from scope_cli.engine.prefill import read_prompt
from scope_cli.policies import plugins
from tests.policies.prefills.helpers import (
    PROMPT,
    WINDOW,
    empty_cache,
    model_of,
    planned,
    prompt_of,
    prompt_positions,
    read,
    views,
    write,
)

torch.set_num_threads(1)
METHODS = plugins.names("prefills")
WRAPPERS = plugins.names("wrappers")


def fits_together(method, wrap) -> bool:
    classes = [plugins.plugin_class("prefills", method), *(plugins.plugin_class("wrappers", w) for w in wrap)]
    divides = [cls.divides_layers or getattr(cls, "divides_heads", False) for cls in classes]
    if not classes[0].compresses and any(divides):
        return False
    return sum(cls.divides_layers for cls in classes) <= 1


COMBINATIONS = [
    (method, wrap)
    for method in METHODS
    for count in range(len(WRAPPERS) + 1)
    for wrap in itertools.combinations(WRAPPERS, count)
    if fits_together(method, wrap) and (count < 2 or method == "snapkv")  # a few of the many
]
COMPRESSING = [pair for pair in COMBINATIONS if plugins.plugin_class("prefills", pair[0]).compresses]
every_combination = pytest.mark.parametrize(
    ("method", "wrap"), COMBINATIONS, ids=["+".join([m, *w]) for m, w in COMBINATIONS]
)
every_compression = pytest.mark.parametrize(
    ("method", "wrap"), COMPRESSING, ids=["+".join([m, *w]) for m, w in COMPRESSING]
)


def settings_of(method, wrap, budget=20):
    keep = {"budget": budget} if plugins.plugin_class("prefills", method).compresses else {}
    return {"method": method, "wrap": list(wrap), **keep}


@every_compression
@pytest.mark.parametrize("family", ["llama", "llama-mha", "gemma3"])
def test_the_budget_is_used_up_and_not_exceeded(family, method, wrap):
    cache, _, _ = read(family, prompt_of(), settings_of(method, wrap))
    held = prompt_positions(cache)
    counts = [len(head) for layer in held for head in layer]
    assert sum(counts) == 20 * len(counts), "the total is the budget of every head"
    if "adakv" not in wrap:
        assert all(len(set(map(len, layer))) == 1 for layer in held), "heads of a layer keep equally many"
    assert cache.reading().kept_prompt == 20
    assert cache.audit().passed, cache.audit().problems


@every_combination
def test_the_last_window_stays_and_keys_keep_their_positions(method, wrap):
    ids = prompt_of()
    cache, _, _ = read("llama", ids, settings_of(method, wrap))
    whole, _, _ = read("llama", ids, {"method": "full"})
    for layer, full in zip(cache.policy_layers, whole.policy_layers, strict=True):
        for head in range(layer.geometry.kv_heads):
            held = {p: slot for slot, p in enumerate(layer.positions[0, head].tolist()) if p >= 0}
            assert set(range(PROMPT - WINDOW, PROMPT)) <= set(held)
            for position, slot in held.items():
                assert torch.equal(layer.values[0, head, slot], full.values[0, head, position])
                if "think" not in wrap or position >= PROMPT - WINDOW:
                    assert torch.equal(layer.keys[0, head, slot], full.keys[0, head, position])


@every_combination
@pytest.mark.parametrize("budget", [PROMPT, 1000, "100%"])
def test_a_prompt_that_fits_is_kept_whole(method, wrap, budget):
    cache, plan, _ = read("llama", prompt_of(), settings_of(method, wrap, budget))
    assert all(head == list(range(PROMPT)) for layer in prompt_positions(cache) for head in layer)
    assert plan.prompt.staged == ("think" in wrap), "nothing is staged that stays as it is"
    write("llama", cache, torch.arange(12))
    reading = cache.reading()
    assert reading.kept_prompt == PROMPT, "generated tokens are no prompt"
    assert reading.kept_generated <= 6 and reading.evictions > 0


@every_combination
def test_the_first_token_does_not_depend_on_what_is_kept(method, wrap):
    """The prompt is read whole: compression begins with the first decode step."""
    _, _, logits = read("llama", prompt_of(), settings_of(method, wrap))
    _, _, expected = read("llama", prompt_of(), {"method": "full"})
    torch.testing.assert_close(logits, expected, atol=1e-12, rtol=0)


@every_combination
def test_the_lane_remembers_the_last_queries_of_the_prompt(method, wrap):
    cache, _, _ = read("gemma3", prompt_of(), settings_of(method, wrap), chunk=7)
    whole, _, _ = read("gemma3", prompt_of(), {"method": "full"})
    assert torch.equal(cache.query_positions, whole.query_positions)
    for layer, full in zip(cache.policy_layers, whole.policy_layers, strict=True):
        torch.testing.assert_close(layer.queries, full.queries, atol=1e-12, rtol=0)


@every_combination
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_goes_on_finite_and_audited(method, wrap, dtype):
    cache, _, logits = read("gemma3", prompt_of(), settings_of(method, wrap), dtype=dtype)
    before = prompt_positions(cache)
    assert logits.isfinite().all()
    assert write("gemma3", cache, torch.arange(12)).isfinite().all()
    assert prompt_positions(cache) == before, "the prompt's slots are never touched again"
    audit = cache.audit()
    assert audit.passed and audit.policy_active, audit.problems
    held = sum(int((layer.positions >= PROMPT).sum(-1).max()) for layer in cache.policy_layers)
    assert held <= 7 * len(cache.policy_layers)


@every_combination
def test_decoding_attends_over_exactly_what_is_held(method, wrap):
    """A step's output is attention over the held keys and values, written out."""
    ids = prompt_of()
    cache, _, _ = read("llama", ids, settings_of(method, wrap), strategy="full")
    layer = cache.policy_layers[0]
    seen = {}

    def spy(module, args, kwargs, output):
        seen["in"], seen["out"] = kwargs["hidden_states"], output[0]

    attention = model_of("llama").model.layers[0].self_attn
    hook = attention.register_forward_hook(spy, with_kwargs=True)
    write("llama", cache, torch.tensor([5]))
    hook.remove()
    query = layer.queries[0, :, PROMPT % layer.queries.shape[2]]  # [heads, head_dim], rotated
    heads = []
    for head in range(query.shape[0]):
        mine = head // (query.shape[0] // layer.geometry.kv_heads)
        held = layer.positions[0, mine] >= 0
        weights = (layer.keys[0, mine, held] @ query[head] * layer.scale).softmax(0)
        heads.append(weights @ layer.values[0, mine, held])
    expected = torch.cat(heads) @ attention.o_proj.weight.T
    torch.testing.assert_close(seen["out"][0, 0], expected, atol=1e-12, rtol=0)


@every_combination
def test_chunks_and_repetition_change_nothing(method, wrap):
    ids = prompt_of()
    first, _, _ = read("llama", ids, settings_of(method, wrap))
    for chunk in (512, 7):  # of one token: test_any_budget_window_and_prompt
        again, _, _ = read("llama", ids, settings_of(method, wrap), chunk=chunk)
        assert prompt_positions(again) == prompt_positions(first)
        for a, b in zip(again.policy_layers, first.policy_layers, strict=True):
            torch.testing.assert_close(a.keys, b.keys, atol=1e-12, rtol=0)


@every_combination
def test_two_prompts_one_after_the_other_give_what_each_gives_alone(method, wrap):
    chosen, tokens = settings_of(method, wrap), torch.arange(12)
    used, _, _ = read("gemma3", prompt_of(seed=1), chosen)
    write("gemma3", used, tokens)
    moved = used.reading().moved_bytes
    read("gemma3", prompt_of(seed=2), chosen, cache=used)
    alone, _, _ = read("gemma3", prompt_of(seed=2), chosen)
    assert prompt_positions(used) == prompt_positions(alone)
    expected = write("gemma3", alone, tokens)
    torch.testing.assert_close(write("gemma3", used, tokens), expected, atol=1e-12, rtol=0)
    assert used.audit().passed
    assert used.reading().moved_bytes - moved == used.reading(0).moved_bytes == alone.reading().moved_bytes
    assert used.reading().allocated_bytes == alone.reading().allocated_bytes


@every_combination
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_memory_that_is_freed_is_memory_that_is_reported(family, method, wrap):
    whole, _, _ = read(family, prompt_of(), {"method": "full"})
    cache, plan, _ = read(family, prompt_of(), settings_of(method, wrap))
    reading, full = cache.reading(), whole.reading()
    assert sum(tensor.nbytes for tensor in cache.tensors().values()) == reading.allocated_bytes
    assert reading.allocated_bytes <= plan.shape.cache_bytes(cache.geometry, 8), "no more than was planned"
    slot_bytes = sum(layer.geometry.slot_bytes(8) for layer in cache.policy_layers)
    if plugins.plugin_class("prefills", method).compresses:
        assert full.held_bytes - reading.held_bytes == (PROMPT - 20) * slot_bytes
        assert (
            full.allocated_bytes - reading.allocated_bytes + reading.padding_bytes
            > (PROMPT - 20) * slot_bytes
        )
        assert reading.moved_bytes == 20 * slot_bytes
    else:
        assert reading.allocated_bytes == full.allocated_bytes and not reading.padding_bytes
    prompt_slots = sum(layer.first_evictable * layer.geometry.slot_bytes(8) for layer in cache.policy_layers)
    held = sum(len(head) for layer in prompt_positions(cache) for head in layer) * 2 * 8 * 8
    assert reading.padding_bytes == prompt_slots - held
    assert bool(reading.padding_bytes) <= ("adakv" in wrap)


@every_combination
def test_the_staging_buffers_are_what_was_planned_and_are_freed(monkeypatch, method, wrap):
    seen = []
    settle = Staging.settle

    def watched(self):
        seen.append((sum(tensor.nbytes for tensor in self.tensors()), self))
        settle(self)

    monkeypatch.setattr(Staging, "settle", watched)
    cache, plan, _ = read("gemma3", prompt_of(), settings_of(method, wrap), dtype=torch.float32)
    planned_bytes = plan.prompt.staging_bytes(cache.geometry, 4)
    assert [staged for staged, _ in seen] == ([planned_bytes] if plan.prompt.staged else [])
    assert all(not tensor.numel() for _, staging in seen for tensor in staging.tensors())


@pytest.mark.parametrize("method", [method for method, wrap in COMPRESSING if not wrap])
def test_scores_are_finite_pure_and_tell_tokens_apart(method):
    for view in views("gemma3", prompt_of(), settings_of(method, ())):
        one = plugins.build("prefills", method, {})
        scores = one.score(view)
        assert scores.shape == (view.kv_heads, PROMPT) and scores.isfinite().all()
        assert torch.equal(scores, one.score(view))
        assert scores[:, :-WINDOW].unique().numel() > 1


@every_combination
def test_a_prompt_depends_on_the_seed_where_chance_is_said_to_decide_and_nowhere_else(method, wrap):
    """Samples with other seeds copy a prompt that does not."""
    cls = [plugins.plugin_class("prefills", method), *(plugins.plugin_class("wrappers", w) for w in wrap)]
    draws = any(one.draws for one in cls)
    held = []
    for seed in (7, 8):
        cache, plan, _ = read("llama", prompt_of(), settings_of(method, wrap), seed=seed)
        assert plan.prompt.draws == draws
        held.append([(layer.keys, layer.positions) for layer in cache.policy_layers])
    same = [
        torch.equal(a, b) for one, other in zip(*held, strict=True) for a, b in zip(one, other, strict=True)
    ]
    assert all(same) != draws


@every_combination
def test_known_output_is_fed_after_a_compressed_prompt(method, wrap):
    """All tokens between two evictions at once, as evaluation does it."""
    chosen, tokens = settings_of(method, wrap), torch.arange(13)
    single, _, _ = read("llama", prompt_of(), chosen)
    expected = write("llama", single, tokens)
    cache, _, _ = read("llama", prompt_of(), chosen)
    fed = 0
    while fed < len(tokens):
        count = min(cache.tokens_to_eviction(0), len(tokens) - fed)
        positions = cache.start_known(0, count)
        with torch.no_grad():
            logits = model_of("llama")(
                input_ids=tokens[None, fed : fed + count],
                position_ids=positions,
                use_cache=False,
                scope_cache=cache,
            ).logits[0, -1]
        cache.end_chunk()
        fed += count
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)
    assert cache.reading() == single.reading() and cache.audit().passed


@pytest.mark.parametrize("method", ["streaming", "snapkv", "h2o", "random"])
@pytest.mark.parametrize("sinks", [0, 3])
def test_an_unprotected_prompt_is_compressed_first_and_evicted_then(method, sinks):
    cache, plan, _ = read(
        "llama", prompt_of(), {"method": method, "budget": 20}, protect_prompt=False, sinks=sinks
    )
    assert (plan.schedule.base, cache.count(0).held) == (20, 20)
    kept = prompt_positions(cache)
    write("llama", cache, torch.arange(12))
    assert cache.audit().passed and cache.reading().evictions > 0
    assert cache.count(0).most_held <= 20 + 6 + 1
    left = prompt_positions(cache)
    for before, after in zip(itertools.chain(*kept), itertools.chain(*left), strict=True):
        assert set(after) < set(before)
        assert [p for p in before if p < sinks] == [p for p in after if p < sinks]


@pytest.mark.parametrize("method", ["snapkv", "full"])
@pytest.mark.parametrize("protect", [True, False])
def test_a_run_that_is_interrupted_while_reading_passes_its_audit(method, protect):
    chosen = {"method": method, **({"budget": 20} if method != "full" else {})}
    profile, plan = planned("gemma3", PROMPT, chosen, protect_prompt=protect)
    cache = empty_cache("gemma3", profile, plan)
    reading = read_prompt(
        model_of("gemma3"),
        cache,
        prompt_of(),
        plan.schedule,
        plan=plan.prompt,
        chunk=7,
        interrupted=lambda: True,
    )
    assert list(reading) and cache.count(0).prompt == 7
    assert cache.audit().passed, cache.audit().problems
    assert cache.reading().kept_prompt == (7 if method == "full" else 0)


@settings(max_examples=30)
@given(data=st.data())
def test_any_budget_window_and_prompt(data):
    window = data.draw(st.integers(1, 9), "window")
    prompt = data.draw(st.integers(1, 40), "prompt")
    budget = data.draw(st.integers(window, 45) | st.sampled_from(["1%", "33.3%", "99%"]), "budget")
    method, wrap = data.draw(st.sampled_from(COMPRESSING), "method")
    family = data.draw(st.sampled_from(["llama", "llama-mha", "gemma3"]), "family")
    chosen = {**settings_of(method, wrap, budget), "window": window}
    cache, _, _ = read(family, prompt_of(prompt), chosen, chunk=data.draw(st.sampled_from([1, 7, 64])))
    share = float(budget[:-1]) / 100 if isinstance(budget, str) else None
    expected = min(prompt, max(window, int(prompt * share)) if share else budget)
    held = prompt_positions(cache, prompt)
    counts = [len(head) for layer in held for head in layer]
    assert sum(counts) == expected * len(counts)
    assert all(
        head[-window:] == list(range(max(0, prompt - window), prompt)) for layer in held for head in layer
    )
    write(family, cache, torch.arange(9))
    assert cache.audit().passed, cache.audit().problems


def test_a_plan_says_what_a_method_keeps_and_a_note_what_it_does_not_free():
    _, plan = planned("gemma3", PROMPT, {"method": "snapkv", "budget": "25%", "wrap": ["think"]})
    assert isinstance(plan.prompt, PromptPlan)
    assert plan.prompt.kept == (0, 15, 0, 15) and plan.shape.prompt_slots == (0, 15, 0, 15)
    assert plan.notes == ("think: pruned key channels are stored as zeros, which frees no memory",)
    _, plan = planned("gemma3", PROMPT, {"budget": 20})
    assert plan.notes == ("prefill.budget has no effect: full keeps the whole prompt",)
