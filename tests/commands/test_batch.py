"""scope batch through the user's door, with a tiny model in a folder."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from scope_cli.batch.ledger import Ledger
from scope_cli.batch.presence import Presence
from scope_cli.batch.work import seed_of
from tests.helpers.forked import Forked

WORDS = "The keeper of the lighthouse wrote every evening, and "


@pytest.fixture
def prompts(tmp_path):
    """Five prompts of different lengths, one of them in a folder."""
    folder = tmp_path / "prompts"
    (folder / "sub").mkdir(parents=True)
    for number in range(4):
        (folder / f"p{number}.txt").write_text(f"{number} {WORDS * (number + 1)}")
    (folder / "sub" / "p4.md").write_text(f"4 {WORDS}")
    return folder


@pytest.fixture
def batch(scope, tiny_folder, tmp_path):
    """`scope batch` with the tiny model, sampling, 30 tokens, into `out`."""

    def run(prompts, *argv, out="out"):
        more = ["--model", tiny_folder, "--ignore-eos", "--temperature", 1.5, "--compile", "off", "--quiet"]
        more += [] if "--max-new-tokens" in argv else ["--max-new-tokens", 30]
        return scope("batch", prompts, "--output-dir", tmp_path / out, *more, *argv)

    return run


@pytest.fixture
def breaking():
    """A prompt that begins with 3 breaks after five tokens, like a bug that only its text meets."""
    from scope_cli.engine.text import TextStream

    start, feed = TextStream.__init__, TextStream.feed

    def init(self, tokenizer, prompt_ids, stop=()):
        start(self, tokenizer, prompt_ids, stop)
        self.fed, self.breaks = 0, prompt_ids[0] == ord("3")

    def breaks(self, token_id):
        self.fed += 1
        if self.breaks and self.fed == 5:
            raise ValueError("a text that nobody expected")
        return feed(self, token_id)

    @contextmanager
    def patched():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TextStream, "__init__", init)
            patch.setattr(TextStream, "feed", breaks)
            yield

    return patched


def texts(out):
    """Every text below a folder, by name."""
    own = (".run.json", ".part", "results.jsonl")
    files = [file for file in out.rglob("*") if file.is_file() and ".scope" not in file.parts]
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in files
        if not file.name.endswith(own) and not file.name.startswith("scope.db")
    }


def results(out):
    return {line["id"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def attempts(out):
    return {row.id: row.attempts for row in Ledger(out, read_only=True).rows()}


def states(out):
    return {row.id: row.state for row in Ledger(out, read_only=True).rows()}


# What comes out


def test_each_prompt_has_its_text_its_record_and_its_line(batch, prompts, tmp_path):
    result = batch(prompts)
    assert (result.code, result.stdout, result.stderr) == (0, "", "")
    out = tmp_path / "out"
    names = {"p0.txt", "p1.txt", "p2.txt", "p3.txt", "sub/p4.md"}
    assert set(texts(out)) == names == set(results(out))
    assert not list(out.rglob("*.part"))
    for name, line in results(out).items():
        record = json.loads((out / f"{name}.run.json").read_text())
        assert (record["status"], record["error"], line["state"]) == ("finished", None, "done")
        assert record["results"][0]["output_tokens"] == line["output_tokens"] == 30
        assert record["results"][0]["audit"]["problems"] == []
        assert record["profile"]["sampling"]["seed"] == line["seed"]
        assert line["text"].encode() == (out / name).read_bytes()
        assert line["prompt_tokens"] == len((prompts / name).read_text())


def test_an_interval_that_leaves_the_scorer_nothing_to_choose_is_told(scope, prompts, tmp_path, tiny_folder):
    argv = ["batch", prompts, "--output-dir", tmp_path / "out", "--model", tiny_folder, "--dry-run"]
    told = "note: 8 recent tokens and an interval of 16 leave the scorer nothing to choose; interval=4 would"
    assert told in scope(*argv, "--budget", 16, "--interval", 16, "--max-new-tokens", 30).stderr
    assert "nothing to choose" not in scope(*argv, "--budget", 16, "--max-new-tokens", 30).stderr


def test_a_row_writes_what_generate_writes_with_its_seed(batch, scope, prompts, tmp_path, tiny_folder):
    batch(prompts, "--seed", 5)
    for name, text in texts(tmp_path / "out").items():
        alone = scope(
            "generate", "--prompt-file", prompts / name, "--model", tiny_folder, "--ignore-eos",
            "--max-new-tokens", 30, "--temperature", 1.5, "--seed", seed_of(name, 5), "--quiet",
        )  # fmt: skip
        assert alone.stdout.encode() == text


def test_equal_prompts_of_other_names_draw_other_texts(batch, tmp_path):
    (tmp_path / "prompts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "prompts" / name).write_text(WORDS)
    batch(tmp_path / "prompts")
    assert len(set(texts(tmp_path / "out").values())) == 2
    greedy = ("--temperature", 0)
    batch(tmp_path / "prompts", *greedy, out="greedy")
    assert len(set(texts(tmp_path / "greedy").values())) == 1


def test_a_seed_belongs_to_the_prompt_and_not_to_its_place(batch, prompts, tmp_path):
    batch(prompts)
    (prompts / "a-new-first-one.txt").write_text("x")
    batch(prompts, out="again")
    again = texts(tmp_path / "again")
    assert again.pop("a-new-first-one.txt") and again == texts(tmp_path / "out")


def test_json_lines_carry_their_own_settings(batch, scope, tmp_path, tiny_folder):
    lines = [
        {
            "id": "chapter/1",
            "prompt": "Once",
            "sampling": {"max_new_tokens": 7, "seed": 3},
            "meta": {"page": 1},
        },
        {"id": 2, "prompt": "Twice"},
        {"prompt": "Thrice", "sampling": {"temperature": 0}},
        {"id": "m", "messages": [{"role": "user", "content": "hi"}]},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    result = batch(file)
    assert result.code == 1 and "m: " in result.stderr and "no chat template" in result.stderr
    found = results(tmp_path / "out")
    assert set(texts(tmp_path / "out")) == {"chapter_1.txt", "2.txt", "line-3.txt"}
    assert (found["chapter/1"]["output_tokens"], found["chapter/1"]["seed"]) == (7, 3)
    assert found["chapter/1"]["meta"] == {"page": 1} and found["2"]["output_tokens"] == 30
    greedy = scope(
        "generate",
        "Thrice",
        "--model",
        tiny_folder,
        "--ignore-eos",
        "--max-new-tokens",
        30,
        "--temperature",
        0,
    )
    assert found["line-3"]["text"] == greedy.stdout


def test_standard_input_gives_prompts(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"id": "a", "prompt": "hi"}\n')))
    assert batch("-").code == 0 and set(texts(tmp_path / "out")) == {"a.txt"}


def test_template_and_suffix_go_around_every_prompt(batch, scope, tmp_path, tiny_folder):
    (tmp_path / "template").write_text("Summarise {this}: {text}\n")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a").write_text("a {b}")
    batch(tmp_path / "p", "--prompt-template", tmp_path / "template", "--suffix", "Go!")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "a").write_text("Summarise {this}: a {b}\nGo!")
    batch(tmp_path / "q", out="whole")
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")


# A job that goes on


def test_the_same_command_again_does_nothing_twice(batch, prompts, tmp_path, monkeypatch):
    batch(prompts)
    before = texts(tmp_path / "out")
    monkeypatch.setattr(
        "scope_cli.models.model.OpenedModel.load", lambda self: pytest.fail("weights were loaded")
    )
    assert batch(prompts).code == 0
    assert texts(tmp_path / "out") == before and set(attempts(tmp_path / "out").values()) == {1}


def test_a_limit_is_kept_and_the_next_runs_go_on(batch, prompts, tmp_path):
    batch(prompts, out="whole")
    for done in (2, 4, 5):
        assert batch(prompts, "--limit", 2).code == 0
        assert list(states(tmp_path / "out").values()).count("done") == done
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")
    assert set(attempts(tmp_path / "out").values()) == {1}


def test_new_changed_and_lost_prompts_are_run_and_no_other(batch, prompts, tmp_path):
    batch(prompts)
    (prompts / "new.txt").write_text("new")
    (prompts / "p1.txt").write_text("changed")
    (prompts / "p2.txt").unlink()
    (tmp_path / "out" / "p3.txt").unlink()
    result = batch(prompts)
    assert result.code == 0
    assert attempts(tmp_path / "out") == {
        "p0.txt": 1, "p1.txt": 1, "p2.txt": 1, "p3.txt": 2, "sub/p4.md": 1, "new.txt": 1,
    }  # fmt: skip
    batch(prompts, out="fresh")
    assert texts(tmp_path / "out").items() >= texts(tmp_path / "fresh").items()
    assert "p2.txt" in texts(tmp_path / "out")


def test_a_prompt_that_is_gone_before_it_was_run_leaves_the_job(batch, prompts, tmp_path):
    batch(prompts, "--limit", 1)
    gone = next(name for name, state in states(tmp_path / "out").items() if state == "waiting")
    (prompts / gone).unlink()
    assert batch(prompts).code == 0
    assert gone not in states(tmp_path / "out")


def test_other_settings_are_refused_with_what_differs(batch, prompts, tmp_path):
    batch(prompts, "--limit", 2)
    refused = batch(prompts, "--budget", 64, "--suffix", "x")
    assert refused.code == 2 and "decode.budget: 2048 before, 64 now" in refused.stderr
    assert 'suffix: "" before, "x" now' in refused.stderr and "--accept-changed-profile" in refused.stderr
    assert batch(prompts, "--max-new-tokens", 12, "--accept-changed-profile").code == 0
    lengths = sorted(line["output_tokens"] for line in results(tmp_path / "out").values())
    assert lengths == [12, 12, 12, 30, 30]
    assert len({line["profile_hash"] for line in results(tmp_path / "out").values()}) == 2
    assert batch(prompts, "--max-new-tokens", 13, "--restart").code == 0
    assert {line["output_tokens"] for line in results(tmp_path / "out").values()} == {13}


def test_failed_rows_are_run_again_when_asked(batch, prompts, tmp_path, breaking):
    with breaking():
        result = batch(prompts, "--limit", 2)
    assert result.code == 1 and "p3.txt: failed: ValueError" in result.stderr
    assert batch(prompts).code == 1  # what failed stays failed
    assert sorted(states(tmp_path / "out").values()) == ["done"] * 4 + ["failed"]
    assert batch(prompts, "--retry-failed").code == 0
    batch(prompts, out="whole")
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")
    assert attempts(tmp_path / "out")["p3.txt"] == 2


# Bad prompts


def make_bad_files(folder):
    """Twelve, each bad in its own way; name -> a part of its reason."""
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text("\n  \n")
    (folder / "latin1.txt").write_bytes("café".encode("latin1"))
    (folder / "utf16.txt").write_bytes("hello".encode("utf-16"))
    (folder / "too long.txt").write_text("a" * 9000)
    (folder / "twenty megabytes.txt").write_text("lorem ipsum " * (20 * 2**20 // 12))
    (folder / "dangling.txt").symlink_to("nowhere")
    (folder / "itself.txt").symlink_to("itself.txt")
    (folder / "loop").symlink_to(".")
    os.mkfifo(folder / "pipe.txt")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "no\nroom – 夜.txt").write_text("b" * 8192)  # noqa: RUF001
    return {
        "empty.txt": "is empty",
        "blank.txt": "nothing but white space",
        "latin1.txt": "not UTF-8: byte 0xe9 at offset 3, line 1",
        "utf16.txt": "it is UTF-16; convert it, for example: iconv -f utf-16",
        "too long.txt": "the prompt has 9,000 tokens, the model's context is 8,192",
        "twenty megabytes.txt": "more than 327,680 tokens",
        "dangling.txt": "No such file",
        "itself.txt": "symbolic links",
        "loop": "link back",
        "pipe.txt": "not a regular file",
        "image.png": "is no text: it has a NUL byte",
        "no\nroom – 夜.txt": "the prompt has 8,192 tokens",  # noqa: RUF001
    }


def test_thirty_good_files_are_done_and_each_of_twelve_bad_ones_has_its_reason(batch, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for number in range(30):
        (folder / f"gut – ёжик {number}.txt").write_text(WORDS + str(number))  # noqa: RUF001
    reasons = make_bad_files(folder)
    result = batch(folder, "--max-new-tokens", 4)
    assert result.code == 1 and "Traceback" not in result.stderr
    found = results(tmp_path / "out")
    assert sum(line["state"] == "done" for line in found.values()) == 30 == len(texts(tmp_path / "out"))
    failed = {name: line["error"] for name, line in found.items() if line["state"] == "failed"}
    assert failed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in failed[name]
    assert all("failed: " in line for line in result.stderr.splitlines())
    assert len(result.stderr.splitlines()) == 12
    assert batch(folder, "--max-new-tokens", 4).code == 1 and set(attempts(tmp_path / "out").values()) == {
        0,
        1,
    }


def test_a_failed_prompt_that_was_put_right_is_run(batch, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a").write_text("")
    assert batch(folder).code == 1
    (folder / "a").write_text("text")
    assert batch(folder).code == 0 and states(tmp_path / "out") == {"a": "done"}


def test_an_error_inside_one_lane_fails_that_row_alone(batch, prompts, tmp_path, breaking):
    batch(prompts, "--lanes", 3, out="undisturbed")
    with breaking():
        result = batch(prompts, "--lanes", 3)
    assert result.code == 1
    assert "p3.txt: failed: ValueError: a text that nobody expected" in result.stderr
    record = json.loads((tmp_path / "out" / "p3.txt.run.json").read_text())
    assert record["status"] == "failed"
    assert "Traceback" in Ledger(tmp_path / "out").rows("failed")[0].detail
    undisturbed = texts(tmp_path / "undisturbed")
    assert undisturbed.pop("p3.txt")
    assert texts(tmp_path / "out") == undisturbed


def test_fail_fast_stops_at_the_first_failure(batch, prompts, tmp_path, breaking):
    with breaking():
        result = batch(prompts, "--lanes", 1, "--fail-fast")  # p3 is the longest, and comes first
    assert result.code == 1
    assert sorted(states(tmp_path / "out").values()) == ["failed", "waiting", "waiting", "waiting", "waiting"]


def test_a_row_may_take_so_many_seconds(batch, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a").write_text(WORDS)
    result = batch(folder, "--max-new-tokens", 8000, "--row-timeout", 0.5)
    assert result.code == 0
    (line,) = results(tmp_path / "out").values()
    assert (line["state"], line["reason"]) == ("done", "time")
    assert 0 < line["output_tokens"] < 8000 and line["decode_s"] >= 0.5


# The disk


def test_a_full_disk_stops_cleanly_with_everything_finished_intact(batch, prompts, tmp_path, monkeypatch):
    """The third row's text meets a full disk; afterwards there is room again."""
    from scope_cli.batch import writer

    batch(prompts, out="whole")
    write, opened = writer.PartFile.write, []

    def full(self, text):
        if self not in opened:
            opened.append(self)
        if len(opened) < 3:
            return write(self, text)
        raise writer.told(self.part, OSError(28, "No space left on device"))

    monkeypatch.setattr(writer.PartFile, "write", full)
    result = batch(prompts, "--lanes", 1)
    assert result.code == 1 and result.stderr.startswith("error: cannot write")
    assert "No space left on device" in result.stderr and "Traceback" not in result.stderr
    assert sorted(states(tmp_path / "out").values()) == ["done", "done", "interrupted", "waiting", "waiting"]
    assert len(texts(tmp_path / "out")) == 2 and Ledger(tmp_path / "out").sound()
    monkeypatch.setattr(writer.PartFile, "write", write)
    assert batch(prompts, "--lanes", 1).code == 0
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")


