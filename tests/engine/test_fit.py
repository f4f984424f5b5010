"""One account of a run's bytes: what the plan, a run and a batch call too much is the same."""

import json
from dataclasses import replace

import pytest

from scope_cli.batch.fit import Memory
from scope_cli.batch.groups import Demand
from scope_cli.engine import fit
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run_plan import RunPlan, make_plan
from scope_cli.engine.workspace import workspace
from scope_cli.errors import ModelError
from scope_cli.measure.profiling.footprint import RUNTIME_BYTES, needs_of
from scope_cli.measure.profiling.source import source_of, target_of
from scope_cli.models.model import open_model
from tests.helpers.plain import load_profile

PROMPT = 1500  # tokens: reading them takes more than the cache


@pytest.fixture
def settings(tiny_folder):
    keys = {"model.name": str(tiny_folder), "model.device": "cpu", "decode.budget": 8, "decode.recent": 4}
    return load_profile("default", {**keys, "sampling.max_new_tokens": 20})


@pytest.fixture
def opened(settings):
    return open_model(settings.profile.model, offline=True)


def test_what_is_planned_from_config_json_is_what_the_opened_model_says(settings, opened):
    model = settings.profile.model
    target = target_of(source_of(model.name), model, memory_given=False)
    plan = make_plan(settings, opened.geometry, PROMPT)
    chunk = settings.profile.prefill.chunk
    assert needs_of(settings, target, PROMPT) == fit.needs(opened.target, [plan], 1, chunk)


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_parts_add_up(settings, opened, lanes):
    plans = [make_plan(settings, opened.geometry, tokens) for tokens in (PROMPT, 30)]
    takes = fit.needs(opened.target, plans, lanes, 512)
    shape = shared_shape(plans, lanes)
    each = [workspace(opened.target, replace(plan, shape=shape), 512) for plan in plans]
    assert takes.weights == opened.weight_bytes
    assert takes.cache == shape.cache_bytes(opened.geometry, 4)
    assert (takes.reading, takes.writing) == (max(w.prefill for w in each), max(w.decode for w in each))
    assert takes.total == takes.weights + takes.cache + max(takes.reading, takes.writing)
    assert replace(takes, loading=10**12).total == 10**12


@pytest.mark.parametrize("lanes", [1, 3])
def test_rollback_counts_two_snapshots_of_each_lane(settings, opened, lanes):
    """While a prompt is read, those of the other lanes; in a step all."""
    plain = make_plan(settings, opened.geometry, PROMPT)
    sampling = settings.profile.sampling.model_copy(update={"on_loop": "rollback"})
    settings = replace(settings, profile=settings.profile.model_copy(update={"sampling": sampling}))
    taken_back = make_plan(settings, opened.geometry, PROMPT)
    before, after = (fit.needs(opened.target, [plan], lanes, 512) for plan in (plain, taken_back))
    assert after.reading - before.reading == 2 * (lanes - 1) * before.cache // lanes > 0 or lanes == 1
    assert after.writing - before.writing == 2 * before.cache
    one, other = (Demand.of(0, plan, opened.target, 512) for plan in (plain, taken_back))
    assert other.step_bytes - one.step_bytes == 2 * before.cache // lanes


def test_a_refusal_says_what_would_fit(settings, opened):
    """The fewest changes; what is said of the cache is what a plan with that option says."""
    target = replace(opened.target, stored_bytes=10**9)
    plan = make_plan(kv_of(settings, "plain"), opened.geometry, PROMPT)
    run = fit.needs(target, [plan], 1, 512)
    packed = fit.needs(target, [make_plan(kv_of(settings, "int8"), opened.geometry, PROMPT)], 1, 512)
    assert packed.cache == run.in_int8 < run.cache and packed.in_int8 is None
    saved = run.cache - run.in_int8
    weights = target.shape.weight_bytes(target.dtype, "int4")

    def hint(short_of, lanes=1, run=run, target=target):
        with pytest.raises(ModelError) as raised:
            fit.check(target, run, lanes, run.total - short_of, "cpu")
        return raised.value.hint

    assert hint(1).startswith("with --kv int8 it takes about")
    assert hint(saved + 1).startswith("with --load-in int4 it takes about")
    assert hint(run.weights - weights + 1).startswith("with --kv int8 and --load-in int4 it takes about")
    assert hint(saved + run.weights - weights + 1) == "try a smaller --budget, --max-new-tokens or model"
    assert hint(1, lanes=4, run=packed).startswith("with --lanes 2 it takes")
    card = replace(target, device="cuda")
    assert "--load-in 4bit" in hint(saved + 1, target=card)


