"""scope profile through the user's door: planning, measuring, comparing, and what is refused."""

import csv
import io
import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml

from scope_cli.machine import memory, nvidia
from tests.helpers.configs import GEMMA3_27B, LLAMA_8B
from tests.helpers.forked import Piped
from tests.helpers.plain import PLAIN_SLOTS, load_profile


@pytest.fixture
def llama(tmp_path):
    file = tmp_path / "llama.json"
    file.write_text(json.dumps(LLAMA_8B))
    return file


@pytest.fixture(scope="session")
def measured(tmp_path_factory, tiny_folder):
    """Two profiles measured in processes of their own, with every output that there is."""
    folder = tmp_path_factory.mktemp("measured")
    argv = ["profile", "--model", tiny_folder, "--budget", 16, "--strategy", "slide,full", "--interval", 4]
    argv += ["--prompt-tokens", 40, "--max-new-tokens", 90, "--json", *PLAIN_SLOTS]
    argv += [part for kind in ("png", "svg", "html") for part in ("--plot", folder / f"plot.{kind}")]
    process = Piped(*argv)
    stdout, stderr = process.communicate()
    (folder / "out.json").write_bytes(stdout)
    return process.returncode, json.loads(stdout), stderr.decode(), folder


def test_plan_prints_what_fits(scope, llama):
    result = scope("profile", "--plan", "--config", llama, "--memory", "24GiB", "--prompt-tokens", 8000)
    assert result.code == 0 and result.stderr == ""
    assert "14.96 GiB" in result.stdout and "llama, bfloat16 on cuda" in result.stdout


def test_a_plan_says_where_the_scorer_has_nothing_to_choose(scope, llama):
    argv = ["profile", "--plan", "--config", llama, "--memory", "24GiB", "--budget", "64,512"]
    told = "32 recent tokens and an interval of 64 leave the scorer nothing to choose; interval=16 would"
    assert scope(*argv).stderr == ""
    assert scope(*argv, "--interval", 64).stderr == f"note: default 64: {told}\n"


def test_a_plan_that_does_not_fit_ends_with_4_and_says_the_numbers(scope, llama):
    result = scope("profile", "--plan", "--config", llama, "--memory", "12GiB", "--json")
    assert result.code == 4
    (plan,) = json.loads(result.stdout)["plans"]
    assert plan["fits"] is False and plan["plan"]["total_bytes"] > 12 * 2**30 == plan["free_bytes"]
    assert plan["full"]["runs_out_at"] == -1


def test_plans_stand_side_by_side(scope, llama):
    result = scope(
        "profile", "--plan", "--config", llama, "--memory", "24GiB", "--budget", "256,512", "--strategy",
        "slide,full", "--max-new-tokens", 1000, "--csv", "--quiet",
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["label"] for row in rows] == ["default slide 256", "default slide 512", "default full"]
    assert (
        int(rows[0]["plan_cache_bytes"]) < int(rows[1]["plan_cache_bytes"]) < int(rows[2]["plan_cache_bytes"])
    )


def test_fit_prints_a_profile_with_the_largest_budget(scope, llama, tmp_path):
    argv = ["--config", llama, "--prompt-tokens", 4000, "--max-new-tokens", 40000, "--memory", "18GiB"]
    argv += PLAIN_SLOTS
    result = scope("profile", "--fit", *argv)
    assert result.code == 0
    budget = yaml.safe_load(result.stdout)["decode"]["budget"]
    (tmp_path / "fitted.yaml").write_text(result.stdout)
    again = scope("profile", "--plan", *argv, "--profile", tmp_path / "fitted.yaml")
    assert again.code == 0
    assert scope("profile", "--plan", *argv, "--budget", budget + 1).code == 4


def test_fit_names_the_model_it_planned_for_and_lets_it_end(scope, llama, tmp_path):
    argv = ["--config", llama, "--prompt-tokens", 8000, "--max-new-tokens", 32000, "--memory", "24GiB"]
    result = scope("profile", "--fit", *argv)
    tree = yaml.safe_load(result.stdout)
    assert tree["model"]["name"] == str(llama.parent), "not the model of the profile that was changed"
    assert "holds no weights: put the model's folder, file or hub name there" in result.stderr
    assert "holds no weights" in result.stdout, "the file says it as well"
    assert tree["sampling"]["ignore_eos"] is False
    assert tree["description"] == "slide, budget 16,000: 8,000 + 32,000 tokens of llama in 24.00 GiB"
    assert tree["decode"]["budget"] == 16000, "half of the output: with all of it nothing would be evicted"
    assert "16,000 is half of the output" in result.stderr