def test_a_disk_that_is_really_full(tiny_folder, prompts, tmp_path):
    """A small file system, where the user may make one, with ever more room."""
    out = tmp_path / "small"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", out], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot make a small file system: {mounted.stderr.decode().strip()}")
    argv = ["batch", prompts, "-o", out, "--model", tiny_folder, "--ignore-eos", "--max-new-tokens", 30]
    codes = []
    try:
        for kib in (4, 40, 80, 120, 160, 200, 240, 300):
            (out / "filler").unlink(missing_ok=True)
            (out / "filler").write_bytes(b"x" * (shutil.disk_usage(out).free - kib * 1024))
            process = Forked(tmp_path / "said", *argv)
            codes.append(process.wait())
            assert "Traceback" not in process.stderr
            if codes[-1] == 1:
                assert "error: " in process.stderr
        assert codes[0] in (1, 2) and codes[-1] == 0
        assert len(texts(out)) == 6  # and the filler
        ledger = Ledger(out, read_only=True)
        assert ledger.sound() and not list(out.rglob("*.part"))
        ledger.close()
    finally:
        subprocess.run(["umount", out], check=True)


def test_an_output_that_cannot_be_written_fails_alone(batch, prompts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file where a folder is needed")
    result = batch(prompts)
    assert result.code == 1 and "sub/p4.md: failed: cannot write" in result.stderr
    assert sorted(states(tmp_path / "out").values()) == ["done"] * 4 + ["failed"]


def test_files_of_somebody_else_are_not_overwritten(batch, prompts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p1.txt").write_text("precious")
    refused = batch(prompts)
    assert refused.code == 2 and "p1.txt exists" in refused.stderr
    assert (tmp_path / "out" / "p1.txt").read_text() == "precious"
    assert batch(prompts, "--restart").code == 2
    assert (tmp_path / "out" / "p1.txt").read_text() == "precious"


def test_outputs_may_lie_among_the_prompts_but_not_over_them(batch, prompts, tmp_path):
    over = batch(prompts, out="prompts")
    assert over.code == 2 and "overwrite" in over.stderr
    assert batch(prompts, out="prompts/texts").code == 0
    assert batch(prompts, out="prompts/texts").code == 0
    assert len(states(prompts / "texts")) == 5


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nothing/here"])
def test_an_output_folder_that_cannot_be_written_is_refused(batch, prompts, tmp_path, out):
    (tmp_path / "file").write_text("")
    result = batch(prompts, out=out)
    assert result.code == 2 and result.stderr.startswith("error: cannot write to")


def test_results_are_rebuilt_from_the_ledger(batch, prompts, tmp_path):
    batch(prompts)
    before = (tmp_path / "out" / "results.jsonl").read_text()
    (tmp_path / "out" / "results.jsonl").write_text('{"id": "p0.t')
    batch(prompts)
    assert (tmp_path / "out" / "results.jsonl").read_text() == before


def test_a_row_that_was_done_when_the_process_died_is_published_and_not_run_again(batch, prompts, tmp_path):
    """Killed after the ledger said `done` and before NAME.part became NAME."""
    batch(prompts)
    out, before = tmp_path / "out", texts(tmp_path / "out")
    (out / "p1.txt").rename(out / "p1.txt.part")
    (out / "p1.txt.run.json").unlink()
    assert batch(prompts).code == 0
    assert texts(out) == before and (out / "p1.txt.run.json").exists()
    assert set(attempts(out).values()) == {1}


# Several processes


def test_the_second_process_is_told_and_stops(batch, prompts, tmp_path):
    (tmp_path / "out").mkdir()
    first = Presence(tmp_path / "out")
    with first.starting():
        first.enter()
    Ledger(tmp_path / "out").enter(first.owner, 4711, "elsewhere")
    result = batch(prompts)
    assert result.code == 3 and "process 4711 on elsewhere already works" in result.stderr
    assert "--join" in result.stderr
    first.leave()
    assert batch(prompts).code == 0


def test_who_comes_while_another_plans_is_told_as_well(batch, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("scope_cli.batch.presence.TOLD_AFTER_S", 0.1)
    (tmp_path / "out").mkdir()
    with Presence(tmp_path / "out").starting():
        result = batch(prompts)
    assert result.code == 3 and "has been starting on" in result.stderr and "--join" in result.stderr


def test_a_damaged_ledger_is_refused_and_texts_stay(batch, prompts, tmp_path):
    batch(prompts)
    before = texts(tmp_path / "out")
    ledger = bytearray((tmp_path / "out" / "scope.db").read_bytes())
    ledger[8192:20480] = os.urandom(12288)
    (tmp_path / "out" / "scope.db").write_bytes(ledger)
    result = batch(prompts)
    assert result.code == 2 and result.stderr.startswith("error: "), result.stderr
    assert texts(tmp_path / "out") == before


def test_a_lock_goes_with_its_process(batch, prompts, tmp_path):
    """A process that was killed leaves its lock file, and nobody waits for it."""
    batch(prompts, "--limit", 1)
    ledger = Ledger(tmp_path / "out")
    ledger.enter("killed", 1, "here")
    (tmp_path / "out" / ".scope" / "killed.lock").write_text("")
    assert ledger.take("killed", ledger.rows("waiting")[0].group_number, "p") is not None
    assert batch(prompts).code == 0
    assert not (tmp_path / "out" / ".scope" / "killed.lock").exists()
    assert set(states(tmp_path / "out").values()) == {"done"}


# What is shown


def test_status_is_a_table_or_json(batch, scope, prompts, tmp_path):
    (prompts / "empty").write_text("")
    batch(prompts, "--limit", 2)
    table = scope("batch", "--status", tmp_path / "out")
    assert table.code == 0 and "3 waiting, 2 done, 1 failed" in table.stdout and "is empty" in table.stdout
    shown = json.loads(scope("batch", "--status", tmp_path / "out", "--json").stdout)
    assert shown["counts"] == {"waiting": 3, "running": 0, "done": 2, "failed": 1, "interrupted": 0}
    assert len(shown["rows"]) == 6 and shown["settings"]["sampling"]["max_new_tokens"] == 30


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(batch, prompts, tmp_path, monkeypatch):
    (prompts / "empty").write_text("")
    monkeypatch.setattr(
        "scope_cli.models.model.OpenedModel.load", lambda self: pytest.fail("weights were loaded")
    )
    result = batch(prompts, "--dry-run")
    assert result.code == 0 and not (tmp_path / "out").exists()
    assert "p3.txt: 218 prompt tokens, up to 30 new -> p3.txt" in result.stdout
    assert "would fail: empty: is empty" in result.stdout and "lanes of" in result.stdout


@pytest.mark.parametrize("char", ["\x1b", "\x9b", "\x7f", "\x07", "\r", "\n", "\u202e", "\u2028"], ids=ascii)
def test_no_control_character_of_an_id_or_a_name_reaches_a_log(batch, scope, tmp_path, char):
    """Good and bad lines, ids that come twice, files in the way: in every way a name is shown."""
    name = f"a{char}[2J{char}]0;x"
    lines = [
        {"id": name, "prompt": "hi", "meta": name, "sampling": {"max_new_tokens": 2}},
        {"id": name, "prompt": "again"},
        {"id": f"{name}2", "prompt": "hi", "sampling": {name: 1}},
        {"id": f"{name}3", "prompt": "hi", name: 1},
        {"id": f"{name}4", "messages": [{"role": name, "content": "a"}]},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line, ensure_ascii=True) for line in lines))
    shown = [
        batch(file, "--dry-run"),
        batch(file, "--lanes", 1, "--log-every", 0.1),
        batch(file, "--budget", 9),
    ]
    shown += [scope("batch", "--status", tmp_path / "out", *more) for more in ([], ["--json"])]
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / name).write_text("hi")
    (folder / f"{name}2").write_bytes(b"\xff")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / name).write_text("precious")
    shown += [batch(folder, out="taken"), batch(folder)]
    for result in shown:
        said = result.stdout + result.stderr
        assert said and (char not in said if char != "\n" else "\n[2J" not in said)
    for file in [*tmp_path.rglob("results.jsonl"), *tmp_path.rglob("*.run.json")]:
        assert char not in file.read_text() or char in "\n"


