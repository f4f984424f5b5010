"""scope generate through the user's door, with a tiny model in a folder."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from scope_cli.engine import fit
from scope_cli.engine.run_plan import RunPlan, make_plan
from scope_cli.errors import ModelError
from scope_cli.models.model import open_model
from scope_cli.models.native_step import NativeStep
from scope_cli.native.library import library
from scope_cli.settings.schema import ModelSettings
from tests.helpers.forked import Piped
from tests.helpers.patience import until
from tests.helpers.plain import load_profile
from tests.helpers.tiny import SHAPE, tiny_tokenizer

PROMPT = "The keeper of the lighthouse wrote every evening, and "


@pytest.fixture
def generate(scope, tiny_folder):
    """`scope generate` with the tiny model, greedy, 40 tokens, whatever the model says about its end."""

    def run(*argv):
        return scope("generate", "--model", tiny_folder, "--ignore-eos", "--max-new-tokens", 40, *argv)

    return run


def test_only_the_text_goes_to_stdout(generate):
    result = generate(PROMPT)
    assert result.code == 0
    assert result.stdout and "tokens" not in result.stdout
    assert "40 tokens" in result.stderr and "audit:" in result.stderr


def test_quiet_says_nothing_beside_the_text(generate):
    loud, quiet = generate(PROMPT), generate(PROMPT, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (loud.stdout, "")


def test_a_prompt_file_standard_input_and_an_argument_are_the_same(generate, tiny_folder, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    from_argument = generate(PROMPT)
    from_file = generate("--prompt-file", tmp_path / "prompt.txt")
    assert from_file.stdout == from_argument.stdout
    for dash in (["-"], ["--prompt-file", "-"]):
        process = Piped(*forty(tiny_folder), *dash, stdin=True)
        stdout, _ = process.communicate(PROMPT.encode())
        assert stdout.decode() == from_argument.stdout


def test_a_small_budget_changes_the_text_and_the_record_says_so(generate, tmp_path):
    out = tmp_path / "out.txt"
    small = generate(PROMPT, "--budget", 8, "--recent", 4, "--interval", 1, "--output", out)
    assert small.stdout != generate(PROMPT).stdout
    record = json.loads((tmp_path / "out.txt.run.json").read_text())
    (end,) = record["results"]
    assert end["reason"] == "length"
    assert end["reading"]["kept_generated"] == 8
    assert end["reading"]["evictions"] == 39 - 8
    assert end["reading"]["moved_bytes"] == 0
    assert end["audit"]["policy_active"] is True
    assert record["profile"]["decode"]["interval"] == 1
    assert record["versions"]["transformers"]


def test_the_output_file_holds_the_text(generate, tmp_path):
    out = tmp_path / "out.txt"
    result = generate(PROMPT, "--output", out)
    assert out.read_bytes().decode() == result.stdout
    again = generate(PROMPT, "--output", out)
    assert again.code == 2 and "--append" in again.stderr and "--force" in again.stderr
    generate(PROMPT, "--output", out, "--append")
    assert out.read_bytes().decode() == result.stdout * 2
    generate(PROMPT, "--output", out, "--force")
    assert out.read_bytes().decode() == result.stdout


@pytest.mark.parametrize("baseline", ["tova", "h2o", "snapkv-decode", "streamingllm"])
def test_the_unified_baselines_forget_parts_of_the_prompt(generate, tmp_path, baseline):
    """StreamingLLM keeps its sinks; all hold the total budget."""
    out = tmp_path / "out.txt"
    argv = ["--profile", f"baselines/{baseline}", "--set", "decode.total_budget=40", "--output", out]
    argv += [] if baseline == "tova" else ["--recent", 16]
    assert generate(PROMPT, *argv).code == 0
    end = json.loads((tmp_path / "out.txt.run.json").read_text())["results"][0]
    assert end["audit"]["policy_active"] and end["reading"]["kept_prompt"] < len(PROMPT)
    assert end["reading"]["kept_prompt"] + end["reading"]["kept_generated"] <= 40


@pytest.mark.parametrize("baseline", ["tova", "h2o", "snapkv-decode", "streamingllm"])
def test_a_prompt_beyond_the_total_budget_and_one_token_are_no_alarm(generate, baseline):
    """Nothing has been evicted yet, and nothing had to be."""
    argv = ["--set", "decode.total_budget=40", "--set", "decode.recent=8", "--max-new-tokens", 1]
    result = generate(PROMPT, "--profile", f"baselines/{baseline}", *argv)
    assert result.code == 0 and "nothing had to be evicted" in result.stderr


def test_an_interval_that_leaves_the_scorer_nothing_to_choose_is_told(generate):
    told = "note: 8 recent tokens and an interval of 16 leave the scorer nothing to choose; interval=4 would"
    small = generate(PROMPT, "--budget", 16, "--interval", 16)
    assert told in small.stderr and "evicted by age alone" in small.stderr
    for argv in (("--interval", 4), (), ("--interval", 16, "--scorer", "recency")):
        result = generate(PROMPT, "--budget", 16, *argv)
        assert "nothing to choose" not in result.stderr
    assert "every 4 tokens" in generate(PROMPT, "--budget", 16).stderr, "what auto makes of it"


def test_a_total_budget_holds_in_a_schedule_that_grows(generate):
    keys = {"decode.protect_prompt": False, "decode.total_budget": 100}
    for strategy in ("adaptive", "discontinuous"):
        argv = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
        argv += ["--strategy", strategy, "--budget", 300, "--recent", 50, "--max-new-tokens", 300]
        result = generate(PROMPT, *argv, "--json")
        assert result.code == 0
        end = json.loads(result.stdout.splitlines()[-1])
        assert end["audit"]["policy_active"] and end["reading"]["kept_generated"] <= 100


def test_a_compressed_prompt_takes_less_memory(generate, tmp_path):
    held = {}
    for method in ("full", "snapkv"):
        out = tmp_path / method
        argv = ["--prefill", method, "--prefill-budget", "40%"] if method == "snapkv" else []
        assert generate(PROMPT * 4, *argv, "--output", out).code == 0
        held[method] = json.loads((tmp_path / f"{method}.run.json").read_text())["results"][0]["reading"]
    assert held["snapkv"]["kept_prompt"] == int(len(PROMPT) * 4 * 0.4)
    assert held["snapkv"]["allocated_bytes"] < 0.7 * held["full"]["allocated_bytes"]


def test_json_is_one_object_per_event(generate):
    plain = generate(PROMPT)
    result = generate(PROMPT, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "started" and kinds[-1] == "finished" and kinds.count("token") == 40
    assert "".join(event.get("text", "") for event in events) == plain.stdout


def test_same_seed_same_text_and_another_seed_another_text(generate):
    sampled = [generate(PROMPT, "--temperature", 1.5, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_stop_text_ends_the_output_before_it(generate):
    text = generate(PROMPT).stdout
    stop = text[10:13]
    result = generate(PROMPT, "--stop", stop)
    assert result.stdout == text[: text.index(stop)]
    assert "stop" in result.stderr


def test_a_loop_is_named_and_ends_the_run_when_asked(scope, tmp_path):
    """A random Gemma with tied embeddings says its last token again and again."""
    config = Gemma3TextConfig(**SHAPE, tie_word_embeddings=True)
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    argv = ["generate", "a", "--model", tmp_path, "--ignore-eos", "--max-new-tokens", 200, "--temperature", 0]
    result = scope(*argv)
    assert "repeats itself: period 1" in result.stderr
    stopped = scope(*argv, "--on-loop", "stop")
    assert result.stdout.startswith(stopped.stdout)
    assert "finish:    loop" in stopped.stderr and "(64 tokens)" in stopped.stderr
    taken = scope(*argv, "--on-loop", "rollback", "--output", tmp_path / "text.txt")
    back = json.loads((tmp_path / "text.txt.run.json").read_text())["results"][0]["taken_back"]
    assert (back[0]["tokens"], back[0]["period"], back[0]["attempt"]) == (63, 1, 1)
    assert taken.stderr.count("took back") == len(back)
    assert f"took back 63 tokens after token {back[0]['n']} (period 1), attempt 1" in taken.stderr
    text = (tmp_path / "text.txt").read_text()
    assert text == taken.stdout and stopped.stdout not in text


def test_the_default_length_is_cut_to_the_context_with_a_note(scope, tiny_folder):
    long_prompt = "a" * 8150
    result = scope("generate", long_prompt, "--model", tiny_folder, "--ignore-eos")
    assert result.code == 0
    assert "cut from 4,096 to 42" in result.stderr and "context" in result.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate"], "there is no prompt"),
        (["generate", "  "], "the prompt is empty"),
        (["generate", "hi", "--prompt-file", "x"], "cannot be combined"),
        (["generate", "--prompt-file", "no/such/file"], "cannot read no/such/file"),
        (["generate", "hi", "--strategy", "slid"], "did you mean slide?"),
        (["generate", "hi", "--scorer", "atention"], "did you mean attention?"),
        (["generate", "hi", "--profile", "slied"], "did you mean slide?"),
        (["generate", "hi", "--set", "decode.bugdet=3"], "did you mean budget?"),
        (["generate", "hi", "--set", "decode"], "is not KEY=VALUE"),
        (["generate", "hi", "--budget", "10", "--recent", "20"], "--recent: is 20"),
        (
            ["generate", "hi", "--strategy", "adaptive", "--set", "sampling.max_new_tokens=null"],
            "max_new_tokens",
        ),
        (["generate", "hi", "--model", "no-such-model", "--offline"], "no-such-model"),
        (["generate", "hi", "--device", "cuda"], "no GPU"),
        (["generate", "hi", "--device", "gpu"], "--device: is 'gpu'"),
        (["generate", "hi", "--output", "no/such/folder/out.txt"], "cannot write"),
        (["generate", "hi", "--load-in", "3bit"], "--load-in: there is no '3bit'"),
        (["generate", "hi", "--threads", "0"], "--threads: is 0"),
        (["generate", "hi", "--threads", "many"], "--threads: is 'many'"),
        (["generate", "hi", "--append", "--force"], "cannot be combined"),
    ],
)
def test_bad_input_is_one_line_and_a_hint_and_code_2(scope, tiny_folder, argv, message):
    if argv != ["generate"] and "--model" not in argv:
        argv = [*argv, "--model", tiny_folder]
    result = scope(*argv)
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr


def test_verbose_says_where_the_time_to_the_first_word_went(scope, tiny_folder):
    argv = ("generate", "hi", "--model", tiny_folder, "--max-new-tokens", 2, "--samples", 2, "--verbose")
    (line,) = [line for line in scope(*argv).stderr.splitlines() if line.startswith("start:")]
    names = re.findall(r"(?:s: |, )([a-z ]+) \d+\.\d\d", line)
    assert names == ["command", "imports", "tokenizer and plan", "weights", "slots", "prompt", "first token"]


def test_verbose_sets_the_run_beside_the_bandwidth(scope, tiny_folder):
    argv = ("generate", "hi", "--model", tiny_folder, "--max-new-tokens", 5, "--ignore-eos")
    quiet, told = scope(*argv), scope(*argv, "--verbose", "--threads", 1, "--load-in", "none")
    assert quiet.stdout == told.stdout and "limit:" not in quiet.stderr
    assert "cpu float32, 1 thread," in told.stderr
    line = next(line for line in told.stderr.splitlines() if line.startswith("limit:"))
    assert " of weights and " in line and "% of the memory's" in line


def test_every_problem_of_a_profile_is_told_at_once(scope, tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "decode: {strategy: slid, bugdet: 3}\nsampling: {top_p: 7, min_new_tokens: 5, max_new_tokens: 4}\n"
    )
    result = scope("generate", "hi", "--profile", profile)
    assert result.code == 2
    for problem in ("decode.strategy", "decode.bugdet", "sampling.top_p", "sampling.min_new_tokens"):
        assert problem in result.stderr


def test_broken_yaml_is_told_with_line_and_column(scope, tmp_path):
    profile = tmp_path / "broken.yaml"
    profile.write_text("decode:\n  budget: [1, 2\n  recent: 3\n")
    result = scope("generate", "hi", "--profile", profile)
    assert result.code == 2 and "line 3, column" in result.stderr


def test_a_prompt_that_is_not_utf8_is_told_with_its_place(scope, tmp_path):
    (tmp_path / "latin1.txt").write_bytes(b"one\ntwo \xe9 three")
    result = scope("generate", "--prompt-file", tmp_path / "latin1.txt")
    assert result.code == 2 and "byte 0xe9 at offset 8, line 2" in result.stderr


def test_lengths_that_exceed_the_context_are_refused(scope, tiny_folder):
    typed = scope("generate", "hi", "--model", tiny_folder, "--max-new-tokens", 9000)
    assert typed.code == 2 and "exceed the model's context of 8,192" in typed.stderr
    prompt = scope("generate", "a" * 9000, "--model", tiny_folder)
    assert prompt.code == 2 and "9,000 tokens" in prompt.stderr


def test_what_weights_take_before_they_are_packed_has_to_fit_too(tiny_folder, monkeypatch):
    opened = open_model(ModelSettings(name=str(tiny_folder), device="cpu", load_in="int4"))
    settings = load_profile("default", {"sampling.max_new_tokens": 2})
    plan = RunPlan.of(settings.profile, [make_plan(settings, opened.geometry, 8)], "cpu")
    packed = replace(opened, weight_bytes=1000, loading_bytes=10**9)
    monkeypatch.setattr("scope_cli.machine.memory.free_bytes", lambda device: 10**9)
    plan.check_fits(packed)
    monkeypatch.setattr("scope_cli.machine.memory.free_bytes", lambda device: 10**9 - 1)
    with pytest.raises(ModelError, match="while it is loaded"):
        plan.check_fits(packed)


def test_the_buffers_that_a_prompt_is_staged_in_have_to_fit_too(tiny_folder, monkeypatch):
    opened = open_model(ModelSettings(name=str(tiny_folder), device="cpu"))
    keys = {"prefill.method": "snapkv", "prefill.budget": 40, "sampling.max_new_tokens": 2}
    settings = load_profile("default", keys)
    plan = make_plan(settings, opened.geometry, 1500)
    run = RunPlan.of(settings.profile, [plan], "cpu")
    staged = plan.prompt.staging_bytes(opened.geometry, 4)
    assert staged > 1500 * opened.geometry.token_bytes(4)
    takes = fit.needs(opened.target, [plan], 1, 2048)
    assert takes.reading >= max(staged, takes.writing)
    needed = opened.weight_bytes + plan.shape.cache_bytes(opened.geometry, 4) + takes.reading
    monkeypatch.setattr("scope_cli.machine.memory.free_bytes", lambda device: needed)
    run.check_fits(opened)
    monkeypatch.setattr("scope_cli.machine.memory.free_bytes", lambda device: needed - 1)
    with pytest.raises(ModelError, match="not enough memory"):
        run.check_fits(opened)


def test_too_little_memory_is_told_before_loading(scope, tiny_folder, monkeypatch):
    monkeypatch.setattr("scope_cli.machine.memory.free_bytes", lambda device: 1000)
    monkeypatch.setattr(
        "scope_cli.models.model.OpenedModel.load", lambda self: pytest.fail("weights were loaded")
    )
    result = scope("generate", "hi", "--model", tiny_folder)
    assert result.code == 2 and "1000 B free" in result.stderr


def test_a_failed_audit_ends_with_code_5_and_keeps_the_text(generate, tmp_path, monkeypatch):
    monkeypatch.setattr("scope_cli.policies.schedule.Schedule.excess", lambda self, n, held: 0)
    monkeypatch.setattr("scope_cli.policies.schedule.Schedule.most_held", property(lambda self: self.planned))
    out = tmp_path / "out.txt"
    result = generate(PROMPT, "--budget", 8, "--recent", 4, "--output", out)
    assert result.code == 5 and "audit" in result.stderr
    assert out.read_bytes().decode() == result.stdout != ""
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["results"][0]["audit"]["problems"]


def long_run(tiny_folder, *argv, **more):
    return Piped(
        "generate",
        PROMPT,
        "--model",
        tiny_folder,
        "--ignore-eos",
        "--max-new-tokens",
        8000,
        "--budget",
        64,
        "--recent",
        16,
        "--compile",
        "off",
        *argv,
        **more,
    )


def wait_for_text(path, size=100):
    until(lambda: path.exists() and path.stat().st_size > size, "text")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_run_with_text_and_record_complete(tiny_folder, tmp_path, number, code):
    out = tmp_path / "out.txt"
    process = long_run(tiny_folder, "--output", out)
    wait_for_text(out)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == code
    assert stdout == out.read_bytes()
    assert b"Traceback" not in stderr and b"interrupted" in stderr
    record = json.loads((tmp_path / "out.txt.run.json").read_text())
    assert (record["status"], record["results"][0]["reason"]) == ("interrupted", "interrupted")
    assert b"audit:" in stderr and b"ending after this step" in stderr


def test_a_run_under_nohup_hears_no_hangup(tiny_folder, tmp_path):
    out = tmp_path / "out.txt"
    process = long_run(tiny_folder, "--output", out, ignores=(signal.SIGHUP,))
    wait_for_text(out)
    process.send_signal(signal.SIGHUP)
    wait_for_text(out, out.stat().st_size + 50)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143


def test_an_output_that_another_run_writes_is_refused(generate, tiny_folder, tmp_path):
    out = tmp_path / "out.txt"
    first = long_run(tiny_folder, "--output", out)
    try:
        wait_for_text(out)
        for mode in ("--append", "--force"):
            second = generate(PROMPT, "--output", out, mode)
            assert (second.code, second.stdout) == (3, "")
            assert f"cannot write {out}: another run is writing it" in second.stderr
    finally:
        first.kill()
        text, _ = first.communicate()
    assert out.read_bytes().startswith(text), "nobody else wrote into it"
    assert generate(PROMPT, "--output", out, "--append").code == 0, "a killed run leaves no lock"


def test_sigkill_keeps_the_words_in_valid_utf8(tiny_folder, tmp_path):
    out = tmp_path / "out.txt"
    process = long_run(tiny_folder, "--output", out)
    seen = b""
    while len(seen) < 200:
        seen += process.stdout.read1(64)
    process.kill()
    process.communicate()
    kept = out.read_bytes()
    assert kept.startswith(seen)
    kept.decode("utf-8")
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["status"] == "running"


def test_a_broken_pipe_ends_quietly_with_the_record_complete(tiny_folder, tmp_path):
    out = tmp_path / "out.txt"
    process = long_run(tiny_folder, "--output", out, "--quiet")
    process.stdout.read1(64)
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["results"][0]["reason"] == "interrupted"


def test_several_prompts_and_samples_are_written_side_by_side(generate, tmp_path):
    for name, text in (("a.txt", PROMPT), ("b.txt", PROMPT + "slept ")):
        (tmp_path / name).write_text(text)
    files = ("--prompt-file", tmp_path / "a.txt", "--prompt-file", tmp_path / "b.txt")
    sampled = ("--temperature", 1.2, "--seed", 5)
    both = generate(*files, "--samples", 2, *sampled, "--output", tmp_path / "out.txt", "--lanes", 3)
    assert both.code == 0, both.stderr
    texts = [(tmp_path / f"out-{number}.txt").read_bytes().decode() for number in (1, 2, 3, 4)]
    assert both.stdout == "\n\n".join(texts)
    assert len(set(texts)) == 4
    records = [json.loads((tmp_path / f"out-{number}.txt.run.json").read_text()) for number in (1, 2, 3, 4)]
    assert [record["seeds"] for record in records] == [[5], [6], [5], [6]]
    assert all(record["status"] == "finished" and len(record["results"]) == 1 for record in records)
    assert "output 4 of 4" in both.stderr
    again = generate(*files, "--samples", 2, *sampled, "--output", tmp_path / "out.txt")
    assert again.code == 2 and "out-1.txt" in again.stderr


def test_what_several_prompts_have_in_common_is_read_once_and_changes_no_text(
    generate, tmp_path, monkeypatch
):
    from scope_cli.engine.beginning import Beginnings

    for name in "ab":
        (tmp_path / name).write_text("What the keeper wrote. " * 4 + name)
    argv = ["-f", tmp_path / "a", "-f", tmp_path / "b", "--temperature", 1.2, "--ignore-eos"]
    assert generate(*argv, "--output", tmp_path / "copied.txt").code == 0
    monkeypatch.setattr(Beginnings, "of", lambda self, prompt_ids: None)
    assert generate(*argv, "--output", tmp_path / "read.txt").code == 0
    for number, reused in ((1, 0), (2, 64)):
        copied, read = (tmp_path / f"{name}-{number}.txt" for name in ("copied", "read"))
        assert copied.read_bytes() == read.read_bytes()
        ends = [
            json.loads((tmp_path / f"{text.name}.run.json").read_text())["results"][0]
            for text in (copied, read)
        ]
        assert [end["reused_prompt_tokens"] for end in ends] == [reused, 0]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--prompt-file", "-", "--prompt-file", "-"], "standard input can be read once"),
        (["a", "--samples", "0"], "--samples"),
        ([PROMPT, "-n", "2", "--lanes", "2", "--prefill", "snapkv", "--prefill-budget", "8",
          "--set", "prefill.wrap=[adakv]", "--set", "prefill.window=4"], "one lane at a time"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_side_by_side_is_told(generate, argv, told):
    result = generate(*argv)
    assert (result.code, result.stdout) == (2, "")
    assert told in result.stderr


def test_the_limit_of_several_outputs_is_told_once_and_counts_every_lane(generate):
    lines = []
    for samples in (1, 3):
        told = generate(PROMPT, "--verbose", "--samples", samples).stderr.splitlines()
        (line,) = [line for line in told if line.startswith("limit:")]
        lines.append(line.partition(" of weights and ")[2].split(" of cache")[0])
    one, three = (float(line.removesuffix(" KiB")) for line in lines)
    assert three == pytest.approx(3 * one, rel=0.01)


def test_eight_outputs_at_once_take_the_dtype_for_eight_lanes(generate, monkeypatch):
    monkeypatch.setattr("scope_cli.models.choices.has_amx", lambda: True)
    assert "cpu bfloat16" in generate(PROMPT, "--samples", 8).stderr
    assert "cpu float32" in generate(PROMPT, "--samples", 8, "--lanes", 7).stderr


def test_a_dash_is_no_output_file(scope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-", "./-"):
        result = scope("generate", "hi", "--output", name)
        assert (result.code, result.stdout) == (2, "")
        assert "stdout" in result.stderr and not list(tmp_path.iterdir())


def forty(tiny_folder):
    """The words for 40 tokens."""
    return ["generate", "--model", tiny_folder, "--ignore-eos", "--max-new-tokens", 40]


def in_a_shell(redirections, tiny_folder, *argv):
    """`scope generate PROMPT ... REDIRECTIONS` as a shell starts it."""
    words = [sys.executable, "-m", "scope_cli", *forty(tiny_folder), *argv]
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirections}; exit ${{PIPESTATUS[0]}}', "bash", *map(str, words)],
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_a_closed_stdout_is_told_before_the_model_is_loaded(tiny_folder):
    ran = in_a_shell(">&-", tiny_folder, PROMPT)
    assert ran.returncode == 1 and ran.stdout == b""
    assert ran.stderr.splitlines() == [b"error: standard output is closed", b"hint: --output FILE needs none"]


def test_with_an_output_file_stdout_may_be_closed(generate, tiny_folder, tmp_path):
    out = tmp_path / "out.txt"
    ran = in_a_shell(">&- 2>&- <&-", tiny_folder, PROMPT, "--output", out)
    assert ran.returncode == 0
    assert out.read_bytes().decode() == generate(PROMPT).stdout
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["status"] == "finished"


def test_a_full_stdout_ends_the_run_unless_the_text_goes_to_a_file_too(generate, tiny_folder, tmp_path):
    out = tmp_path / "out.txt"
    for argv in ([], ["--output", out], ["--json"]):
        process = Piped(*forty(tiny_folder), PROMPT, *argv, stdout="/dev/full")
        _, stderr = process.communicate()
        assert process.returncode == 1 and b"Traceback" not in stderr
        assert b"error: cannot write to standard output: No space left on device" in stderr
    assert out.read_bytes().decode() == generate(PROMPT).stdout
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["status"] == "finished"


def test_a_full_disk_for_the_stats_takes_nothing_from_the_run(generate):
    plain, ran = generate(PROMPT), generate(PROMPT, "--stats-file", "/dev/full")
    assert (ran.code, ran.stdout) == (1, plain.stdout)
    assert "error: --stats-file: cannot continue writing /dev/full: No space left" in ran.stderr
    assert "audit:" in ran.stderr


def test_a_closed_stdin_is_a_sentence(tiny_folder):
    for dash in (["-"], ["--prompt-file", "-"]):
        ran = in_a_shell("<&-", tiny_folder, *dash)
        assert (ran.returncode, ran.stdout) == (2, b"") and b"Traceback" not in ran.stderr
        assert b"error: standard input is closed" in ran.stderr


@pytest.mark.parametrize("argv", [[], ["--json"]])
def test_a_reader_of_both_streams_that_leaves_is_141(tiny_folder, argv):
    ran = in_a_shell("2>&1 | head -c 5", tiny_folder, PROMPT, "--max-new-tokens", 900, *argv)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize(
    "argv", [[b"caf\xe9"], [b"hi", b"--system", b"caf\xe9"], [b"hi", b"--stop", b"caf\xe9"],
             [b"hi", b"--set", b"prompt.system=caf\xe9"]]
)  # fmt: skip
def test_an_argument_that_is_not_utf8_is_a_sentence(tiny_folder, argv):
    ran = subprocess.run(
        [sys.executable, "-m", "scope_cli", "generate", "--model", str(tiny_folder), *argv],
        capture_output=True,
    )
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert b"is not UTF-8: byte 0xe9 at offset " in ran.stderr and b"Traceback" not in ran.stderr


def test_a_prompt_is_piped_in_without_a_dash(generate, tiny_folder):
    process = Piped(*forty(tiny_folder), "-q", stdin=True)
    stdout, _ = process.communicate(PROMPT.encode())
    assert stdout.decode() == generate(PROMPT).stdout


def test_the_text_ends_its_line_where_the_summary_follows_in_one_place(generate, tiny_folder):
    text = generate(PROMPT).stdout
    stdout, _ = Piped(*forty(tiny_folder), PROMPT, merged=True).communicate()
    assert f"\n{text}\nprompt:  ".encode() in stdout
    quiet, _ = Piped(*forty(tiny_folder), PROMPT, "--quiet", merged=True).communicate()
    assert quiet.decode() == text


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_ends_in_the_middle_is_a_sentence_and_keeps_the_text(
    generate, tmp_path, monkeypatch, error
):
    whole, out = generate(PROMPT).stdout, tmp_path / "out.txt"
    step, steps = NativeStep.__call__, []

    def ends(self, ids):
        steps.append(ids)
        if len(steps) == 20:
            raise error
        return step(self, ids)

    monkeypatch.setattr(NativeStep, "__call__", ends)
    result = generate(PROMPT, "--output", out)
    assert result.code == 1 and "Traceback" not in result.stderr
    (told,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert told.startswith("error: memory ran out")
    assert "--budget" in result.stderr and "--load-in" in result.stderr and "--lanes" in result.stderr
    assert out.read_bytes().decode() == result.stdout and whole.startswith(result.stdout) and result.stdout
    record = json.loads((tmp_path / "out.txt.run.json").read_text())
    assert record["status"] == "failed" and record["results"][0]["error"].startswith("memory ran out")


def test_a_bug_in_the_middle_keeps_the_text_and_the_record_says_failed(generate, tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path))
    step, steps = NativeStep.__call__, iter(range(30))
    monkeypatch.setattr(
        NativeStep, "__call__", lambda self, ids: step(self, ids) if next(steps, None) is not None else 1 / 0
    )
    result = generate(PROMPT, "--output", tmp_path / "out.txt")
    assert result.code == 1 and "error: unexpected ZeroDivisionError" in result.stderr
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["status"] == "failed"
    assert (tmp_path / "out.txt").read_bytes().decode() == result.stdout != ""


def test_the_record_says_where_a_text_comes_from_and_what_it_depends_on(generate, tiny_folder, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    digest = sha256(PROMPT.encode()).hexdigest()
    prompts = {
        "typed": ([PROMPT], {"sha256": digest, "text": PROMPT}),
        "read": (
            ["--prompt-file", tmp_path / "prompt.txt"],
            {"sha256": digest, "file": str(tmp_path / "prompt.txt")},
        ),
    }
    for name, (argv, prompt) in prompts.items():
        assert generate(*argv, "--output", tmp_path / name, "--threads", 1).code == 0
        record = json.loads((tmp_path / f"{name}.run.json").read_text())
        assert record["prompt"] == prompt
        assert record["command"][:4] == ["scope", "generate", "--model", str(tiny_folder)]
        assert record["command"][-2:] == ["--threads", "1"]
        told = record["depends_on"]
        assert (told["device"], told["dtype"], told["weights"]) == ("cpu", "float32", "plain")
        assert (told["compiled"], told["lanes"], told["threads"]) == (False, 1, 1)
        assert told["processor"] and told["instructions"]
        assert told["native"] == (known.instructions if (known := library()) else None)


def test_a_run_that_is_interrupted_while_it_reads_says_how_far_it_came(generate, tmp_path, monkeypatch):
    asked = iter([False])  # before it begins to read, and then after each chunk
    monkeypatch.setattr("scope_cli.console.signals.Interruption.__call__", lambda self: next(asked, True))
    out = tmp_path / "out.txt"
    result = generate(PROMPT * 4, "--set", "prefill.chunk=64", "--output", out)
    assert f"64 of {len(PROMPT) * 4} tokens in" in result.stderr
    (end,) = json.loads((tmp_path / "out.txt.run.json").read_text())["results"]
    assert (end["read_tokens"], end["prompt_tokens"]) == (64, len(PROMPT) * 4)


def test_a_prompt_that_samples_share_is_read_once_and_said_to_be(generate):
    told = generate(PROMPT, "--samples", 3).stderr.splitlines()
    assert sum("tokens, read once for all samples" in line for line in told) == 2


def test_what_is_going_on_is_said_from_the_start(generate, tiny_folder):
    loud = generate(PROMPT).stderr.splitlines()
    assert loud[0] == f"loading {tiny_folder} ..." and loud[1].startswith("reading the weights, ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--append"], "--append needs --output"),
        (["--force"], "--force needs --output"),
        (["--quiet", "--verbose"], "--quiet and --verbose cannot be combined"),
    ],
)
def test_options_that_would_do_nothing_are_refused(generate, argv, message):
    result = generate(PROMPT, *argv)
    assert (result.code, result.stdout) == (2, "") and message in result.stderr


def test_notes_say_what_does_nothing_and_what_may_be_meant(generate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    argv = [
        "notes.txt",
        "--lanes",
        5,
        "--strategy",
        "full",
        "--budget",
        9,
        "--temperature",
        0,
        "--samples",
        2,
    ]
    notes = [line for line in generate(*argv).stderr.splitlines() if line.startswith("note: ")]
    parts = [
        "--budget has no effect: strategy full",
        "--lanes 5 has no effect beyond 2",
        "will be the same",
        "--prompt-file notes.txt reads the file",
    ]
    for part in parts:
        assert sum(part in note for note in notes) == 1
    assert generate(*argv, "--quiet").stderr == ""


def test_compiling_where_nothing_is_compiled_is_told(scope, tiny_folder):
    argv = (
        "generate",
        "hi",
        "--model",
        tiny_folder,
        "--device",
        "cpu",
        "--max-new-tokens",
        2,
        "--ignore-eos",
    )
    for wish, told in (("on", True), ("auto", False)):
        assert ("model.compile=on has no effect" in scope(*argv, "--compile", wish).stderr) is told
