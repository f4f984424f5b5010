"""scope evaluate and scope tune, through the user's door: results, tables, plots, mistakes."""

import csv
import io
import json
import random

import pytest
import yaml

from scope_cli.measure.evaluate.results import Rows
from tests.helpers.plain import PLAIN_SLOTS


@pytest.fixture
def text(tmp_path):
    """Some hundred tokens: one a byte."""
    words = random.Random(0).choices("sea wind lamp stone boat night stair".split(), k=120)  # noqa: SIM905
    file = tmp_path / "text.txt"
    file.write_text(" ".join(words))
    return file


@pytest.fixture
def prompts(tmp_path):
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file in files:
        file.write_text(f"Once upon a time, in {file.stem}")
    return files


def small(tiny_folder, *more):
    return ["--model", tiny_folder, "--set", "decode.interval=4", *PLAIN_SLOTS, *more]


def fidelity(scope, tiny_folder, text, *more):
    given = ["evaluate", "fidelity", "--text", text, "--prompt-tokens", 40, "--tokens", 200]
    return scope(*given, *small(tiny_folder), *more)


def test_fidelity_writes_a_table_a_result_and_a_plot(scope, tiny_folder, text, tmp_path):
    profiles = ["-p", "full", "-p", "slide", "-p", "slide scorer=random", "-p", "baselines/streamingllm"]
    out, plot = tmp_path / "f.json", tmp_path / "f.png"
    run = fidelity(scope, tiny_folder, text, *profiles, "--budget", "16,32", "-o", out, "--plot", plot)
    assert run.code == 0
    saved = json.loads(out.read_text())
    names = [entry["name"] for entry in saved["profiles"]]
    assert names == [
        "full",
        "slide budget=16",
        "slide budget=32",
        "slide scorer=random budget=16",
        "slide scorer=random budget=32",
        "baselines/streamingllm budget=16",
        "baselines/streamingllm budget=32",
    ]
    by_name = {entry["name"]: entry for entry in saved["profiles"]}
    assert by_name["full"]["rows"][0]["kl"] == [0, 0, 0]
    assert by_name["slide budget=16"]["rows"][0]["kl"][0] > by_name["slide budget=32"]["rows"][0]["kl"][0] > 0
    assert by_name["slide budget=16"]["profile"]["decode"]["budget"] == 16
    assert {"versions", "hardware", "model", "measured_at"} <= set(saved)
    assert "| slide budget=16 |" in run.stdout
    assert "* differs from full\n| difference |" in run.stderr and "verdict: " in run.stderr
    assert " left)" in run.stderr, "how long all of it will take"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_profiles_with_a_total_budget_hold_the_same_bytes(scope, tiny_folder, text, tmp_path):
    out = tmp_path / "f.json"
    profiles = ["-p", "slide", "-p", "baselines/streamingllm"]
    assert fidelity(scope, tiny_folder, text, *profiles, "--budget", "32", "-o", out).code == 0
    slide, streaming = json.loads(out.read_text())["profiles"]
    assert slide["bytes"]["held_peak"] == streaming["bytes"]["held_peak"]
    assert slide["bytes"]["held_mean"] == pytest.approx(streaming["bytes"]["held_mean"], rel=0.02)
    assert streaming["rows"][0]["kept_prompt"] < 40


def test_json_on_stdout_is_the_result(scope, tiny_folder, text):
    run = fidelity(scope, tiny_folder, text, "--json")
    assert json.loads(run.stdout)["scope_evaluate"] == "fidelity"


def test_a_run_can_be_measured_on_its_own_output(scope, tiny_folder, prompts, tmp_path):
    out = tmp_path / "out.txt"
    given = ["--model", tiny_folder, "--max-new-tokens", "90", "--ignore-eos", "--temperature", "0"]
    given += PLAIN_SLOTS
    assert scope("generate", "-f", prompts[0], "-o", out, *given).code == 0
    run = scope(
        "evaluate",
        "fidelity",
        "--run",
        f"{out}.run.json",
        "-f",
        prompts[0],
        "-p",
        "full",
        *PLAIN_SLOTS,
        "--model",
        tiny_folder,
    )
    assert run.code == 0
    assert "| full | 0.0000" in run.stdout


