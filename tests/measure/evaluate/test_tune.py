"""The search against a table of gaps that is known: the smallest budget, and nothing measured twice."""

from dataclasses import dataclass

import pytest

from scope_cli.measure.evaluate import tune as search
from tests.helpers.plain import load_profile


@dataclass
class FakeBytes:
    held_mean: float


@dataclass
class FakeFidelity:
    kl: list
    bytes: FakeBytes


@dataclass
class FakeText:
    output_ids: list


@dataclass
class FakeReference:
    text: FakeText


PACKED = {"plain": (0.0, 4.0), "int8": (0.0002, 1.0), "k8v4": (0.001, 0.8)}  # added to the gap, bytes


def run(monkeypatch, gap, limit, tokens=1024, **more):
    """Tune over a made-up function of budget, strategy and scorer; the result and what was measured."""
    measured = []

    def measure(reference, settings):
        decode, form = settings.profile.decode, settings.profile.cache.kv
        measured.append((decode.budget, decode.strategy, decode.scorer.name, form))
        mean = gap(*measured[-1][:3]) + PACKED[form][0]
        return FakeFidelity([mean, mean * 0.8, mean * 1.2], FakeBytes(decode.budget * PACKED[form][1]))

    monkeypatch.setattr("scope_cli.measure.evaluate.fidelity.measure", measure)
    found = search.tune(
        FakeReference(FakeText([0] * tokens)), lambda keys: load_profile("default", keys), limit, **more
    )
    return found, measured


def by_budget(budget, strategy, scorer):
    return 10 / budget * {"attention": 1, "window": 0.7}.get(scorer, 1.5) * (1 if strategy == "slide" else 2)


@pytest.mark.parametrize("limit", [0.011, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("sure", [False, True])
def test_the_smallest_budget_of_the_grid_is_found(monkeypatch, limit, sure):
    found, measured = run(monkeypatch, by_budget, limit, sure=sure)
    allowed = limit / 1.2 if sure else limit
    expected = min(b for b in search.grid(1024) if by_budget(b, "slide", "window") <= allowed)
    assert found.best.budget == expected
    assert found.best.keys["decode.scorer"] == {"name": "window", "window": 32, "queries": "max"}
    assert found.best.keys["decode.strategy"] == "slide"
    assert len(measured) == len(set(measured)) == len(found.tried)


def test_a_limit_that_only_another_scorer_keeps_is_kept(monkeypatch):
    found, _ = run(monkeypatch, lambda budget, strategy, scorer: 0.01 if scorer == "recency" else 9.0, 0.02)
    assert found.best.keys["decode.scorer"] == "recency"
    assert found.best.budget == 16


def test_the_best_scorer_meets_the_best_strategy(monkeypatch):
    def gap(budget, strategy, scorer):
        return 10 / budget * (0.5 if strategy == "adaptive" else 1) * (0.5 if scorer == "random" else 1)

    found, _ = run(monkeypatch, gap, 0.02)
    assert (found.best.keys["decode.strategy"], found.best.keys["decode.scorer"]) == ("adaptive", "random")


@pytest.mark.parametrize(
    ("limit", "chosen"), [(0.02, "k8v4"), (10 / 512 * 0.7 + 0.0005, "int8"), (10 / 512 * 0.7 + 1e-5, None)]
)
def test_the_format_that_holds_least_and_keeps_the_limit_is_chosen(monkeypatch, limit, chosen):
    found, measured = run(monkeypatch, by_budget, limit)
    assert found.best.keys.get("cache.kv") == chosen
    assert [form for *_, form in measured if form != "plain"] == ["int8", "k8v4"]


def test_a_limit_that_nothing_keeps_is_told(monkeypatch):
    found, _ = run(monkeypatch, lambda *_: 1.0, 0.02)
    assert found.best is None
    assert found.tried


def test_the_grid_stays_below_the_output():
    assert search.grid(100) == (16, 24, 32, 48, 64, 96)
    assert search.grid(96) == (16, 24, 32, 48, 64)
