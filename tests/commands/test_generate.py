"""scope generate through the user's door, with a tiny model in a folder."""

import json
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from scope_cli.commands.generate import check_memory
from scope_cli.errors import ModelError
from scope_cli.generate import make_plan
from scope_cli.model import open_model
from scope_cli.profile import ModelSettings, load_profile
from tests.conftest import scope_process
from tests.tiny import SHAPE, tiny_tokenizer

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
        process = scope_process(
            "generate",
            *dash,
            "--model",
            tiny_folder,
            "--ignore-eos",
            "--max-new-tokens",
            40,
            stdin=subprocess.PIPE,
        )
        stdout, _ = process.communicate(PROMPT.encode(), timeout=60)
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


def test_a_total_budget_holds_in_a_schedule_that_grows(generate):
    keys = {"decode.protect_prompt": False, "decode.total_budget": 100, "decode.interval": 1}
    for strategy in ("adaptive", "discontinuous"):
        argv = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
        argv += ["--strategy", strategy, "--budget", 300, "--recent", 50, "--max-new-tokens", 300]
        argv += ["--interval", "auto"]
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
    stopped = scope(*argv, "--stop-on-loop")
    assert result.stdout.startswith(stopped.stdout)
    assert "finish:    loop" in stopped.stderr and "(64 tokens)" in stopped.stderr


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
        (["generate", "hi", "--prompt-file", "x"], "exclude each other"),
        (["generate", "--prompt-file", "no/such/file"], "cannot read no/such/file"),
        (["generate", "hi", "--strategy", "slid"], "did you mean slide?"),
        (["generate", "hi", "--scorer", "atention"], "did you mean attention?"),
        (["generate", "hi", "--profile", "slied"], "did you mean slide?"),
        (["generate", "hi", "--set", "decode.bugdet=3"], "did you mean budget?"),
        (["generate", "hi", "--set", "decode"], "is not KEY=VALUE"),
        (["generate", "hi", "--budget", "10", "--recent", "20"], "decode.recent"),
        (
            ["generate", "hi", "--strategy", "adaptive", "--set", "sampling.max_new_tokens=null"],
            "max_new_tokens",
        ),
        (["generate", "hi", "--model", "no-such-model", "--offline"], "no-such-model"),
        (["generate", "hi", "--device", "cuda"], "no GPU"),
        (["generate", "hi", "--device", "gpu"], "model.device"),
        (["generate", "hi", "--output", "no/such/folder/out.txt"], "cannot write"),
        (["generate", "hi", "--load-in", "3bit"], "model.load_in"),
        (["generate", "hi", "--threads", "0"], "model.threads"),
        (["generate", "hi", "--threads", "many"], "model.threads"),
        (["generate", "hi", "--append", "--force"], "exclude each other"),
    ],
)
def test_bad_input_is_one_line_and_a_hint_and_code_2(scope, tiny_folder, argv, message):
    if argv != ["generate"] and "--model" not in argv:
        argv = [*argv, "--model", tiny_folder]
    result = scope(*argv)
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr


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
    plan = make_plan(load_profile("default", {"sampling.max_new_tokens": 2}), opened.geometry, 8)
    packed = replace(opened, weight_bytes=1000, loading_bytes=10**9)
    monkeypatch.setattr("scope_cli.memory.free_bytes", lambda device: 10**9)
    check_memory(packed, [plan], 1)
    monkeypatch.setattr("scope_cli.memory.free_bytes", lambda device: 10**9 - 1)
    with pytest.raises(ModelError, match="while it is loaded"):
        check_memory(packed, [plan], 1)


def test_too_little_memory_is_told_before_loading(scope, tiny_folder, monkeypatch):
    monkeypatch.setattr("scope_cli.memory.free_bytes", lambda device: 1000)
    monkeypatch.setattr("scope_cli.model.OpenedModel.load", lambda self: pytest.fail("weights were loaded"))
    result = scope("generate", "hi", "--model", tiny_folder)
    assert result.code == 2 and "1000 B free" in result.stderr


def test_a_failed_audit_ends_with_code_5_and_keeps_the_text(generate, tmp_path, monkeypatch):
    monkeypatch.setattr("scope_cli.schedule.Schedule.excess", lambda self, n, held: 0)
    monkeypatch.setattr("scope_cli.schedule.Schedule.most_held", property(lambda self: self.planned))
    out = tmp_path / "out.txt"
    result = generate(PROMPT, "--budget", 8, "--recent", 4, "--output", out)
    assert result.code == 5 and "audit" in result.stderr
    assert out.read_bytes().decode() == result.stdout != ""
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["results"][0]["audit"]["problems"]


def long_run(tiny_folder, *argv):
    return scope_process(
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
        *argv,
    )


def wait_for_text(path, size=100):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_size > size:
            return
        time.sleep(0.02)
    pytest.fail("no text came")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_text_and_record_complete(tiny_folder, tmp_path, number, code):
    out = tmp_path / "out.txt"
    process = long_run(tiny_folder, "--output", out)
    wait_for_text(out)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stdout == out.read_bytes()
    assert b"Traceback" not in stderr and b"interrupted" in stderr
    record = json.loads((tmp_path / "out.txt.run.json").read_text())
    assert (record["status"], record["results"][0]["reason"]) == ("finished", "interrupted")


def test_sigkill_keeps_the_words_in_valid_utf8(tiny_folder, tmp_path):
    out = tmp_path / "out.txt"
    process = long_run(tiny_folder, "--output", out)
    seen = b""
    while len(seen) < 200:
        seen += process.stdout.read1(64)
    process.kill()
    process.communicate(timeout=60)
    kept = out.read_bytes()
    assert kept.startswith(seen)
    kept.decode("utf-8")
    assert json.loads((tmp_path / "out.txt.run.json").read_text())["status"] == "running"


def test_a_broken_pipe_ends_quietly_with_the_record_complete(tiny_folder, tmp_path):
    out = tmp_path / "out.txt"
    process = long_run(tiny_folder, "--output", out, "--quiet")
    process.stdout.read1(64)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
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
    monkeypatch.setattr("scope_cli.model.bfloat16_is_fast", lambda: True)
    assert "cpu bfloat16" in generate(PROMPT, "--samples", 8).stderr
    assert "cpu float32" in generate(PROMPT, "--samples", 8, "--lanes", 7).stderr


def test_a_dash_is_no_output_file(scope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-", "./-"):
        result = scope("generate", "hi", "--output", name)
        assert (result.code, result.stdout) == (2, "")
        assert "stdout" in result.stderr and not list(tmp_path.iterdir())