def test_an_output_can_be_written_for_the_measurement(scope, tiny_folder, prompts):
    run = scope(
        "evaluate",
        "fidelity",
        "-f",
        prompts[0],
        "--tokens",
        "64",
        *small(tiny_folder, "--set", "decode.budget=16"),
    )
    assert run.code == 0
    assert "64 tokens" in run.stderr


def test_recall_has_every_kind_of_probe(scope, tiny_folder, tmp_path):
    out, plot = tmp_path / "r.json", tmp_path / "r.png"
    given = ["--tokens", "160", "--seeds", "2", "-p", "full", "-p", "slide", "--budget", "16"]
    run = scope("evaluate", "recall", *given, *small(tiny_folder), "-o", out, "--plot", plot)
    assert run.code == 0
    full, slide = json.loads(out.read_text())["profiles"]
    assert [(row["kind"], row["seed"]) for row in full["rows"]] == [
        (kind, seed) for kind in ("output-fact", "prompt-fact", "list", "copy") for seed in (0, 1)
    ]
    assert [row["probe_id"] for row in full["rows"]] == [row["probe_id"] for row in slide["rows"]]
    assert plot.is_file()


def test_loops_counts_outputs(scope, tiny_folder, prompts, tmp_path):
    out, plot = tmp_path / "l.json", tmp_path / "l.png"
    given = [
        "-f",
        prompts[0],
        "-f",
        prompts[1],
        "--repeat",
        "2",
        "--max-new-tokens",
        "80",
        "--ignore-eos",
        "--lanes",
        "3",
    ]
    more = ["-p", "full", "-p", "slide budget=16", "--temperature", "0.5", "-o", out, "--plot", plot]
    run = scope("evaluate", "loops", *given, *small(tiny_folder), *more)
    assert run.code == 0
    full, slide = json.loads(out.read_text())["profiles"]
    assert len(full["rows"]) == len(slide["rows"]) == 4
    assert len({row["prompt_id"] for row in full["rows"]}) == 4
    assert len({row["text"] for row in full["rows"]}) == 4, "every output has a seed of its own"
    assert {row["prompt_id"] for row in full["rows"]} == {row["prompt_id"] for row in slide["rows"]}
    assert plot.is_file()


def test_a_calibration_file_is_not_overwritten_unasked(scope, tiny_folder, text, tmp_path):
    out = tmp_path / "q.safetensors"
    given = ["calibrate", out, "--text", text, "--model", tiny_folder]
    assert scope(*given).code == 0
    before = out.read_bytes()
    again = scope(*given)
    assert again.code == 2 and "exists already" in again.stderr and "--force" in again.stderr
    assert out.read_bytes() == before and scope(*given, "--force").code == 0


def sums(tmp_path, count=7):
    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(count)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def longgenbench(scope, tiny_folder, tmp_path, *more):
    given = [
        "--data",
        sums(tmp_path),
        "-k",
        "2",
        "--shots",
        "2",
        "--max-new-tokens",
        "30",
        "-o",
        tmp_path / "g.json",
    ]
    profiles = ["-p", "full", "-p", "slide budget=16"]
    return scope("evaluate", "longgenbench", *given, *profiles, *small(tiny_folder), *more)


def test_longgenbench_asks_every_question_and_keeps_every_answer(scope, tiny_folder, tmp_path):
    plot = tmp_path / "g.png"
    run = longgenbench(scope, tiny_folder, tmp_path, "--plot", plot)
    assert run.code == 0
    assert "5 questions in 3 prompts" in run.stderr
    saved = json.loads((tmp_path / "g.json").read_text())
    assert [[len(row["answers"]) for row in entry["rows"]] for entry in saved["profiles"]] == [[2, 2, 1]] * 2
    assert [answer["right"] for row in saved["profiles"][0]["rows"] for answer in row["answers"]] == [
        "4", "6", "8", "10", "12"
    ]  # fmt: skip
    assert plot.is_file()