def test_a_log_says_what_begins_what_ends_and_how_it_stands(tiny_folder, prompts, tmp_path):
    process = Forked(
        tmp_path / "said", "batch", prompts, "-o", tmp_path / "out", "--model", tiny_folder, "--ignore-eos",
        "--max-new-tokens", 300, "--log-every", 0.1, "--lanes", 2,
    )  # fmt: skip
    assert process.wait() == 0 and process.stdout == ""
    log = process.stderr
    assert "\x1b" not in log
    assert re.search(r"\d\d:\d\d:\d\d p3.txt: begins: 218 prompt tokens", log)
    assert re.search(r"p3.txt: done \(length\): 300 tokens in .*tokens/s", log)
    assert re.search(r"\d of 5 done, \d running, [\d.,]+ tokens/s, about .* left", log)
    assert re.search(r"memory: +planned .* MiB, peak .* MiB", log)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["batch"], "PROMPTS and --output-dir are missing"),
        (["batch", "{prompts}"], "--output-dir is missing"),
        (["batch", "-o", "{out}"], "PROMPTS is missing"),
        (["batch", "{prompts}/nothing", "-o", "{out}"], "there is no"),
        (["batch", "{prompts}/p0.txt", "-o", "{out}"], "neither a directory nor"),
        (["batch", "{prompts}", "-o", "{out}", "--lanes", "many"], "from 1 up, not 'many'"),
        (["batch", "{prompts}", "-o", "{out}", "--lanes", "0"], "from 1 up, not '0'"),
        (["batch", "{prompts}", "-o", "{out}", "--order", "random"], "longest or input, not 'random'"),
        (["batch", "{prompts}", "-o", "{out}", "--glob", "*.none"], "there are no prompts"),
        (["batch", "{prompts}", "-o", "{out}", "--limit", "0"], "limit"),
        (["batch", "{prompts}", "-o", "{out}", "--restart", "--join"], "cannot be combined"),
        (["batch", "{prompts}", "-o", "{out}", "--prompt-template", "{prompts}/p0.txt"], "has no {text}"),
        (["batch", "{prompts}", "-o", "{out}", "--strategy", "slid"], "did you mean slide?"),
        (["batch", "{prompts}", "-o", "{out}", "--json"], "--json needs --status"),
        (["batch", "--status", "{out}"], "there is no job in"),
        (["batch", "{prompts}", "--status", "{out}"], "and nothing else"),
    ],
)
def test_bad_usage_is_one_line_and_a_hint_and_code_2(scope, tiny_folder, prompts, tmp_path, argv, message):
    names = {"{prompts}": str(prompts), "{out}": str(tmp_path / "out")}
    filled = []
    for part in argv:
        for name, value in names.items():
            part = part.replace(name, value)
        filled.append(part)
    result = scope(*filled, "--model", tiny_folder)
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr and result.stderr.startswith("error: ")