def test_fit_takes_the_hub_name_that_a_config_gives_itself(scope, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**LLAMA_8B, "_name_or_path": "meta-llama/Llama-3.1-8B"}))
    result = scope("profile", "--fit", "--config", tmp_path, "--memory", "24GiB")
    assert yaml.safe_load(result.stdout)["model"]["name"] == "meta-llama/Llama-3.1-8B"
    assert "check it" in result.stderr


@pytest.mark.parametrize("way", ["--model", "--config"])
def test_a_fitted_profile_is_one_that_generate_runs(scope, tiny_folder, tmp_path, way):
    argv = ["--prompt-tokens", 40, "--max-new-tokens", 120, "--memory", "600MiB", "--device", "cpu"]
    result = scope("profile", "--fit", way, tiny_folder, *argv)
    assert result.code == 0
    (tmp_path / "fits.yaml").write_text(result.stdout)
    assert scope("profiles", "check", tmp_path / "fits.yaml").code == 0
    ran = scope("generate", "-p", tmp_path / "fits.yaml", "--set", "sampling.ignore_eos=true", "x" * 40)
    assert ran.code == 0 and "budget 60" in ran.stderr and "64 tokens" not in ran.stdout


def test_a_plan_says_what_smaller_weights_would_take(scope, llama):
    argv = ["profile", "--plan", "--config", llama, "--memory", "8GiB"]
    on_cpu = scope(*argv, "--device", "cpu")
    assert on_cpu.code == 4 and "none fits" in on_cpu.stdout
    (hint,) = on_cpu.stderr.splitlines()
    assert hint.startswith("hint: --load-in int4 takes ") and "--dtype bfloat16 takes" in hint
    said = float(hint.split("int4 takes ")[1].split(" GiB")[0])
    packed = scope(*argv, "--device", "cpu", "--load-in", "int4", "--json", "-q")
    (plan,) = json.loads(packed.stdout)["plans"]
    assert plan["plan"]["total_bytes"] / 2**30 == pytest.approx(said, abs=0.01)
    assert "hint: --load-in 4bit takes" in scope(*argv, "--device", "cuda").stderr
    assert "hint" not in scope(*argv, "--load-in", "4bit").stderr


@pytest.mark.parametrize("size", ["24", "1000000", " 24", "512KiB"])
def test_a_memory_without_a_unit_is_asked_back(scope, llama, size):
    result = scope("profile", "--plan", "--config", llama, "--memory", size)
    assert (result.code, result.stdout) == (2, "") and "bytes are too little for any model" in result.stderr
    assert ("did you mean --memory" in result.stderr) == size.strip().isdecimal()


def test_a_config_may_be_given_as_its_folder(scope, llama, tmp_path):
    (tmp_path / "config.json").write_text(llama.read_text())
    argv = ["--memory", "24GiB", "--json", "-q"]
    by_file = scope("profile", "--plan", "--config", tmp_path / "config.json", *argv)
    by_folder = scope("profile", "--plan", "--config", tmp_path, *argv)
    assert by_folder == by_file and by_file.code == 0
    (tmp_path / "empty").mkdir()
    nothing = scope("profile", "--plan", "--config", tmp_path / "empty", *argv)
    assert nothing.code == 2 and "there is no config.json in" in nothing.stderr


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_a_plan_is_drawn(scope, llama, tmp_path, kind):
    file = tmp_path / f"plan.{kind}"
    argv = ["--config", llama, "--memory", "24GiB", "--max-new-tokens", 5000, "--strategy", "slide,full"]
    result = scope("profile", "--plan", *argv, "--plot", file, "--plot", "-")
    assert result.code == 0 and f"wrote {file}" in result.stderr
    assert "Keys and values held, " in result.stdout and "a cache that forgets nothing" in result.stdout
    if kind != "png":
        for text in ("default slide 2048", "default full", "What has to be free; the line: 24.00 GiB are"):
            assert text in file.read_text()