def test_longgenbench_goes_on_where_it_was_stopped(scope, tiny_folder, tmp_path):
    assert longgenbench(scope, tiny_folder, tmp_path).code == 0
    first = json.loads((tmp_path / "g.json").read_text())["profiles"]
    answers = tmp_path / "g.json.answers.jsonl"
    lines = answers.read_text().splitlines(keepends=True)
    assert len(lines) == 6
    answers.write_text("".join(lines[:4]) + lines[4][:25])  # killed in the middle of a line
    (tmp_path / "g.json").unlink()
    run = longgenbench(scope, tiny_folder, tmp_path)
    assert run.code == 0
    assert "full: 3 of 3 prompts were answered before" in run.stderr
    assert "slide budget=16: 1 of 3 prompts were answered before" in run.stderr
    assert json.loads((tmp_path / "g.json").read_text())["profiles"] == first
    assert len(Rows(answers, lambda row: row["group"]).read()) == 6


def test_longgenbench_does_not_take_answers_of_another_profile(scope, tiny_folder, tmp_path):
    assert longgenbench(scope, tiny_folder, tmp_path).code == 0
    run = longgenbench(scope, tiny_folder, tmp_path, "--force", "--set", "decode.recent=3")
    assert run.code == 0
    assert "were answered before" not in run.stderr.replace("full: 3 of 3 prompts were answered before", "")


def test_longgenbench_does_not_overwrite_a_file_unasked(scope, tiny_folder, tmp_path):
    (tmp_path / "g.json").write_text("mine")
    run = longgenbench(scope, tiny_folder, tmp_path)
    assert run.code == 2 and "exists already" in run.stderr and "--force" in run.stderr
    assert (tmp_path / "g.json").read_text() == "mine"


def test_compare_reads_what_was_written(scope, tiny_folder, text, tmp_path):
    for name, profile in (("a", "slide budget=16"), ("b", "slide budget=64")):
        assert fidelity(scope, tiny_folder, text, "-p", profile, "-o", tmp_path / f"{name}.json").code == 0
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    table = scope("evaluate", "compare", *files, "--plot", tmp_path / "c.png")
    assert table.code == 0
    assert (
        "| slide budget=64 minus slide budget=16 |" in table.stdout
        and "verdict: slide budget=64: KL" in table.stderr
    )
    assert scope("evaluate", "compare", *files, "--format", "markdown").stdout == table.stdout
    assert (tmp_path / "c.png").is_file()
    rows = list(csv.DictReader(io.StringIO(scope("evaluate", "compare", *files, "--format", "csv").stdout)))
    kl = {row["profile"]: row for row in rows if row["metric"] == "kl"}
    assert float(kl["slide budget=64"]["difference"]) < 0
    as_json = json.loads(scope("evaluate", "compare", *files, "--format", "json").stdout)
    assert {row["profile"] for row in as_json} == set(kl)


def test_tune_writes_a_profile_that_generate_takes(scope, tiny_folder, text, prompts, tmp_path):
    out = tmp_path / "mine.yaml"
    given = [
        "--text",
        text,
        "--tokens",
        "200",
        "--scorer",
        "attention",
        "--scorer",
        "recency",
        "--strategy",
        "slide",
    ]
    run = scope("tune", *given, "--max-gap", "5", "-o", out, *small(tiny_folder))
    assert run.code == 0
    assert "| chosen |" in run.stdout
    assert (
        "verdict: slide, attention, budget 16, slots int8: KL " in run.stderr
        and " left at most)" in run.stderr
    )
    tuned = yaml.safe_load(out.read_text())
    assert tuned["decode"]["budget"] == 16, "a limit of 5 nats is kept by the smallest budget"
    assert tuned["cache"]["kv"] == "int8", "and by the format that holds least"
    assert "mean KL to the full cache" in out.read_text()
    assert scope("profiles", "check", out).code == 0
    assert scope("generate", "-f", prompts[0], "-p", out, "--max-new-tokens", "5", "-q").code == 0
    again = scope("tune", *given, "-o", out, *small(tiny_folder))
    assert (again.code, "exists already" in again.stderr) == (2, True)


