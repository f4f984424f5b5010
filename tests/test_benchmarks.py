"""The scripts of benchmarks/: their commands are commands, their arithmetic and their tables are right."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scope_cli.measure.bench.protocol import Job
from scope_cli.measure.child import NoAnswer
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


def result_of(contenders, reads=(0.0, 0.0)):
    """What `scope bench` saves, as far as a table reads it: contender -> position -> bursts in ms."""
    rows = [
        {
            "name": name,
            "policy": f"{name}, as it is",
            "failed": None if at else "no such device",
            "positions": [{"position": where, "step_ms": ms, "read_s": [*reads]} for where, ms in at.items()],
        }
        for name, at in contenders.items()
    ]
    lines = [{"contender": "scope", "share_of_limit": 0.61, "moved_bytes": 0}]
    course = {"job": {"prompt_tokens": 1000}, "positions": [1000, 5000]}
    machine = {"processor": "a processor", "cores": 2}
    return {"lines": lines, "contenders": rows, "course": course, "machine": machine}


@pytest.fixture
def performance(tmp_path, monkeypatch):
    """The script, with no result yet."""
    script = load("performance")
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    return script


def rows_of(table):
    return {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}


def test_the_table_has_everybody_and_the_ratio_to_the_best_in_the_same_round(performance, tmp_path):
    near = {
        "scope": {1000: [10.0, 20.0, 10.0]},
        "whole": {1000: [1.0] * 3},
        "llama.cpp": {1000: [40.0] * 3},
        "OpenVINO": {1000: [30.0, 20.0, 30.0]},
        "onnxruntime": {},
    }
    found = result_of(near)
    (tmp_path / "at-1000.json").write_text(json.dumps(found))
    rows = rows_of(performance.contest_table())
    measured = "| 10.0 | 40.0 | 30.0 | - | 3.00x (1.00-3.00); (4.00x) | 1.8x (2.3x) |"
    assert rows["position 1,000"].endswith(measured), "who failed is not the best"
    assert "| - | - | - | - | - | 6x (10x) |" in rows["position 8,000, budget 512"]
    found["contenders"][3] |= {"failed": "died", "positions": [{"position": 1000, "step_ms": [1.0]}]}
    (tmp_path / "at-1000.json").write_text(json.dumps(found))
    row = rows_of(performance.contest_table())["position 1,000"]
    assert "| 40.0 | - | - | 4.00x (2.00-4.00); (4.00x) |" in row, "nor is who died on the way"


def test_the_contests_are_held_as_without_avx512_too(performance, tmp_path):
    """Same parts, same rows, results of their own."""
    result = run(sys.executable, BENCHMARKS / "performance.py", "--dry-run", "--isa", "avx2")
    parts = {line.partition(":")[0] for line in result.stdout.splitlines()}
    assert parts == {contest.part for contest in performance.CONTESTS}
    assert all("/avx2/" in line for line in result.stdout.splitlines())
    (tmp_path / "avx2").mkdir()
    (tmp_path / "avx2" / "lanes.json").write_text(
        json.dumps(result_of({"scope": {1300: [2.0]}, "OpenVINO": {1300: [3.0]}}))
    )
    row = "eight lanes, position 1,300"
    assert "| 2.0 | - | 3.0 | - | 1.50x" in rows_of(performance.contest_table("avx2"))[row]
    assert "| - | - | - | - | - |" in rows_of(performance.contest_table())[row]


def test_a_copy_without_avx512_leaves_the_original_alone(tmp_path, monkeypatch):
    """And bytes that look like the instruction and are none."""
    script = load("peers/as_avx2")
    monkeypatch.setattr(script, "offsets", lambda library: [5])
    original, copy = tmp_path / "a.so", tmp_path / "copy.so"
    original.write_bytes(b"..\x0f\x01\xd0\x0f\x01\xd0.")
    copy.hardlink_to(original)
    assert script.patch(copy) == 1
    assert copy.read_bytes() == b"..\x0f\x01\xd0\xb0\x07\x90."
    assert original.read_bytes() == b"..\x0f\x01\xd0\x0f\x01\xd0."
    monkeypatch.setattr(script, "offsets", lambda library: [3])
    with pytest.raises(AssertionError, match="no xgetbv at 0x3"):
        script.patch(copy)


def test_a_prompt_that_is_read_first_is_not_counted(performance):
    result = result_of({"scope": {1502: [1.0], 1503: [1.0]}}, reads=(9.0,))
    result["contenders"][0]["positions"][1]["read_s"] = [0.5]
    assert performance.bursts(result, "scope", None) == [0.5], "ms a token: 0.5 s for 1,000 of them"


def test_our_own_promises_are_divided_round_by_round(performance, tmp_path):
    flat = result_of({"scope": {1800: [10.0, 20.0, 10.0], 8000: [11.0, 22.0, 9.0]}})
    (tmp_path / "flat.json").write_text(json.dumps(flat))
    (tmp_path / "at-1000.json").write_text(json.dumps(result_of({"scope": {}})))
    (tmp_path / "kvpress.json").write_text(json.dumps(result_of({"scope": {2500: [1.0]}})))
    rows = rows_of(performance.claim_table())
    assert "| 1.10x (0.90-1.10) |" in rows["ms a token at 8,000 over 1,800, really written"]
    assert "| 61% |" in rows["share of the bandwidth limit, position 1,000"]
    kvpress = "position 2,500 against kvpress 0.5.5 DecodingPress, same weights"
    assert "| - |" in rows[kvpress], "that contender failed"


def test_every_option_of_a_peer_is_a_row(performance, tmp_path):
    found = result_of({"OpenVINO-u8": {1000: [3.0, 1.0, 2.0]}, "broken": {}})
    (tmp_path / "others.json").write_text(json.dumps(found))
    rows = rows_of(performance.others_table())
    assert rows["OpenVINO-u8: OpenVINO-u8, as it is"].endswith("| 2.0 | - |")
    assert rows["broken: broken, as it is"].endswith("| no such device | no such device |")


def test_the_page_has_the_tables_of_what_was_measured():
    performance = load("performance")
    page = performance.PAGE.read_text()
    assert performance.filled(page) == page, "python benchmarks/performance.py --write"


def test_a_command_in_the_page_is_run_and_its_figures_put_below_it(tmp_path, monkeypatch):
    fill = load("fill")
    page = tmp_path / "page.md"
    block = "<!-- fill: {} -->\nas it was\n<!-- end -->\n"
    page.write_text("before\n" + block.format("echo '| a |'") + block.format("echo words") + "after\n")
    monkeypatch.setattr(fill, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["fill.py", "words"])
    fill.main()
    before, table, words = page.read_text().split("<!-- fill")
    assert table.endswith("as it was\n<!-- end -->\n"), "the other command was not run"
    assert words.startswith(": echo words -->\n\n    echo words\n\n    words\n\nMeasured on: ")
    assert before == "before\n" and words.endswith(".\n<!-- end -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["fill.py", "a |"])
    fill.main()
    assert "echo '| a |'\n\n| a |\n\nMeasured on" in page.read_text()
    measured = page.read_text()
    monkeypatch.setattr(fill, "run", lambda command: "7 ms")
    fill.main()
    assert page.read_text() == measured.replace("\n| a |\n", "\n    7 ms\n"), "put in the same place again"


def test_the_commands_in_the_page_of_performance_are_scripts():
    fill = load("fill")
    commands = [command for _, command, _ in fill.BLOCK.findall(fill.PAGE.read_text())]
    scripts = {word for command in commands for word in command.split() if word.endswith(".py")}
    assert len(commands) == len(set(commands)) >= 8 and all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("script", ["gpu.sh", "peers/setup.sh"])
def test_the_shell_scripts_are_shell(script):
    assert run("bash", "-n", BENCHMARKS / script).returncode == 0


def test_the_gpu_script_tests_measures_and_draws():
    result = run(BENCHMARKS / "gpu.sh", "--dry-run", LANES="1 8", POSITIONS="8192", PYTHON="py")
    assert (result.returncode, result.stderr) == (0, "")
    first, *models, last = result.stdout.splitlines()
    assert first.startswith("py -m pytest -q -m gpu tests/test_gpu.py ")
    *models, kvpress = models
    assert [shlex.split(line)[2] for line in models] == [f"random:{name}" for name in ON_A_CARD]
    assert kvpress.startswith("py benchmarks/gpu.py random:llama-3.1-8b --kvpress KVPRESS --device cuda:0 ")
    assert all("--lanes 1 8 --positions 8192" in line for line in models)
    assert last.startswith("py benchmarks/gpu.py --table ") and last.endswith("--plot docs/images/gpu.png")
    alone = run(BENCHMARKS / "gpu.sh", "--dry-run", "random:tiny", PYTHON="py").stdout.splitlines()
    assert [shlex.split(line)[2] for line in alone] == ["random:tiny", "--table"], "a part by itself"


PEER = """
from types import SimpleNamespace
from scope_cli.measure.bench.protocol import Account, Loaded, serve