def test_fit_ends_with_4_where_no_budget_fits(scope, llama):
    result = scope("profile", "--fit", "--config", llama, "--memory", "4GiB")
    assert (result.code, result.stdout) == (4, "")
    assert "no budget fits" in result.stderr


def test_lanes_are_planned(scope, llama):
    def cache(lanes):
        result = scope(
            "profile", "--plan", "--config", llama, "--memory", "80GiB", "--lanes", lanes, "--json"
        )
        return json.loads(result.stdout)["plans"][0]["plan"]["cache_bytes"]

    assert cache(8) == 8 * cache(1)


def test_free_memory_is_what_containers_leave(scope, llama, monkeypatch):
    monkeypatch.setattr(memory, "cgroup_free_bytes", lambda: iter([5 * 2**30]))
    result = scope("profile", "--plan", "--config", llama, "--device", "cpu", "--json", "--quiet")
    assert result.code == 4
    assert json.loads(result.stdout)["plans"][0]["free_bytes"] == 5 * 2**30


def test_free_memory_of_a_gpu_comes_from_nvidia_smi(scope, llama, monkeypatch):
    monkeypatch.setattr(nvidia, "free_bytes", lambda: [10 * 2**30, 40 * 2**30])
    result = scope("profile", "--plan", "--config", llama, "--device", "cuda:1", "--json", "--quiet")
    (plan,) = json.loads(result.stdout)["plans"]
    assert (plan["free_bytes"], plan["dtype"]) == (40 * 2**30, "bfloat16")


def test_a_prompt_file_is_counted_with_the_models_own_tokenizer(scope, tiny_folder, tmp_path):
    (tmp_path / "prompt.txt").write_text("x" * 77)
    result = scope("profile", "--plan", "--model", tiny_folder, "-f", tmp_path / "prompt.txt", "--json", "-q")
    assert json.loads(result.stdout)["plans"][0]["plan"]["prompt_tokens"] == 77


BAD = {
    "a device that does not exist": (
        ["--plan", "--device", "cuda:7"],
        "the free memory of --device cuda:7 is unknown",
    ),
    "no such kind of device": (["--device", "tpu"], "'tpu'"),
    "an output beyond the context": (["--plan", "--max-new-tokens", "999999"], "exceed the model's context"),
    "measured: an output beyond the context": (["--max-new-tokens", "999999"], "exceed the model's context"),
    "a plot nobody knows": (["--plot", "map.pdf"], "--plot map.pdf: no such format"),
    "a plot in no folder": (["--plot", "no/such/map.png"], "there is no folder"),
    "no size": (["--plan", "--memory", "lots"], "--memory lots is not a size"),
    "no numbers": (["--budget", "256,many"], "--budget 256,many is not a list of numbers"),
    "a budget of nothing": (["--plan", "--budget", "0"], "--budget"),
    "a strategy nobody knows": (["--plan", "--strategy", "slid"], "did you mean slide?"),
    "two prompts": (["--prompt", "a", "--prompt-tokens", "9"], "cannot be combined"),
    "an empty prompt": (["--prompt", " "], "the prompt is empty"),
    "two formats": (["--json", "--csv"], "--json and --csv"),
    "memory without a plan": (["--memory", "24GiB"], "--memory is for planning"),
    "lanes without a plan": (["--lanes", "2"], "--lanes is for planning"),
    "fit of several": (["--fit", "--budget", "1,2"], "--fit chooses the budget of one profile"),
    "fit of what has no budget": (["--fit", "--strategy", "full"], "has no budget to choose"),
    "a model that is nowhere": (
        ["--plan", "--model", "nobody/nothing"],
        "not in the local Hugging Face cache",
    ),
    "a config that is nowhere": (["--config", "no-such.json"], "cannot read no-such.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_a_hint(scope, tiny_folder, case, monkeypatch):
    monkeypatch.setattr(nvidia, "free_bytes", list)
    argv, said = BAD[case]
    model = [] if "--model" in argv or "--config" in argv else ["--model", tiny_folder]
    result = scope("profile", *model, *argv)
    assert (result.code, result.stdout) == (2, "")
    first, *rest = result.stderr.strip().splitlines()
    assert first.startswith("error: ") and said in first
    assert len(rest) <= 1 and all(line.startswith("hint: ") for line in rest)


@pytest.mark.parametrize("lacking", ["hidden_size", "vocab_size", "num_attention_heads"])
def test_a_config_without_the_needed_fields(scope, tmp_path, lacking):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({key: value for key, value in LLAMA_8B.items() if key != lacking}))
    result = scope("profile", "--plan", "--config", file)
    assert result.code == 2 and f"config.json lacks {lacking}" in result.stderr and "hint:" in result.stderr


def test_gemma_is_planned_with_its_windows(scope, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GEMMA3_27B))
    result = scope("profile", "--plan", "--config", file, "--memory", "80GiB")
    assert result.code == 0 and "51.10 GiB" in result.stdout


