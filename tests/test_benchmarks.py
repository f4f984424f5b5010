"""The scripts of benchmarks/: their commands are commands, their arithmetic and their tables are right."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.pages import parse
from tests.helpers.scripts import BENCHMARKS, ROOT, load

ON_A_CARD = ("llama-3.1-8b", "qwen3-8b", "mistral-7b", "gemma-3-12b")


def run(*argv, **env):
    return subprocess.run(
        [str(part) for part in argv], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env}
    )


def test_every_part_of_the_measurements_is_a_command():
    result = run(sys.executable, BENCHMARKS / "performance.py", "--dry-run", "--threads", "3")
    lines = result.stdout.splitlines()
    assert len(lines) == len(load("performance").PARTS)
    for line in lines:
        params = parse(shlex.split(line.partition(": scope ")[2]))
        assert params["threads"] == 3
        assert Path(params["prompt_file"]).is_file() and Path(params["text"]).is_file()
        first, *_, last = [int(one) for one in f"{params['positions']},{params['positions']}".split(",")]
        assert first >= params["prompt_tokens"] + params["burst"] * (params["rounds"] + 1)
        assert last < 8192


def test_a_part_that_is_not_there_is_told():
    result = run(sys.executable, BENCHMARKS / "performance.py", "nix")
    assert result.returncode == 2 and "no part 'nix'" in result.stderr


def result_of(contenders, **course):
    """What `scope bench --json` writes, as far as a table reads it: contender -> position -> bursts in ms."""
    base = next(iter(contenders.values()))
    lines = [
        {
            "contender": name, "position": at, "step_ms": sorted(ms)[len(ms) // 2], "tokens_per_s": 1.0,
            "ratio": base[at][0] / ms[0], "ratio_least": 0.5, "ratio_most": 9.0, "prefill_ratio": 8.5,
            "share_of_limit": 0.61, "moved_bytes": 0, "held_bytes": 2**20, "decode_peak_bytes": 2**30,
        }
        for name, positions in contenders.items()
        for at, ms in positions.items()
    ]  # fmt: skip
    rows = [
        {
            "name": name,
            "failed": None,
            "positions": [{"position": at, "step_ms": ms} for at, ms in at.items()],
        }
        for name, at in contenders.items()
    ]
    return {"lines": lines, "contenders": rows, "course": {"job": {"model": "m"}}}


def test_the_table_says_what_was_found_and_what_was_not(tmp_path, monkeypatch):
    performance = load("performance")
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    flat = {"slide": {1800: [10.0, 20.0, 10.0], 8000: [11.0, 22.0, 9.0]}}
    (tmp_path / "flat.json").write_text(json.dumps(result_of(flat)))
    far = {
        "dynamic": {5000: [90.0] * 3, 8000: [200.0] * 3},
        "slide": {5000: [30.0] * 3, 8000: [40.0] * 3},
        "full": {5000: [60.0, 30.0, 90.0], 8000: [1.0] * 3},
    }
    (tmp_path / "far-5000.json").write_text(json.dumps(result_of(far)))
    rows = {line.split(" | ")[0].strip("| "): line for line in performance.table().splitlines()}
    assert "| 1.10x (0.90-1.10) |" in rows["ms/token at 8,000 over 1,800, really written"]
    assert "| 3.00x (0.50-9.00) |" in rows["position 5,000 against DynamicCache, same weights"]
    assert "| 2.00x (1.00-3.00) |" in rows["slide, interval 64, against full, position 5,000"]
    assert "| 61% |" in rows["share of the bandwidth limit, one lane, float32"]
    assert "| - |" in rows["slide at every step against full, 5,000"], "that contender is not there"
    assert "| - |" in rows["eight lanes against one, total tokens/s, float32"], "that part was not measured"
    assert "| m | slide | 8,000 |" in performance.lines_table([result_of(far)])


@pytest.mark.parametrize("script", ["gpu.sh", "peers/setup.sh"])
def test_the_shell_scripts_are_shell(script):
    assert run("bash", "-n", BENCHMARKS / script).returncode == 0


def test_the_gpu_script_tests_measures_and_draws():
    result = run(BENCHMARKS / "gpu.sh", "--dry-run", LANES="1 8", POSITIONS="8192", PYTHON="py")
    assert (result.returncode, result.stderr) == (0, "")
    first, *models, last = result.stdout.splitlines()
    assert first == "py -m pytest -q -m gpu"
    assert [shlex.split(line)[2] for line in models] == [f"random:{name}" for name in ON_A_CARD]
    assert all("--lanes 1 8 --positions 8192" in line for line in models)
    assert last.startswith("py benchmarks/gpu.py --table --plot")


def test_the_gpu_table_divides_what_was_measured():
    gpu = load("gpu")
    row = {
        "model": "m", "card": "c", "lanes": 2, "position": 8192, "bandwidth": 1e9, "weight_bytes": 8_000_000,
        "read_bytes": 2_000_000, "held_bytes": 2**30, "writing_peak_bytes": 2**31,
    }  # fmt: skip
    rows = [
        row | {"contender": "slide 512", "step_ms": [20.0, 19.0, 25.0]},
        row | {"contender": "DynamicCache", "step_ms": [50.0]},
        {key: row[key] for key in ("model", "card", "lanes")}
        | {"contender": "full", "position": 8192, "failed": "too large"},
    ]
    _, _, dynamic, full, slide = gpu.table(rows).splitlines()
    assert (
        slide == "| m | 2 | 8,192 | slide 512 | 20.00 (19.00-25.00) | 100 | 50% | 1.00 GiB | 2.0 GiB | 2.50 |"
    )
    assert "failed: too large" in full and dynamic.endswith("| 1.00 |")


def test_the_page_of_the_gpu_has_the_table_of_what_was_measured():
    gpu = load("gpu")
    page = (ROOT / "docs" / "results" / "gpu.md").read_text()
    table = page.partition("<!-- table of gpu.py -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == gpu.table(gpu.rows()).replace("random:", "")


def test_an_unknown_peer_is_told():
    result = run(BENCHMARKS / "peers" / "setup.sh", "vllm")
    assert (result.returncode, result.stdout) == (2, "") and "llamacpp|kvpress" in result.stderr


def test_rows_keep_what_tables_are_made_of(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    profile = {"model": {}, "decode": {"interval": 16, "budget": 64}}
    row = {"profile": profile, "kl": [0.123456789, None], "lags": [{"lag": 1, "by_layer": [0.5]}]}
    slim = {"profile": {"decode": {"interval": 16}}, "kl": [0.123457, None], "lags": [{"lag": 1}]}
    assert load("quality").slim(row) == slim
