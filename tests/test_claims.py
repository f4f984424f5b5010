"""Budgets of equal bytes, measured; and the overlap of heavy hitters against a plain computation."""

import json

import pytest
import torch

from scope_cli import cli
from scope_cli.measure.evaluate.fidelity import KnownText, Reference, measure
from scope_cli.models.model import open_model
from scope_cli.settings.schema import ModelSettings
from tests.helpers.caches import loaded_tiny
from tests.helpers.scripts import load
from tests.helpers.tiny import tiny_model

claims = load("claims")
SHORT_LAGS, drift, equal_bytes = claims.SHORT_LAGS, claims.drift, claims.equal_bytes
budget_for_mean, mean_held = claims.budget_for_mean, claims.mean_held
equal_bytes_profiles, least_for_drift = claims.equal_bytes_profiles, claims.least_for_drift
PROMPT, OUTPUT = 300, 640


@pytest.fixture
def claims_are_a_command():
    cli.app.command("claims")(claims.claims_command)
    yield
    cli.app.registered_commands.pop()


def small(tiny_folder, *more):
    return ["--model", tiny_folder, "--set", "decode.interval=4", *more]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (PROMPT + OUTPUT,)).tolist()
    loaded = loaded_tiny(tmp_path_factory.mktemp("tiny"))
    return Reference.of(loaded, KnownText("noise", ids[:PROMPT], ids[PROMPT:]))


def test_both_ways_hold_the_same_bytes(reference):
    pairs = list(equal_bytes(PROMPT, OUTPUT, ("25%", "50%"), window=32))
    assert {(pair.share, pair.matched) for pair in pairs} == {
        (share, matched) for share in ("25%", "50%") for matched in ("peak", "mean")
    }
    for pair in pairs:
        ways = {name: measure(reference, keys) for name, keys in equal_bytes_profiles(pair).items()}
        prompt, output = ways["prompt"].bytes, ways["output"].bytes
        token = reference.loaded.geometry.token_bytes(4)
        if pair.matched == "peak":
            # `slide` holds its budget and the current token before an eviction, and after the last one fewer
            assert abs(prompt.held_peak - output.held_peak) <= 2 * token
        else:
            assert 0 <= prompt.held_mean - output.held_mean < 2 * token
        assert ways["prompt"].kept_prompt == pair.kept_prompt
        assert ways["output"].kept_prompt == PROMPT


def test_where_a_prompt_saves_more_than_the_output_has_there_is_no_pair():
    assert list(equal_bytes(5000, 200, ("10%",), window=32)) == []
    assert budget_for_mean(0.5, 200) is None


def test_the_mean_is_what_is_held_at_every_token():
    assert mean_held(10_000, 5) == (0 + 1 + 2 + 3 + 4) / 5


def test_drift_agrees_with_the_attention_that_transformers_gives(reference):
    top, most = 16, 128
    found = {row.lag: row for row in drift(reference, top=top, most_lag=most)}
    assert list(found) == [*SHORT_LAGS, 64, 128]
    model = tiny_model(dtype=torch.float32, attention="eager")
    ids = torch.tensor([reference.text.prompt_ids + reference.text.output_ids])
    attentions = model(ids, output_attentions=True).attentions  # layers x [1, heads, tokens, tokens]
    steps = [step for step in range(64, OUTPUT, 64) if step - 32 >= 2 * top and step + most < OUTPUT]
    for lag in (1, 32, 128):
        overlaps, masses = [], []
        for step in steps:
            seen = slice(PROMPT, PROMPT + step - 32)
            for layer in attentions:
                by_head = layer[0].unflatten(0, (2, 2)).mean(1)  # two KV heads of two heads each
                now = by_head[:, PROMPT + step - 1, seen]
                later = by_head[:, PROMPT + step - 1 + lag, seen]
                for one, other in zip(now, later, strict=True):
                    first, second = (set(row.topk(top).indices.tolist()) for row in (one, other))
                    overlaps.append(len(first & second) / top)
                    masses.append((other[list(first)].sum() / other.sum()).item())
        assert found[lag].steps == len(steps)
        assert found[lag].overlap[0] == pytest.approx(sum(overlaps) / len(overlaps), abs=0.01)
        assert found[lag].mass[0] == pytest.approx(sum(masses) / len(masses), abs=0.01)
        assert found[lag].chance == pytest.approx(sum(top / (step - 32) for step in steps) / len(steps))


def test_claims_measure_both_ways_and_the_drift(scope, claims_are_a_command, tiny_folder, tmp_path):
    (tmp_path / "p.txt").write_text("A long prompt about the sea and the wind. " * 8)
    plot, out = tmp_path / "c.png", tmp_path / "c.json"
    given = ["-f", tmp_path / "p.txt", "--tokens", "1400", "--top", "16", "--plot", plot, "-o", out]
    run = scope("claims", *given, *small(tiny_folder, "--set", 'model.compile="off"'))
    assert run.code == 0
    assert "| 50% of the prompt (peak) | the prompt |" in run.stdout
    saved = json.loads(out.read_text())
    assert [lag["lag"] for lag in saved["drift"]][-1] == 1024
    assert plot.is_file()


def test_claims_say_what_could_not_be_measured_and_show_no_empty_table(
    scope, claims_are_a_command, tiny_folder, tmp_path
):
    (tmp_path / "p.txt").write_text("A long prompt about the sea and the wind. " * 8)
    given = ["claims", "-f", tmp_path / "p.txt", *small(tiny_folder)]
    run = scope(*given, "--tokens", "400")
    assert run.code == 0
    assert "still in the top" not in run.stdout and run.stdout.count("|---") == 0 < run.stdout.count(
        "| --- |"
    )
    assert "400 tokens are too few to see how attention moves on, which takes 1,217" in run.stderr
    assert "verdict: at equal bytes compressing the prompt cost more than the output in " in run.stderr
    (tmp_path / "p.txt").write_text("A long prompt about the sea and the wind. " * 40)
    nothing = scope(*given, "--tokens", "256")
    assert (nothing.code, nothing.stdout) == (2, "") and "there is nothing to measure" in nothing.stderr
    least = nothing.stderr.split("hint: --tokens ")[1].split(" ")[0]
    assert "nothing to measure" in scope(*given, "--tokens", str(int(least) - 1)).stderr


def test_what_claims_need_is_what_drift_needs(tiny_folder):
    loaded = open_model(ModelSettings(name=str(tiny_folder), device="cpu"), True, print).load()
    for top, lag in ((4, 64), (40, 128)):
        least = least_for_drift(top, lag)
        for tokens in (least - 1, least):
            known = KnownText("made up", [5] * 20, [at % 250 for at in range(tokens)])
            assert bool(drift(Reference.of(loaded, known), top, lag)) == (tokens == least)


def test_the_script_has_scopes_errors(capsys, tmp_path):
    (tmp_path / "p.txt").write_text("A prompt.")
    assert claims.main(["-f", str(tmp_path / "p.txt"), "--share", "500%"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and "'500%'" in said.err
    assert claims.main(["-f", "no.txt"]) == 2