def test_measuring_ends_well_and_says_what_it_does(measured):
    code, tree, stderr, _ = measured
    assert code == 0 and [one["label"] for one in tree["results"]] == ["default slide 16", "default full"]
    assert "measuring 2 of 2" in stderr and "KV held, average" in stderr


def test_anonymous_memory_and_mapped_files_are_told_apart(measured):
    _, tree, stderr, _ = measured
    for one in tree["results"]:
        assert 0 < one["peaks"]["mapped_bytes"] < one["peaks"]["baseline_bytes"]
    assert re.search(r"loaded and warm .* MiB\n *mapped files beside it .* MiB", stderr)


@pytest.mark.parametrize(
    ("wish", "device", "tokens", "told"),
    [
        ("on", "cuda", 12, True),
        ("on", "cpu", 12, False),
        ("auto", "cuda", 12, False),
        ("auto", "cuda", 5000, True),
    ],
)
def test_an_uncompiled_measurement_of_what_would_be_compiled_is_told(wish, device, tokens, told):
    from scope_cli.measure.profiling.watch import compile_note

    profile = load_profile("default", {"model.compile": wish}).profile
    notes = compile_note(profile, SimpleNamespace(max_new_tokens=tokens), torch.device(device))
    assert [note.startswith("the step was measured uncompiled") for note in notes] == [True] * told


def test_measured_kv_bytes_are_planned_to_the_byte(measured):
    for one in measured[1]["results"]:
        errors = one["errors_percent"]
        assert {errors[key] for key in errors if key.startswith("kv_")} == {0.0}
        assert one["audit"] == [] and one["output_tokens"] == 90


def test_a_budget_holds_less_than_the_full_cache(measured):
    slide, full = measured[1]["results"]
    assert slide["kv"]["held_mean_bytes"] < 0.8 * full["kv"]["held_mean_bytes"]
    assert full["kv"]["held_mean_bytes"] == full["kv"]["full_mean_bytes"]
    assert slide["transfer"]["evictions"] > 0 == full["transfer"]["evictions"]
    assert slide["transfer"]["moved_bytes"] == 0 < slide["transfer"]["reference_moved_bytes"]


def test_times_add_up_and_each_part_took_some(measured):
    for one in measured[1]["results"]:
        time = one["time"]
        parts = time["attention_s"] + time["eviction_s"] + time["rest_s"]
        assert parts == pytest.approx(time["decode_s"], rel=1e-6)
        assert min(time["attention_s"], time["eviction_s"], time["rest_s"], time["prefill_s"]) > 0


def test_the_memory_map_shows_the_prompt_the_recent_and_what_was_forgotten(measured):
    from scope_cli.measure.profiling.result import from_dict

    slide, full = (from_dict(one).map for one in measured[1]["results"])
    prompt = slide.edges.index(slide.prompt_tokens)
    last = slide.values()[-1]  # [layers, bins]
    assert (last[:, :prompt] == 100).all(), "a protected prompt is held by every head"
    assert (last[:, -4:-1] == 100).all(), "the newest are held; the last one was never fed to the model"
    assert (last[:, prompt:] == 0).any(), "16 of 90 cannot all be held"
    seen = full.values()[-1]
    assert (seen[seen != 255] == 100).all(), "a full cache forgets nothing"
    assert (full.values()[0] == 255).any(), "what is not written yet is not held, and not forgotten either"


def test_pictures_are_pictures(measured):
    folder = measured[3]
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "plot.svg").read_text()
    for text in ("output tokens", "tokens/s", "full cache", "Memory map, default slide 16", "position"):
        assert text in svg
    page = (folder / "plot.html").read_text()
    assert page.startswith("<!doctype html>") and "<svg" in page and "<th>KV held, average</th>" in page
    assert not re.search(r"(src|href)=\"http", page), "one file that needs no other"
    for what in ("model", "machine", "measured", "command"):
        assert f"<tr><th>{what}</th><td>" in page
    assert "scope profile --model" in page and "_bytes" not in page and "_tokens" not in page


