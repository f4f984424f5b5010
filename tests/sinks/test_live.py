"""--stats-file and --metrics-port: what they say of a run, while it goes on and at its end."""

import json
import urllib.request
from dataclasses import replace

import pytest

from scope_cli.events import PromptRead, Token
from scope_cli.sinks import meter as meter_module
from scope_cli.sinks import statsfile
from scope_cli.sinks.meter import Meter
from scope_cli.sinks.metrics import Metrics
from scope_cli.sinks.statsfile import StatsFile
from tests.helpers.patience import PATIENCE_S, until
from tests.helpers.readings import READING


def reading(**changes):
    return replace(READING, **changes)


def token(n):
    return Token(0, n, 7, "x", -1.0, n / 10, reading(kept_generated=n, evictions=n // 4))


def read(prompt_tokens=30):
    return PromptRead(0, prompt_tokens, 0.5, 1000, reading())


def scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_a_meter_counts_over_prompts_and_lanes():
    meter = Meter()
    for event in (read(30), read(12), token(1), token(2), token(1)):
        meter.receive(event)
    now = meter.snapshot()
    assert (now["prompt_tokens"], now["output_tokens"], now["phase"]) == (42, 3, "output")
    assert now["tokens_per_s"] > 0 and now["resident_bytes"] > 2**20
    assert now["kept_generated"] == 1, "the newest reading"


def test_a_rate_is_that_of_the_last_seconds(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(meter_module, "monotonic", lambda: clock[0])
    meter = Meter()
    for n in range(1, 11):
        clock[0] += 1
        meter.receive(token(n))
    assert meter.snapshot()["tokens_per_s"] == pytest.approx(6 / 5)  # at 105, 106, ... 110
    clock[0] += 60
    assert meter.snapshot()["tokens_per_s"] == 0


def test_the_stats_file_gets_a_line_every_second_and_one_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(statsfile, "EVERY_S", 0.05)
    path = tmp_path / "stats.jsonl"
    path.write_text('{"from": "an earlier run"}\n')
    sink = StatsFile(path)
    sink.receive(read())
    until(lambda: len(path.read_text().splitlines()) > 4, "lines")
    sink.receive(token(1))
    sink.close()
    earlier, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert earlier == {"from": "an earlier run"}
    assert len(lines) >= 4, "written while nothing happened, too"
    assert lines[-1]["output_tokens"] == 1 and lines[-2]["output_tokens"] == 0
    assert lines[-1]["held_bytes"] == reading().held_bytes


def test_metrics_are_served_until_the_end_and_count_up():
    sink = Metrics(0)
    try:
        sink.receive(read())
        before = scraped(sink.port)
        sink.receive(token(1))
        after = scraped(sink.port)
    finally:
        sink.close()
    assert float(before["scope_output_tokens_total"]) == 0 and float(after["scope_output_tokens_total"]) == 1
    assert float(after["scope_prompt_tokens_total"]) == 30
    assert float(after["scope_held_bytes"]) == reading().held_bytes
    assert any(key.startswith("scope_run_info{") and 'phase="output"' in key for key in after)
    with pytest.raises(OSError):
        scraped(sink.port)


def test_generate_writes_stats_and_leaves_stdout_alone(scope, tiny_folder, tmp_path):
    argv = [
        "generate",
        "a lighthouse",
        "--model",
        tiny_folder,
        "--ignore-eos",
        "--max-new-tokens",
        30,
        "--seed",
        3,
    ]
    plain = scope(*argv)
    live = scope(*argv, "--stats-file", tmp_path / "stats.jsonl", "--metrics-port", 0)
    assert (live.code, live.stdout) == (0, plain.stdout)
    assert "metrics on http://127.0.0.1:" in live.stderr and "metrics on" not in plain.stderr
    last = json.loads((tmp_path / "stats.jsonl").read_text().splitlines()[-1])
    assert (last["output_tokens"], last["phase"], last["finished"]) == (30, "finished", 1)


def test_a_port_that_is_taken_is_bad_input(scope, tiny_folder):
    sink = Metrics(0)
    try:
        result = scope("generate", "hi", "--model", tiny_folder, "--metrics-port", sink.port)
    finally:
        sink.close()
    assert result.code == 2 and f"cannot listen on 127.0.0.1:{sink.port}" in result.stderr
    assert "hint:" in result.stderr and "Traceback" not in result.stderr


def test_a_stats_file_in_no_folder_is_bad_input(scope, tiny_folder, tmp_path):
    result = scope("generate", "hi", "--model", tiny_folder, "--stats-file", tmp_path / "no" / "stats.jsonl")
    assert result.code == 2 and "--stats-file: cannot write" in result.stderr


def test_an_address_without_a_port_is_bad_input(scope, tiny_folder):
    result = scope("generate", "hi", "--model", tiny_folder, "--metrics-address", "0.0.0.0")
    assert result.code == 2 and "needs --metrics-port" in result.stderr