@pytest.fixture
def alike(tmp_path):
    """Two documents of which each is asked about four times, in turn."""
    folder = tmp_path / "alike"
    folder.mkdir()
    for number in range(8):
        (folder / f"p{number}.txt").write_text(f"{number % 2}: {WORDS * 4}{number}{'?' * number}")
    return folder


def records(out):
    found = [json.loads(file.read_text()) for file in sorted(out.glob("*.run.json"))]
    return {record["id"]: record["results"][0] for record in found}


@pytest.mark.parametrize("order", ["longest", "input"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_what_prompts_have_in_common_is_read_once_and_changes_no_text(
    batch, scope, tiny_folder, alike, tmp_path, monkeypatch, lanes, order
):
    from scope_cli.engine.beginning import Beginnings

    more = ["--lanes", lanes, "--order", order]
    with monkeypatch.context() as patch:
        patch.setattr(Beginnings, "of", lambda self, prompt_ids: None)
        assert batch(alike, *more, out="read").code == 0
    argv = ["--model", tiny_folder, "--ignore-eos", "--temperature", 1.5, "--max-new-tokens", 30, *more]
    said = scope("batch", alike, "--output-dir", tmp_path / "out", *argv).stderr
    for number in range(8):
        assert (tmp_path / "out" / f"p{number}.txt").read_bytes() == (
            tmp_path / "read" / f"p{number}.txt"
        ).read_bytes()
    ends = records(tmp_path / "out")
    reused = [ends[f"p{number}.txt"]["reused_prompt_tokens"] for number in range(8)]
    assert not any(end["reused_prompt_tokens"] for end in records(tmp_path / "read").values())
    common = 64  # of some 220, a byte each; the next chunk ends at 256
    if lanes == 1 and order == "input":  # the row holds the other document
        assert reused == [0] * 8 and "copied:" not in said
        return
    assert sorted(reused) == [0, 0, *[common] * 6]
    prompts = sum(end["prompt_tokens"] for end in ends.values())
    assert f"copied:    {6 * common:,} of {prompts:,} prompt tokens, from prompts that begin alike" in said
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["reused_prompt_tokens"] for line in lines] == reused


def test_a_model_by_another_path_is_the_same_model(scope, tiny_folder, tmp_path, monkeypatch):
    prompts = tmp_path / "two.jsonl"
    prompts.write_text('{"prompt": "the sea"}\n{"prompt": "the sky"}\n')
    monkeypatch.chdir(tiny_folder.parent)
    for model in (tiny_folder.name, tiny_folder):
        more = ["--model", model, "--max-new-tokens", 5, "--compile", "off", "--limit", 1]
        result = scope("batch", prompts, "--output-dir", tmp_path / "out", *more)
        assert result.code == 0, result.stderr
    assert "done:      2 of 2 prompts" in result.stderr