def test_the_same_result_is_not_worse_than_itself(scope, measured):
    file = measured[3] / "out.json"
    result = scope("profile", "compare", file, file)
    assert (result.code, result.stdout) == (0, "nothing changed\n")


def test_a_regression_ends_with_1_and_is_named(scope, measured, tmp_path):
    tree = json.loads((measured[3] / "out.json").read_text())
    tree["results"][0]["kv"]["held_mean_bytes"] *= 1.05
    (tmp_path / "after.json").write_text(json.dumps(tree))
    result = scope("profile", "compare", measured[3] / "out.json", tmp_path / "after.json")
    assert result.code == 1
    label, _, line = result.stdout.strip().splitlines()
    assert label == "default slide 16"
    assert line.startswith("KV held, average") and "5.0% worse" in line and "REGRESSION" in line
    lenient = scope("profile", "compare", measured[3] / "out.json", tmp_path / "after.json", "--threshold", 6)
    assert lenient.code == 0


def test_a_profile_that_one_file_lacks_is_told(scope, measured, tmp_path):
    tree = json.loads((measured[3] / "out.json").read_text())
    del tree["results"][1]
    (tmp_path / "one.json").write_text(json.dumps(tree))
    both = measured[3] / "out.json"
    lost = scope("profile", "compare", both, tmp_path / "one.json")
    assert lost.code == 1 and "missing: default full is only in" in lost.stderr
    new = scope("profile", "compare", tmp_path / "one.json", both)
    assert new.code == 0 and "note: default full is only in" in new.stderr
    tree["results"] *= 2
    (tmp_path / "twice.json").write_text(json.dumps(tree))
    twice = scope("profile", "compare", both, tmp_path / "twice.json")
    assert twice.code == 2 and "stands twice" in twice.stderr


def test_results_of_another_model_or_form_are_compared_with_a_note(scope, measured, tmp_path):
    tree = json.loads((measured[3] / "out.json").read_text())
    tree["results"][0]["model"]["load_in"] = "int4"
    tree["results"][0]["profile"]["decode"]["recent"] = 3
    (tmp_path / "after.json").write_text(json.dumps(tree))
    result = scope("profile", "compare", measured[3] / "out.json", tmp_path / "after.json")
    assert "note: the weights' form was None and is int4" in result.stderr
    assert "note: default slide 16 has other settings than before" in result.stderr


def test_slower_is_a_regression_by_a_threshold_of_its_own(scope, measured, tmp_path):
    tree = json.loads((measured[3] / "out.json").read_text())
    tree["results"][1]["speed"]["decode_tokens_per_s"] *= 0.85
    (tmp_path / "after.json").write_text(json.dumps(tree))
    argv = ["profile", "compare", measured[3] / "out.json", tmp_path / "after.json"]
    assert scope(*argv).code == 1 and scope(*argv, "--speed-threshold", 30).code == 0
    backwards = ["profile", "compare", tmp_path / "after.json", measured[3] / "out.json"]
    assert scope(*backwards).code == 0, "faster is no regression"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "results": [{"label": "x"}]}'])
def test_what_is_no_result_is_refused(scope, measured, tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    result = scope("profile", "compare", measured[3] / "out.json", tmp_path / "bad.json")
    assert (result.code, result.stdout) == (2, "") and "scope profile --json" in result.stderr


def test_results_of_other_lengths_are_not_compared(scope, measured, tmp_path):
    tree = json.loads((measured[3] / "out.json").read_text())
    tree["results"][0]["output_tokens"] = 91
    (tmp_path / "after.json").write_text(json.dumps(tree))
    result = scope("profile", "compare", measured[3] / "out.json", tmp_path / "after.json")
    assert result.code == 2 and "same lengths" in result.stderr


def test_the_workers_error_is_the_commands_error(scope, tiny_folder):
    result = scope(
        "profile", "--model", tiny_folder, "--prompt-tokens", 5, "--max-new-tokens", 5, "--device", "cuda:99"
    )
    assert result.code == 2 and "error: no GPU" in result.stderr and "hint: " in result.stderr
    assert "Traceback" not in result.stderr