def test_tune_says_when_no_budget_is_enough(scope, tiny_folder, text, tmp_path):
    out = tmp_path / "mine.yaml"
    given = ["--text", text, "--tokens", "100", "--scorer", "attention", "--strategy", "slide", "-o", out]
    run = scope("tune", *given, "--max-gap", "1e-9", *small(tiny_folder))
    assert run.code == 2
    assert "keeps the gap under 1e-09" in run.stderr
    assert not out.exists()


MISTAKES = [
    (["evaluate", "fidelity"], "give --text FILE"),
    (["evaluate", "fidelity", "--text", "none.txt"], "cannot read none.txt"),
    (["evaluate", "fidelity", "--text", "T", "--budget", "3,x"], "'3,x' is not a list of numbers"),
    (["evaluate", "fidelity", "--text", "T", "-p", "slid"], "did you mean slide?"),
    (["evaluate", "fidelity", "--text", "T", "-p", "slide budget"], "'budget' is not KEY=VALUE"),
    (["evaluate", "fidelity", "--text", "T", "-p", "slide 'a"], "No closing quotation"),
    (["evaluate", "fidelity", "--text", "T", "-p", "full", "-p", "slide dtype=bfloat16"], "different models"),
    (["evaluate", "fidelity", "--text", "T", "--plot", "p.doc"], "not a kind of picture that can be drawn"),
    (["evaluate", "fidelity", "--text", "T", "-o", "none/f.json"], "there is no folder none"),
    (["evaluate", "fidelity", "--run", "T"], "--run needs the run's prompt"),
    (["evaluate", "fidelity", "--run", "T", "-f", "T"], "is not the record of a run"),
    (["evaluate", "fidelity", "--text", "T", "--prompt-tokens", "5000"], "of them are to be the prompt"),
    (["evaluate", "recall", "--kind", "output-facts"], "did you mean output-fact?"),
    (["evaluate", "compare", "T"], "is not JSON"),
    (["evaluate", "compare", "none.json"], "cannot read none.json"),
    (["evaluate", "longgenbench", "--data", "T", "-o", "g.json"], "not JSON"),
    (["evaluate", "longgenbench", "--data", "T", "-o", "g.json", "--task", "math"], "there is no 'math'"),
    (["tune"], "give either --prompt-file FILE or --text FILE"),
    (["tune", "--text", "T", "--max-gap", "0"], "must be above 0"),
    (["tune", "--text", "T", "--strategy", "full"], "no budget to tune"),
    (["tune", "--text", "T", "--scorer", "atention"], "did you mean attention?"),
]


@pytest.mark.parametrize(
    ("argv", "words"), MISTAKES, ids=lambda part: " ".join(part) if isinstance(part, list) else ""
)
def test_a_mistake_is_one_error_line_and_exit_code_2(
    scope, tiny_folder, text, argv, words, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    given = [str(text) if part == "T" else part for part in argv]
    if argv[:2] != ["evaluate", "compare"]:
        given += ["--model", str(tiny_folder)]
    result = scope(*given)
    assert (result.code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.startswith("error: ")


def test_a_result_of_another_format_is_refused(scope, tmp_path):
    (tmp_path / "old.json").write_text('{"scope_evaluate": "fidelity", "format": 0, "profiles": []}')
    assert "has format 0; this version reads 1" in scope("evaluate", "compare", tmp_path / "old.json").stderr
    (tmp_path / "other.json").write_text("{}")
    assert "is not a result of scope evaluate" in scope("evaluate", "compare", tmp_path / "other.json").stderr