def kv_of(settings, kv):
    cache = settings.profile.cache.model_copy(update={"kv": kv})
    return replace(settings, profile=settings.profile.model_copy(update={"cache": cache}))


def test_a_run_that_the_plan_refuses_is_refused_by_generate_batch_and_bench(
    scope, tiny_folder, tmp_path, monkeypatch
):
    """And the one that fits by a byte is begun by all of them."""
    keys = ("--model", tiny_folder, "--device", "cpu", "--max-new-tokens", 20)
    policy = ("--budget", 8, "--set", "decode.recent=4")
    text = "a" * PROMPT
    told = scope("profile", "--plan", "--prompt-tokens", PROMPT, "--json", *keys, *policy)
    needed = json.loads(told.stdout)["plans"][0]["plan"]["total_bytes"] - RUNTIME_BYTES["cpu"]
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "a.txt").write_text(text)

    def codes(free, loads):
        for module in ("scope_cli.batch.local", "scope_cli.machine.memory"):
            monkeypatch.setattr(f"{module}.free_bytes", lambda device: free)
        monkeypatch.setattr("scope_cli.models.model.OpenedModel.load", loads)
        generate = scope("generate", text, "--raw", *keys, *policy)
        out = tmp_path / f"out-{free}"
        batch = scope("batch", tmp_path / "prompts", "-o", out, "--raw", *keys, *policy)
        return [(result.code, "not enough memory" in result.stderr) for result in (generate, batch)]

    def begun(self):
        raise ModelError("begun")

    assert codes(needed - 1, lambda self: pytest.fail("weights were read")) == [(2, True)] * 2
    assert codes(needed, begun) == [(2, False)] * 2


def test_a_batch_counts_what_a_run_of_its_rows_takes(settings, opened):
    plan, chunk = make_plan(settings, opened.geometry, PROMPT), settings.profile.prefill.chunk
    demand = Demand.of(0, plan, opened.target, chunk)
    memory = Memory.planned_for([demand], 0, opened.weight_bytes)
    takes = fit.needs(opened.target, [plan], 1, chunk)
    assert memory.workspace(1) + demand.staging_bytes == takes.workspace
    measured = Memory(0, opened.weight_bytes, reading_bytes=takes.reading + 5, step_bytes=1)
    both = measured.at_least(memory)
    assert (both.reading_bytes, both.step_bytes) == (takes.reading + 5, memory.step_bytes)


@pytest.mark.parametrize("wrap", [[], ["adakv"]])
def test_a_staged_prompt_counts_once_and_the_largest(settings, opened, wrap):
    """Beside the cache of all lanes; heads that share a budget take their largest size, one at a time."""
    keys = {"prefill.method": "snapkv", "prefill.budget": 40, "prefill.window": 8, "prefill.wrap": wrap}
    chosen = load_profile("default", {"sampling.max_new_tokens": 20, **keys})
    plans = [make_plan(chosen, opened.geometry, tokens) for tokens in (PROMPT, 100)]
    lanes = 1 if wrap else 2
    takes = RunPlan.of(chosen.profile, plans, "cpu", lanes).needs(opened.target)
    shapes = [plan.shape for plan in plans] if wrap else [shared_shape(plans, lanes)]
    assert takes.cache == max(shape.cache_bytes(opened.geometry, 4) for shape in shapes)
    staged = [plan.prompt.staging_bytes(opened.geometry, 4) for plan in plans]
    own = [workspace(opened.target, plan, chosen.profile.prefill.chunk).prefill for plan in plans]
    assert takes.reading == max(own) and max(own) > max(staged) > 0
