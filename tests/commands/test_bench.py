"""`scope bench` as a user types it: contenders on the tiny model, files, and what cannot be done."""

import csv
import io
import json
import signal
import sys

import pytest

from scope_cli.commands.bench import contenders
from scope_cli.console.signals import broken_off
from scope_cli.measure.bench.contest import Measured
from scope_cli.settings.load import Typed

SHORT = ("--burst", "8", "--rounds", "2", "--positions", "80,120", "--offline")
PROMPT = "The lighthouse keeper wrote a letter."


@pytest.fixture(scope="module")
def peer_script(tmp_path_factory):
    """A peer that loads and then dies."""
    file = tmp_path_factory.mktemp("peer") / "peer.py"
    file.write_text("import sys; sys.stdin.readline(); sys.exit('no such device')")
    return file


def test_profiles_and_peers_on_the_same_text(scope, tiny_folder, tmp_path, peer_script):
    files = {kind: tmp_path / f"result.{kind}" for kind in ("json", "png")}
    result = scope(
        "bench", PROMPT, "-m", tiny_folder, *SHORT, "--budget", "16", "--threads", "1",
        "--profile", "slide4=default decode.interval=4", "--profile", "two=full lanes=2 kv=plain",
        "--peer", "dynamic", "--peer", f"broken={sys.executable} {peer_script}", "--baseline", "dynamic",
        "--output", files["json"], "--csv", "--plot", files["png"], "--bandwidth", "0.001",
    )  # fmt: skip
    assert result.code == 1
    assert "broken failed: ended with exit code 1: no such device" in result.stderr
    saved = json.loads(files["json"].read_text())
    assert [row["name"] for row in saved["contenders"]] == ["slide4", "two", "dynamic", "broken"]
    assert [row["failed"] is None for row in saved["contenders"]] == [True, True, True, False]
    slide, two, dynamic, _ = saved["contenders"]
    assert "every 4 tokens" in slide["policy"] and not slide["exact"]
    assert two["exact"] and two["lanes"] == 2 and dynamic["exact"]
    lines = {(line["contender"], line["position"]): line for line in saved["lines"]}
    assert set(lines) == {(name, at) for name in ("slide4", "two", "dynamic") for at in (80, 120)}
    for line in lines.values():
        assert line["tokens_per_s"] == pytest.approx(1000 * line["lanes"] / line["step_ms"])
        assert line["share_of_limit"] > 0
    assert all(len(one["step_ms"]) == 2 for row in (slide, two, dynamic) for one in row["positions"])
    assert lines["dynamic", 80]["ratio"] == 1
    assert lines["slide4", 120]["held_bytes"] < lines["dynamic", 120]["held_bytes"]
    assert (lines["slide4", 120]["moved_bytes"], lines["two", 120]["moved_bytes"]) == (0, 0)
    assert lines["dynamic", 120]["moved_bytes"] > 0
    assert "two: 8 of 8 next tokens as the first exact contender (exact)" in saved["remarks"]
    assert "dynamic: 4 of 4 next tokens as the first exact contender (exact)" in saved["remarks"]
    assert "verdict: at position 120 " in result.stderr and "times the tokens/s of dynamic" in result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 7 and rows[-1]["failed"].endswith("no such device")
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_a_result_is_not_overwritten_in_silence(scope, tmp_path):
    (tmp_path / "r.json").write_text("{}")
    for argv in (["bench", PROMPT], ["evaluate", "recall"], ["evaluate", "loops", "-f", tmp_path / "r.json"]):
        result = scope(*argv, "-o", tmp_path / "r.json")
        assert (result.code, result.stdout) == (2, "") and "r.json exists already" in result.stderr
        assert "--force" in result.stderr
    assert (tmp_path / "r.json").read_text() == "{}"


