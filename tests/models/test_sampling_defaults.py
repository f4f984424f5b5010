"""What a model's generation_config.json says of sampling, and what it goes before."""

import json
import shutil

import pytest

from scope_cli.errors import ModelError
from scope_cli.models.sampling import in_words, sampling_of
from tests.helpers.plain import load_profile

QWEN3 = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 2]}
TAKEN = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": None}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "max_length": 20}, {}),
        (QWEN3, TAKEN),
        ({**QWEN3, "do_sample": None}, TAKEN),
        ({"do_sample": True, "top_k": 64}, {"temperature": 1.0, "top_k": 64, "top_p": 1.0, "min_p": None}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.05}, {"repetition_penalty": 1.05}),
        ({"do_sample": True, "top_k": 0}, {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": None}),
    ],
)
def test_what_the_file_says(file, said):
    assert sampling_of(file) == said


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"top_p": 7}, {"repetition_penalty": -1}])
def test_what_cannot_be_used_is_named(wrong):
    with pytest.raises(ModelError, match=next(iter(wrong))):
        sampling_of({"do_sample": True, **wrong})


def profile(tmp_path, text, **typed):
    (tmp_path / "mine.yaml").write_text(text)
    return load_profile(str(tmp_path / "mine.yaml"), {f"sampling.{key}": one for key, one in typed.items()})


def test_the_model_decides_what_nobody_said(tmp_path):
    settings, taken = profile(tmp_path, "sampling: {top_k: 5}", temperature=0.2).with_model_sampling(TAKEN)
    sampling = settings.profile.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.2, 5, 0.95)
    assert taken == {"top_p": 0.95, "min_p": None}


def test_the_default_profile_gives_way_and_the_papers_does_not():
    settings, taken = load_profile("default").with_model_sampling(TAKEN)
    assert taken == TAKEN and settings.profile.sampling.top_k == 20
    assert load_profile("default").with_model_sampling({})[0].profile.sampling.temperature == 0.7
    for name in ("slide", "full", "paper-4k-512", "baselines/h2o"):
        settings, _ = load_profile(name).with_model_sampling({**TAKEN, "repetition_penalty": 1.1})
        assert settings.profile.sampling.temperature == 0, name
        assert settings.profile.sampling.repetition_penalty == 1, name


def test_a_whole_section_that_was_typed_is_taken_whole():
    settings = load_profile("default", {"sampling": {"temperature": 0}})
    assert settings.with_model_sampling(TAKEN) == (settings, {})


def test_what_temperature_0_does_not_look_at_is_not_said_to_be_the_models(tmp_path):
    for settings in (
        load_profile("default", {"sampling.temperature": 0}),
        profile(tmp_path, "sampling: {temperature: 0}"),
        load_profile("slide"),
    ):
        _, taken = settings.with_model_sampling({**TAKEN, "repetition_penalty": 1.1})
        assert not taken.keys() & {"top_k", "top_p", "min_p"}
    _, taken = load_profile("default").with_model_sampling({"temperature": 0.0, "top_k": 50})
    assert taken == {"temperature": 0.0}


def test_the_words_leave_away_what_changes_nothing():
    assert in_words(TAKEN) == "temperature 0.6, top-k 20, top-p 0.95"
    assert in_words({"repetition_penalty": 1.05}) == "repetition-penalty 1.05"


def test_a_run_says_in_its_first_line_that_the_model_decided_and_records_it(scope, tiny_folder, tmp_path):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({**QWEN3, "eos_token_id": 257}))
    argv = ["generate", "hi", "--model", model, "--max-new-tokens", 3, "-o"]
    said = scope(*argv, tmp_path / "a.txt").stderr
    assert "sampling as the model asks: temperature 0.6, top-k 20, top-p 0.95\n" in said
    record = json.loads((tmp_path / "a.txt.run.json").read_text())
    assert record["from_model"] == TAKEN and record["profile"]["sampling"]["top_k"] == 20
    said = scope(*argv, tmp_path / "b.txt", "-p", "slide").stderr
    assert "as the model asks: temperature" not in said


def test_a_batch_samples_as_the_model_asks_where_neither_profile_nor_row_decide(scope, tiny_folder, tmp_path):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({**QWEN3, "eos_token_id": 257}))
    rows = {"plain": {}, "own": {"temperature": 0.2, "min_p": 0.1}}
    lines = [json.dumps({"id": name, "prompt": "hi", "sampling": own}) for name, own in rows.items()]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    argv = ["batch", tmp_path / "p.jsonl", "--model", model, "--max-new-tokens", 3, "-o"]
    said = scope(*argv, tmp_path / "out").stderr
    first = said.splitlines()[0]
    assert first == "sampling as the model asks: temperature 0.6, top-k 20, top-p 0.95"
    records = {name: json.loads((tmp_path / "out" / f"{name}.txt.run.json").read_text()) for name in rows}
    assert records["plain"]["from_model"] == TAKEN
    assert records["own"]["from_model"] == {"top_k": 20, "top_p": 0.95}
    for name, own in rows.items():
        sampling = records[name]["profile"]["sampling"]
        assert {key: sampling[key] for key in TAKEN} == TAKEN | own
    said = scope(*argv, tmp_path / "mine", "-p", "slide").stderr
    assert "as the model asks: temperature" not in said
    record = json.loads((tmp_path / "mine" / "plain.txt.run.json").read_text())
    assert "temperature" not in record["from_model"] and record["profile"]["sampling"]["temperature"] == 0
