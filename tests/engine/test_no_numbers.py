"""A model whose numbers are none: the output ends as failed, says where, and harms no other."""

import json
from functools import partial
from math import isfinite

import pytest
import torch
from transformers import AutoModelForCausalLM

from scope_cli.engine import run as generate_module
from scope_cli.engine.decode import decode
from scope_cli.engine.sampling import Sampler
from scope_cli.settings.schema import SamplingSettings
from tests.helpers.picking import pick
from tests.helpers.tiny import tiny_model, tiny_tokenizer

PROMPT = "The keeper of the lighthouse wrote every evening, and "
FINE = "And nobody ever read a single word of what it said."
NAN, INF = float("nan"), float("inf")


def greedy_ids(text: str, count: int) -> list[int]:
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    out = tiny_model(dtype=torch.float32, attention="sdpa").generate(
        ids, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.fixture
def broken(tmp_path):
    """A model that breaks down some tokens after PROMPT, never after FINE; and what it writes until then."""
    ids = greedy_ids(PROMPT, 40)
    harmless = {*PROMPT.encode(), *FINE.encode(), *greedy_ids(FINE, 40)}
    culprit = next(at for at in range(4, 40) if ids[at] not in {*ids[:at], *harmless})
    model = tiny_model(dtype=torch.float32)
    model.model.embed_tokens.weight[ids[culprit]] = NAN
    model.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    return tmp_path / "broken", ids[: culprit + 1]


def strictly(line: str | bytes):
    """JSON as its grammar is: no NaN, no Infinity."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def results(out):
    """results.jsonl by id."""
    return {row["id"]: row for row in map(strictly, (out / "results.jsonl").read_bytes().splitlines())}


def run(scope, folder, *argv):
    return scope(
        "generate", "--model", folder, "--ignore-eos", "--kv", "plain", "--max-new-tokens", 40, *argv
    )


@pytest.mark.parametrize("ahead", [False, True], ids=["in step", "ahead"])
def test_an_output_ends_as_failed_where_the_numbers_end(scope, broken, tmp_path, monkeypatch, ahead):
    monkeypatch.setattr(generate_module, "decode", partial(decode, ahead=ahead))
    folder, ids = broken
    result = run(scope, folder, "--temperature", 0, PROMPT, "-o", tmp_path / "o.txt")
    assert result.code == 1
    assert f"token {len(ids) + 1}" in result.stderr and "bfloat16" in result.stderr
    assert "Traceback" not in result.stderr
    written = tiny_tokenizer().backend_tokenizer.decode(ids)
    assert written.startswith(result.stdout), "what is no whole character at the end may be missing"
    assert written.rstrip("\ufffd") == result.stdout.rstrip("\ufffd")
    assert (tmp_path / "o.txt").read_text() == result.stdout
    record = strictly((tmp_path / "o.txt.run.json").read_text())
    assert record["status"] == "failed" and "token" in record["results"][0]["error"]


@pytest.mark.parametrize("ahead", [False, True], ids=["in step", "ahead"])
def test_text_that_was_held_back_as_a_possible_stop_is_told_before_the_failure(
    scope, broken, tmp_path, monkeypatch, ahead
):
    monkeypatch.setattr(generate_module, "decode", partial(decode, ahead=ahead))
    argv = (broken[0], "--temperature", 0, "--stats-file", tmp_path / "stats")
    whole = run(scope, *argv, PROMPT).stdout
    for held in (3, len(whole)):  # the end of the output, and all of it
        stop = ("--stop", whole[-held:] + "\u2603")
        (tmp_path / "o.txt").write_text("something older")
        result = run(scope, *argv, *stop, PROMPT, "-o", tmp_path / "o.txt", "--force")
        assert (result.code, result.stdout) == (1, whole)
        assert (tmp_path / "o.txt").read_text() == whole
        events = [strictly(line) for line in run(scope, *argv, *stop, PROMPT, "--json").stdout.splitlines()]
        assert "".join(event.get("text", "") for event in events) == whole
        assert (events[-1]["event"], events[-1]["text"][-held:]) == ("failed", whole[-held:])
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "a").write_text(PROMPT)
        more = ("--model", broken[0], "--ignore-eos", "--max-new-tokens", 40, "--temperature", 0, *stop)
        out = tmp_path / f"out{held}"
        assert scope("batch", tmp_path / "in", "--output-dir", out, "--raw", *more).code == 1
        (part,) = out.rglob("*.part")
        assert part.read_text() == whole


@pytest.mark.parametrize(
    "sampling",
    [
        "--temperature 0",
        "--temperature 1 --top-k 5",
        "--temperature 0.7 --top-p 0.9",
        "--temperature 1 --min-p 0.1 --repetition-penalty 1.3",
    ],
)
def test_however_it_is_sampled_the_events_are_json_and_the_last_says_failed(scope, tmp_path, sampling):
    model = tiny_model(dtype=torch.float32)
    model.lm_head.weight[7, 3] = NAN
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    result = run(scope, tmp_path, *sampling.split(), PROMPT, "--json", "--stats-file", tmp_path / "stats")
    events = [strictly(line) for line in result.stdout.splitlines()]
    assert (result.code, events[-1]["event"]) == (1, "failed")
    assert "token 1 " in events[-1]["error"] and "dtype" in events[-1]["hint"]
    assert not [event for event in events if event["event"] == "token"]
    assert strictly((tmp_path / "stats").read_text().splitlines()[-1])["phase"] == "failed"


def test_the_other_outputs_of_a_run_go_on(scope, broken, tmp_path):
    folder, _ = broken
    for name, text in (("a", PROMPT), ("b", FINE)):
        (tmp_path / name).write_text(text)
    alone = run(scope, folder, "--temperature", 0, "-f", tmp_path / "b")
    assert alone.code == 0, "the test needs a prompt that goes well"
    for lanes in (1, 2):
        out = tmp_path / f"{lanes}.txt"
        files = ("-f", tmp_path / "a", "-f", tmp_path / "b")
        result = run(scope, folder, "--temperature", 0, *files, "-o", out, "--lanes", lanes)
        assert result.code == 1 and "output 1 of 2" in result.stderr
        assert alone.stdout and result.stdout.endswith(alone.stdout)
        assert (tmp_path / f"{lanes}-2.txt").read_bytes().decode() == alone.stdout
        assert strictly((tmp_path / f"{lanes}-2.txt.run.json").read_text())["status"] == "finished"


def test_a_row_of_a_batch_fails_alone_and_leaves_nothing_to_the_next(scope, broken, tmp_path):
    folder, _ = broken
    more = ("--model", folder, "--ignore-eos", "--max-new-tokens", 40, "--temperature", 0, "--lanes", 1)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b").write_text(FINE)
    scope("batch", tmp_path / "in", "--output-dir", tmp_path / "alone", *more)
    (tmp_path / "in" / "a").write_text(PROMPT)
    result = scope("batch", tmp_path / "in", "--output-dir", tmp_path / "out", *more)
    assert result.code == 1
    alone, rows = results(tmp_path / "alone"), results(tmp_path / "out")
    assert rows["a"]["state"] == "failed" and "log-probability" in rows["a"]["error"]
    assert rows["b"]["text"] == alone["b"]["text"] != ""


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}], ids=str)
@pytest.mark.parametrize("bad", [[NAN], [INF], [INF, INF], [NAN, -INF], [-INF] * 7], ids=str)
def test_a_choice_that_was_made_by_no_numbers_says_so(settings, bad):
    logits = torch.tensor([[*bad, 2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -3.0][:7]])
    token_id, logprob = pick(Sampler(SamplingSettings(**settings), 1, (), "cpu"), logits, torch.tensor([[0]]))
    assert 0 <= token_id < 7
    assert not isfinite(logprob)


def test_tokens_that_a_model_rules_out_are_no_fault():
    logits = torch.tensor([[-INF, 1.0, 2.0, -INF]])
    for settings in ({}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}):
        assert isfinite(pick(Sampler(SamplingSettings(**settings), 1, (), "cpu"), logits, logits[:, :1])[1])


@pytest.mark.parametrize("value", ["1e-44", "1e-46", "1e-9", "inf", "nan", "-1"])
def test_a_temperature_that_cannot_be_computed_with_is_refused(scope, value):
    result = scope("generate", "hi", "--temperature", value)
    assert (result.code, result.stdout) == (2, "")
    assert "temperature" in result.stderr


@pytest.mark.parametrize("key", ["sampling.repetition_penalty=1e-44", "sampling.repetition_penalty=.inf"])
def test_a_penalty_that_cannot_be_computed_with_is_refused(scope, key):
    assert scope("generate", "hi", "--set", key).code == 2


def test_the_coldest_temperature_there_is_still_picks_the_most_probable():
    logits = torch.tensor([[80.0, 80.5, -1e30, 1e30]])
    for temperature in (1e-6, 1e-5):
        lane = Sampler(SamplingSettings(temperature=temperature), 1, (), "cpu")
        assert pick(lane, logits[:, :3], torch.tensor([[0]]))[0] == 1
        assert pick(lane, logits, torch.tensor([[0]]))[0] == 3


def test_the_saved_model_is_what_the_test_says(broken):
    weights = AutoModelForCausalLM.from_pretrained(broken[0]).model.embed_tokens.weight
    assert weights.isnan().any(-1).sum() == 1