class Peer:
    device = SimpleNamespace(type="cpu")
    def load(self, job):
        self.at = 0
        return Loaded(f"{job.lanes} lanes of {job.folder}", exact=False, versions={}, weight_bytes=7)
    def read(self, ids):
        self.at = len(ids[0])
        return [self.at] * len(ids)
    def advance(self, ids):
        raise RuntimeError("no further")
    def step(self, count):
        self.at += count
        return 0.5, [list(range(count))]
    def account(self):
        return Account(held_bytes=self.at)

serve(Peer())
"""


def test_a_peer_on_the_card_is_a_process_of_its_own(tmp_path):
    (tmp_path / "peer.py").write_text(PEER)
    peer = load("apart").Apart(f"{sys.executable} {tmp_path}/peer.py --budget 9")
    loaded = peer.load(Job("m", "there", 4, 99, lanes=2))
    assert (loaded.policy, loaded.weight_bytes) == ("2 lanes of there", 7)
    assert peer.read([[1, 2, 3, 4], [5, 6, 7, 8]]) == [4, 4]
    assert peer.step(3) == (0.5, [[0, 1, 2]]) and peer.account().held_bytes == 7
    assert peer.told["peak_bytes"] >= 0
    with pytest.raises(NoAnswer, match="no further"):
        peer.advance([[1]])
    peer.close()


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
    cells = "20.00 (19.00-25.00) | 100 | 0.0 GiB | 50% | 1.00 GiB | 2.0 GiB | 2.50"
    assert slide == f"| m | 2 | 8,192 | slide 512 | {cells} |"
    assert "failed: too large" in full and dynamic.endswith("| 1.00 |")


def test_the_page_of_the_gpu_has_the_table_of_what_was_measured():
    gpu = load("gpu")
    page = (ROOT / "docs" / "results" / "gpu.md").read_text()
    table = page.partition("<!-- table of gpu.py -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == gpu.table(gpu.rows()).replace("random:", "")


def test_an_unknown_peer_is_told():
    result = run(BENCHMARKS / "peers" / "setup.sh", "vllm")
    assert (result.returncode, result.stdout) == (2, "") and "llamacpp|openvino|onnx|kvpress" in result.stderr


def test_rows_keep_what_tables_are_made_of(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    profile = {"model": {}, "decode": {"interval": 16, "budget": 64}}
    row = {"profile": profile, "kl": [0.123456789, None], "lags": [{"lag": 1, "by_layer": [0.5]}]}
    slim = {"profile": {"decode": {"interval": 16}}, "kl": [0.123457, None], "lags": [{"lag": 1}]}
    assert load("quality").slim(row) == slim