def test_csv_and_json_on_stdout_are_alone_there(scope, tiny_folder):
    result = scope("bench", PROMPT, "-m", tiny_folder, *SHORT, "--peer", "dynamic", "--json", "-q")
    assert result.code == 0
    assert json.loads(result.stdout)["baseline"] == "dynamic"
    assert "tokens/s" in result.stderr and "on the way" not in result.stderr


BAD = {
    "no prompt": ([], "there is no prompt"),
    "no such profile": ([PROMPT, "--profile", "slid"], "slide"),
    "no such key": ([PROMPT, "--profile", "a=default decode.budgt=4"], "did you mean budget?"),
    "no such peer": ([PROMPT, "--peer", "dynamik"], "did you mean dynamic?"),
    "a peer without a command": ([PROMPT, "--peer", "x="], "--peer"),
    "twice the same": (
        [PROMPT, "--profile", "full", "--profile", "full"],
        "are called 'full'",
    ),
    "no such baseline": ([PROMPT, "--profile", "full", "--baseline", "fast"], "no contender 'fast'"),
    "no number": ([PROMPT, "--positions", "many"], "numbers such as"),
    "too early": ([PROMPT, "--positions", "50"], "comes too early"),
    "too late": ([PROMPT, "--positions", "900000"], "context of 8,192"),
    "lanes": ([PROMPT, "--profile", "full lanes=0"], "lanes is a number"),
    "no room": ([PROMPT, "--lanes", "100000000"], "may need"),
    "a quote": ([PROMPT, "--profile", "full 'x"], "--profile"),
    "empty": ([PROMPT, "--profile", " "], "--profile"),
    "two on stdout": ([PROMPT, "--json", "--csv"], "one of them"),
    "no folder": ([PROMPT, "--output", "/no/such/folder/x.json"], "there is no folder"),
    "no picture": ([PROMPT, "--plot", "x.txt"], ".png"),
    "both": ([PROMPT, "--apart", "--sequential"], "cannot be combined"),
    "no text": ([PROMPT, "--text", "/no/such/file"], "--text"),
    "no tokens": ([PROMPT, "--prompt-tokens", "0"], "0"),
}


@pytest.mark.parametrize("argv, said", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_a_hint(scope, tiny_folder, argv, said):
    result = scope("bench", *argv, "-m", tiny_folder, "--offline")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert "Traceback" not in result.stderr


def test_where_to_measure_follows_from_the_length(scope):
    from scope_cli.commands.bench import positions_of

    assert positions_of(None, 100, 2000, 64, 8192) == (600, 1100, 2100)
    assert positions_of(None, 100, 100, 64, 8192) == (164, 200)  # the first two fall together
    assert positions_of([500, 300, 500], 100, 0, 64, 8192) == (300, 500)


def test_a_prompt_of_a_given_length():
    from scope_cli.commands.bench import exactly

    assert exactly([1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]
    assert exactly([1, 2, 3], 2) == [1, 2]


def test_an_interval_that_leaves_the_scorer_nothing_to_choose_is_told(capsys):
    contenders(["small=default decode.budget=16 decode.interval=16", "full"], [], Typed({}, {}))
    told = "8 recent tokens and an interval of 16 leave the scorer nothing to choose; interval=4 would"
    assert capsys.readouterr().err == f"note: small: {told}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_was_measured_before_a_signal_is_written(scope, tiny_folder, tmp_path, monkeypatch, number):
    def broken(specs, rows, course, say):
        rows[0].positions.append(Measured(80, step_ms=[2.0, 2.0]))
        broken_off.by(number)

    monkeypatch.setattr("scope_cli.commands.bench.contest", broken)
    out = tmp_path / "r.json"
    given = ("--profile", "full", "--bandwidth", "1", "--output", out)
    result = scope("bench", PROMPT, "-m", tiny_folder, *SHORT, *given)
    assert result.code == 128 + number and "interrupted; what was measured until then" in result.stderr
    assert [line["step_ms"] for line in json.loads(out.read_text())["lines"]] == [2.0]
