"""Kept positions and logits, step by step, against the oracle; and what a run's end looks like."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.policy_layer import PolicyLayer
from scope_cli.engine.decode import Lane, decode, step_on
from scope_cli.engine.plan import plan_run
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.run_plan import policy_of
from scope_cli.engine.sampling import Asked, pick_all
from scope_cli.events import Loop
from scope_cli.models.architecture import geometry_of
from scope_cli.settings.load import LoadedProfile
from tests.helpers.caches import finish
from tests.helpers.oracle import Oracle
from tests.helpers.plain import profile_of
from tests.helpers.tiny import tiny_model

torch.set_num_threads(1)
MODELS = {family: tiny_model(family) for family in ("llama", "llama-mha", "qwen3", "gemma3")}
ORACLES = {family: tiny_model(family, attention="oracle") for family in MODELS}


def sample_text(prompt_tokens, steps) -> list[int]:
    torch.manual_seed(prompt_tokens + steps)
    return torch.randint(0, 256, (prompt_tokens + steps,)).tolist()


def new_cache(family, prompt_tokens, steps, seed=0, **decode):
    """A float64 cache for a lane that writes `steps` tokens, and its plan."""
    profile = profile_of({"decode": decode, "sampling": {"max_new_tokens": steps + 1, "seed": seed}})
    geometry = geometry_of(MODELS[family].config)
    plan = plan_run(LoadedProfile(profile, "test", frozenset()), geometry, prompt_tokens)
    return ScopeCache(geometry, plan.shape, policy_of(profile.decode), dtype=torch.float64), plan


@torch.no_grad()
def run_both(family, prompt_tokens, steps, chunk=512, seed=0, **decode):
    """Feed the same random tokens to the tool and to the oracle, comparing after each step."""
    text = sample_text(prompt_tokens, steps)
    cache, plan = new_cache(family, prompt_tokens, steps, seed, **decode)
    oracle = Oracle(
        ORACLES[family],
        text[:prompt_tokens],
        planned=steps + 1,
        seed=seed,
        **{"strategy": "slide", "scorer": "attention", **decode, "interval": plan.schedule.interval},
    )
    pointers = [tensor.data_ptr() for tensor in cache.tensors().values()]
    expected = oracle.read()
    got = finish(
        read_prompt(
            MODELS[family], cache, torch.tensor([text[:prompt_tokens]]), plan.schedule, seed=seed, chunk=chunk
        )
    )
    torch.testing.assert_close(got[0], expected, atol=1e-9, rtol=0)
    for step, token in enumerate(text[prompt_tokens:]):
        expected = oracle.write(token)
        got = MODELS[family](
            input_ids=torch.tensor([[token]]),
            position_ids=cache.next_position[None],
            use_cache=False,
            scope_cache=cache,
        ).logits[0, -1]
        cache.end_step()
        assert (got - expected).abs().max() < 1e-9, f"logits differ at step {step}"
        for layer in cache.layers:
            if isinstance(layer, PolicyLayer):
                for head in range(layer.geometry.kv_heads):
                    held = layer.positions[0, head]
                    assert sorted(held[held >= 0].tolist()) == oracle.kept(layer.index, head), f"step {step}"
    assert [tensor.data_ptr() for tensor in cache.tensors().values()] == pointers, "a buffer was reallocated"
    audit = cache.audit()
    assert audit.passed, audit.problems
    cache.last_logits = got
    return cache, oracle


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_kept_positions_and_logits_equal_the_oracles(data):
    budget = data.draw(st.integers(2, 14), "budget")
    strategy = data.draw(st.sampled_from(["slide", "adaptive", "discontinuous"]), "strategy")
    recent = data.draw(st.integers(1, budget - (strategy == "discontinuous")), "recent")
    interval = {} if strategy == "discontinuous" else {"interval": data.draw(st.integers(1, 9), "interval")}
    run_both(
        data.draw(st.sampled_from(list(MODELS)), "family"),
        prompt_tokens=data.draw(st.integers(1, 24), "prompt"),
        steps=data.draw(st.integers(1, 40), "steps"),
        chunk=data.draw(st.sampled_from([3, 7, 512]), "chunk"),
        seed=data.draw(st.integers(0, 2**63 - 1), "seed"),
        strategy=strategy,
        scorer=data.draw(st.sampled_from(["attention", "recency", "random"]), "scorer"),
        budget=budget,
        recent=recent,
        **interval,
    )


@settings(max_examples=20)
@given(data=st.data())
def test_an_unprotected_prompt_is_evicted_like_the_oracles(data):
    recent = data.draw(st.integers(1, 6), "recent")
    sinks = data.draw(st.integers(0, 4), "sinks")
    total = data.draw(st.none() | st.integers(recent + sinks + 1, 20), "total_budget")
    run_both(
        data.draw(st.sampled_from(["llama", "gemma3"]), "family"),
        prompt_tokens=data.draw(st.integers(1, 24), "prompt"),
        steps=data.draw(st.integers(1, 30), "steps"),
        strategy="slide",
        scorer=data.draw(st.sampled_from(["attention", "recency", "random"]), "scorer"),
        budget=recent + data.draw(st.integers(0, 6), "heavy"),
        recent=recent,
        interval=data.draw(st.integers(1, 5), "interval"),
        protect_prompt=False,
        sinks=sinks,
        total_budget=total,
    )


def test_the_oracle_notices_another_choice():
    """The comparison has teeth: against another scorer it fails."""
    cache, _ = run_both("llama", 10, 30, strategy="slide", scorer="attention", budget=8, recent=2, interval=1)
    other, _ = run_both("llama", 10, 30, strategy="slide", scorer="random", budget=8, recent=2, interval=1)
    assert cache.reading().evictions == other.reading().evictions == 22
    assert any(
        set(a.positions[0, 0].tolist()) != set(b.positions[0, 0].tolist())
        for a, b in zip(cache.layers, other.layers, strict=True)
    )


@settings(max_examples=15)
@given(data=st.data())
def test_known_output_fed_in_chunks_is_the_same_as_token_by_token(data):
    """What evaluation relies on: all tokens between two evictions in one forward."""
    family = data.draw(st.sampled_from(list(MODELS)), "family")
    decode = {"budget": data.draw(st.integers(6, 16)), "recent": 3, "interval": data.draw(st.integers(1, 6))}
    scorer = data.draw(st.sampled_from(["attention", "random", "recency"]), "scorer")
    single, _ = run_both(family, 10, 60, strategy="slide", scorer=scorer, **decode)
    text = sample_text(10, 60)
    cache, plan = new_cache(family, 10, 60, strategy="slide", scorer=scorer, **decode)
    with torch.no_grad():
        finish(read_prompt(MODELS[family], cache, torch.tensor([text[:10]]), plan.schedule))
        fed, logits = 10, []
        while fed < 70:
            tokens = min(cache.tokens_to_eviction(0), 70 - fed)
            positions = cache.start_known(0, tokens)
            ids = torch.tensor([text[fed : fed + tokens]])
            out = MODELS[family](input_ids=ids, position_ids=positions, use_cache=False, scope_cache=cache)
            logits += out.logits[0]
            cache.end_chunk()
            fed += tokens
    for mine, other in zip(cache.policy_layers, single.policy_layers, strict=True):
        for a, b in zip(mine.positions[0], other.positions[0], strict=True):
            assert sorted(a[a >= 0].tolist()) == sorted(b[b >= 0].tolist())
    assert cache.reading() == single.reading()
    assert (logits[-1] - single.last_logits).abs().max() < 1e-9
    assert cache.audit().passed


class Rows:
    """In the place of a cache: counts the tokens that each running row is fed."""

    def __init__(self, lanes):
        self.shape, self.device = SimpleNamespace(lanes=lanes), torch.device("cpu")
        self.fed = {}  # by running row

    def finish(self, row):
        self.fed.pop(row, None)

    def end_step(self):
        self.fed = {row: tokens + 1 for row, tokens in self.fed.items()}

    def reading(self):
        return None


@pytest.mark.parametrize("ahead", [False, True])
def test_the_last_token_of_a_lane_is_never_fed_however_long_it_is_and_whoever_goes_on(ahead):
    """Ahead of the host as well, where a lane leaves before the step that it has no part in."""
    lengths, rows, steps = [300, 2, 1, 400, 257, 3], Rows(2), []
    tokens, ended = written_by(rows, lengths, steps, ahead=ahead)
    assert len(tokens) == sum(lengths)
    assert sorted(ended) == [(number, one, one - 1, "length") for number, one in enumerate(lengths)]
    assert sum(len(row) for row in steps) == sum(one - 1 for one in lengths), "nobody else took part"


def test_an_interruption_ends_the_lanes_that_have_not_ended_by_themselves():
    tokens = []
    _, ended = written_by(Rows(3), [5, 9, 4, 8], [], tokens, interrupted=lambda: len(tokens) >= 13)
    through = [(2, 4, 3, "length"), (0, 5, 4, "length")]
    assert ended == [*through, (1, 5, 5, "interrupted"), (3, 1, 1, "interrupted")]


def lane_of(number, row, length, **more):
    """A lane of one prompt token that always samples token 5."""
    five = torch.tensor([[5]])
    sampler = SimpleNamespace(ask=lambda logits, _ids, _change: Asked(logits, logits, known=five))
    text = SimpleNamespace(feed=lambda _id: "text", stopped=None)
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    eos = more.pop("eos_ids", frozenset())
    return Lane(prompt, torch.zeros(1, 9), sampler, text, eos, length, row=row, prompt=number, **more)


def written_by(rows, lengths, steps, tokens=None, **more):
    """The tokens of lanes of such lengths, and how each ended; `steps` gets the rows that run in each."""
    waiting, tokens, ended = list(enumerate(lengths)), [] if tokens is None else tokens, []

    def read(row, number, length):
        rows.fed[row] = 0
        return lane_of(number, row, length)
        yield

    def step(_ids):
        steps.append(set(rows.fed))
        return torch.zeros(rows.shape.lanes, 9)

    def admit(row):
        return read(row, *waiting.pop(0)) if waiting else None

    def finish_lane(lane):
        ended.append((lane.prompt, lane.written, lane.fed, lane.reason))

    for event in decode(step, rows, admit, finish_lane, **more):
        if event is not None:
            tokens.append(event)
    return tokens, ended


@pytest.mark.parametrize("on_loop", ["ignore", "stop"])
@pytest.mark.parametrize("looping", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_what_ends_a_lane_is_told_by_what_came_first(eos, last, looping, on_loop):
    lane = lane_of(0, 0, 3, on_loop=on_loop, eos_ids=frozenset({5} if eos else {}))
    found = Loop(1, 0, 64, True) if looping else None
    lane.watch = SimpleNamespace(feed=lambda _id: found, note=lambda _id: None)
    lane.written = 3 if last else 1
    assert lane.receive(5, -1.0) == ("" if eos else "text")
    reasons = {"stop": eos, "loop": looping and on_loop == "stop", "length": last}
    assert lane.reason == next((reason for reason, holds in reasons.items() if holds), None)


@pytest.mark.parametrize(("device", "bytes_back"), [("cpu", 0), ("cuda", 16)])
def test_from_a_gpu_an_id_and_its_probability_come_back(device, bytes_back):
    """int64 or float64, both; who computes on a CPU moves nothing."""
    moved = []
    cache = SimpleNamespace(
        device=torch.device(device), end_step=lambda: None, count_transfer=lambda *of: moved.append(of)
    )
    lane, fed = lane_of(0, 1, 9), []
    lane.take(pick_all([lane.ask()])[0])
    logits = torch.randn(2, 9)
    step_on(lambda ids: fed.append(ids) or logits, cache, [lane], "ids")
    assert lane.ids[0, :2].tolist() == [0, 5] and lane.written == 1
    assert fed == ["ids"] and lane.logits.tolist() == logits[1:].tolist() and lane.fed == 1
    assert moved == ([(1, bytes_back)] if bytes_back else [])
