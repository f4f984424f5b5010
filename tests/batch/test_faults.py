"""Whatever breaks around a row, a disk, a folder, a tokenizer, memory, costs that row and no other."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
import torch

from scope_cli import cli
from scope_cli.batch import desk as desk_module
from scope_cli.batch import start
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.outputs import PART, RECORD
from scope_cli.batch.rows import DAMAGED, sealed, unsealed
from scope_cli.cache.cache import ScopeCache
from scope_cli.errors import UsageError
from scope_cli.models.chat import Chat
from scope_cli.models.model import OpenedModel

NAMES = ("1.txt", "2.txt", "sub/3.txt", "sub/4.txt", "5.txt")


class PanicException(BaseException):
    """As Rust's panics come to Python: no Exception."""


@pytest.fixture
def prompts(tmp_path) -> Path:
    for name in NAMES:
        file = tmp_path / "prompts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}: a lighthouse")
    return tmp_path / "prompts"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(prompts, out, tiny_folder, capfd):
    """The job, or more of it; every run ends without a traceback."""

    def run(*more, prompts=prompts, out=out):
        argv = ["batch", prompts, "-o", out, "--model", tiny_folder, "--ignore-eos", "--temperature", 1]
        argv += ["--max-new-tokens", 8, "--lanes", 2, "--threads", 1, "--compile", "off", "--order", "input"]
        capfd.readouterr()
        code = cli.main([str(part) for part in (*argv, *more)])
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return code, said

    return run


@pytest.fixture
def whole(run, tmp_path):
    """What every job has to end with."""
    assert run("-q", out=tmp_path / "whole") == (0, "")
    return texts(tmp_path / "whole")


def texts(out):
    return {name: (out / name).read_bytes() for name in NAMES if (out / name).is_file()}


def states(out):
    ledger = Ledger(out)
    found = {row.id: row.state for row in ledger.rows()}
    ledger.close()
    return found


def attempts(out):
    return {row.id: row.attempts for row in Ledger(out).rows()}


def when_done(monkeypatch, number, act):
    """`act(desk, row)` between the ledger's word that the n-th row is done and the name of its text."""
    publish, seen = desk_module.publish, []

    def publishing(out, output, record):
        seen.append(output)
        if len(seen) == number:
            act(out, output)
        publish(out, output, record)

    monkeypatch.setattr(desk_module, "publish", publishing)


# Between the ledger and the name of the text


def test_a_text_of_a_process_that_died_before_it_had_its_name_is_there_at_the_end(
    run, out, whole, monkeypatch
):
    """Another one had taken a row, ended it in the ledger, and died; who goes on is not started anew."""
    told = []

    def die(out, output):
        ledger = Ledger(out)
        waiting = ledger.rows("waiting")[0]
        ledger.take("dead", waiting.group_number, "hash", waiting.number)
        (out / waiting.output).parent.mkdir(exist_ok=True)
        (out / f"{waiting.output}{PART}").write_bytes(whole[waiting.output])
        assert ledger.end(waiting.number, "dead", "done", {"id": waiting.id, "results": []})
        ledger.close()
        told.append(waiting.output)

    when_done(monkeypatch, 1, die)
    assert run()[0] == 0
    assert texts(out) == whole and not list(out.rglob(f"*{PART}"))
    assert json.loads((out / f"{told[0]}{RECORD}").read_text())["id"] == told[0]
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert all(line["text"] is not None for line in lines)


def test_a_text_that_somebody_took_away_meanwhile_is_told_at_the_end(run, out, whole, monkeypatch):
    when_done(monkeypatch, 3, lambda out, output: (out / "1.txt").unlink())
    code, said = run()
    assert code == 1 and "missing: 1.txt was written and is gone" in said
    monkeypatch.undo()
    assert run()[0] == 0 and texts(out) == whole


def test_two_who_publish_the_same_text_are_both_content(tmp_path):
    """One rolls forward what another, who lives, is about to give its name."""
    from scope_cli.batch.writer import publish

    (tmp_path / f"a{PART}").write_text("text")
    for _ in range(2):
        publish(tmp_path, "a", {"id": "a"})
    assert (tmp_path / "a").read_text() == "text" and json.loads((tmp_path / f"a{RECORD}").read_text())


# An output that cannot be published


def a_folder_for_the_record(out, output):
    (out / f"{output}{RECORD}").mkdir()


def a_folder_for_the_text(out, output):
    (out / output).mkdir()


def no_folder(out, output):
    shutil.rmtree((out / output).parent)


def a_file_for_the_folder(out, output):
    shutil.rmtree((out / output).parent)
    (out / output).parent.write_text("")


def no_text(out, output):
    (out / f"{output}{PART}").unlink()


FAULTS = [
    (1, a_folder_for_the_record),
    (1, a_folder_for_the_text),
    (4, no_folder),
    (4, a_file_for_the_folder),
    (2, no_text),
]


@pytest.mark.parametrize(("number", "fault"), FAULTS, ids=[fault.__name__ for _, fault in FAULTS])
def test_an_output_that_cannot_have_its_name_fails_and_the_job_goes_on(
    run, out, whole, monkeypatch, number, fault
):
    met = []

    def act(out, output):
        met.append(output)
        fault(out, output)

    when_done(monkeypatch, number, act)
    code, said = run("--lanes", 1)
    monkeypatch.undo()
    assert code == 1 and f"{met[0]}: failed: cannot write" in said
    gone = {name for name in NAMES if name.startswith("sub/")} if fault is a_file_for_the_folder else set(met)
    assert {name for name, state in states(out).items() if state == "failed"} == gone
    assert texts(out) == {name: text for name, text in whole.items() if name not in gone}
    failed = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {line["id"] for line in failed if line["error"]} == gone
    assert run("--lanes", 1)[0] == 1  # later starts say the same
    for path in (out / met[0], out / f"{met[0]}{RECORD}", (out / met[0]).parent):
        if path.is_dir() and path not in (out, out / "sub"):
            path.rmdir()
        elif path.is_file() and path.name == "sub":
            path.unlink()
    assert run("--lanes", 1, "--retry-failed")[0] == 0 and texts(out) == whole


def test_a_text_that_cannot_be_rolled_forward_has_failed_and_every_later_start_works(run, out, whole):
    assert run()[0] == 0
    (out / "2.txt").rename(out / f"2.txt{PART}")
    (out / f"2.txt{RECORD}").unlink()
    (out / f"2.txt{RECORD}").mkdir()
    for _ in range(2):
        assert run()[0] == 1 and states(out)["2.txt"] == "failed"
    (out / f"2.txt{RECORD}").rmdir()
    assert run("--retry-failed")[0] == 0 and texts(out) == whole


def test_an_output_folder_that_is_removed_ends_the_job_in_a_sentence(run, out, whole, monkeypatch):
    when_done(monkeypatch, 2, lambda out, output: shutil.rmtree(out))
    code, said = run("--lanes", 1)
    monkeypatch.undo()
    assert code == 1 and "scope.db is gone: the output folder was removed" in said
    assert run()[0] == 0 and texts(out) == whole


def test_a_folder_that_becomes_immutable_costs_its_rows(run, out, whole, monkeypatch):
    def immutable(on):
        return subprocess.run(["chattr", "+i" if on else "-i", out], capture_output=True).returncode == 0

    out.mkdir()
    if not (immutable(on=True) and immutable(on=False)):
        pytest.skip("this disk, or this user, has no such attribute")
    when_done(monkeypatch, 2, lambda out, output: immutable(on=True))
    try:
        code, said = run("--lanes", 1)
        assert code == 1 and "failed: cannot write" in said
        assert run("--lanes", 1)[0] == 2  # told at once, and in a sentence
    finally:
        immutable(on=False)
    monkeypatch.undo()
    assert run("--lanes", 1, "--retry-failed")[0] == 0 and texts(out) == whole


def test_a_link_where_a_part_goes_leads_to_nobodys_file(run, out, tmp_path, whole):
    (tmp_path / "precious").write_text("precious")
    out.mkdir()
    (out / f"1.txt{PART}").symlink_to(tmp_path / "precious")
    assert run()[0] == 0 and texts(out) == whole
    assert (tmp_path / "precious").read_text() == "precious"


def test_results_that_cannot_be_written_are_told_and_cost_nothing_else(run, out, whole):
    out.mkdir()
    (out / "results.jsonl").mkdir()
    code, said = run()
    assert code == 1 and "results.jsonl: Is a directory" in said and texts(out) == whole


def test_a_report_that_cannot_be_written_is_an_error_in_a_line(run, scope, out):
    assert run()[0] == 0
    (out / "report.html").mkdir()
    result = scope("batch", "--status", out, "--report")
    assert result.code == 1 and result.stderr.startswith("error: cannot write") and not result.stdout
    assert "Traceback" not in result.stderr and "hint: " in result.stderr


def test_what_a_killed_process_left_half_written_is_swept_away(run, out):
    assert run("--limit", 1)[0] == 0
    for folder in (out, out / "sub"):
        folder.mkdir(exist_ok=True)
        (folder / ".scope-0123.new").write_text("half")
    assert run()[0] == 0 and not list(out.rglob("*.new"))


# Memory


@pytest.fixture
def little(monkeypatch):
    """So many bytes are free; no weight may be read, and no lane made."""

    def little(count):
        for module in ("scope_cli.batch.local", "scope_cli.machine.memory"):
            monkeypatch.setattr(f"{module}.free_bytes", lambda device: count)
        monkeypatch.setattr(OpenedModel, "load", lambda self: pytest.fail("weights were read"))
        monkeypatch.setattr(ScopeCache, "__init__", lambda *args, **more: pytest.fail("lanes were made"))

    return little


@pytest.mark.parametrize("count", [1000, 300_000])
@pytest.mark.parametrize("lanes", ["auto", 2])
def test_too_little_memory_is_told_before_any_weight_is_read(run, out, little, count, lanes):
    little(count)
    code, said = run("--lanes", lanes, "--max-new-tokens", 4000, "--budget", 4000)
    assert code == 2 and said.startswith("error: not enough memory") and "are free" in said
    assert not states(out)


def test_so_it_is_at_a_later_start(run, out, little):
    assert run("--limit", 1)[0] == 0
    little(100_000)
    code, said = run()
    assert code == 2 and "error: not enough memory" in said
    assert sorted(states(out).values()) == ["done", "waiting", "waiting", "waiting", "waiting"]


def test_measuring_makes_no_larger_cache_than_the_largest_row(run, tmp_path, out, monkeypatch):
    """The profile allows the whole context, the rows ask for a few tokens of their own."""
    lines = [{"prompt": "hi", "sampling": {"max_new_tokens": tokens}} for tokens in (5, 9)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    make, made = ScopeCache.__init__, []

    def making(self, geometry, shape, *args, **more):
        made.append(shape.evictable)
        make(self, geometry, shape, *args, **more)

    monkeypatch.setattr(ScopeCache, "__init__", making)
    assert run("--max-new-tokens", 8000, prompts=tmp_path / "p.jsonl")[0] == 0
    assert max(made) <= made[-1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    ],
    ids=["MemoryError", "RuntimeError"],
)
def test_memory_that_ends_in_the_middle_fails_the_row_that_takes_it(run, out, whole, monkeypatch, error):
    from scope_cli.engine.decode import Lane

    ask = Lane.ask

    def asks(self):
        if bytes(self.prompt_ids[0, :1].tolist()) == b"2" and self.written == 3:
            raise error
        return ask(self)

    monkeypatch.setattr(Lane, "ask", asks)
    code, said = run()
    assert code == 1 and "2.txt: failed: out of memory with a single lane" in said
    expected = {name: text for name, text in whole.items() if name != "2.txt"}
    assert texts(out).keys() == expected.keys()
    assert (out / f"2.txt{PART}").read_bytes() == whole["2.txt"][: (out / f"2.txt{PART}").stat().st_size]


@pytest.mark.parametrize("where", ["load", "cache"])
def test_memory_that_ends_before_any_row_ends_the_job_in_a_sentence(run, out, monkeypatch, where):
    def runs_out(*args, **more):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")

    target, name = (OpenedModel, "load") if where == "load" else (ScopeCache, "__init__")
    monkeypatch.setattr(target, name, runs_out)
    code, said = run("--lanes", 1)
    assert code == 1 and "error: memory ran out: " in said and "hint: " in said
    monkeypatch.undo()
    assert run("--lanes", 1)[0] == 0


# --restart


def test_a_restart_that_is_refused_has_destroyed_nothing(run, out, prompts, whole, little, monkeypatch):
    assert run("-q")[0] == 0
    before = attempts(out)
    (out / "6.txt").write_text("precious")
    (prompts / "6.txt").write_text("new")
    assert "6.txt exists, and this job has not written it" in run("--restart")[1]
    assert (out / "6.txt").read_text() == "precious"
    (out / "6.txt").unlink()
    (prompts / "6.txt").unlink()
    (prompts / "6.txt").symlink_to(out / "1.txt")
    code, said = run("--restart")
    assert code == 2 and "1.txt is a prompt, and would be overwritten" in said
    (prompts / "6.txt").unlink()
    assert run("--restart", "--glob", "*.md")[0] == 2
    assert run("--restart", "--device", "cuda:7")[0] == 2
    with monkeypatch.context() as patch:
        patch.setattr(start, "commit", lambda *args: (_ for _ in ()).throw(UsageError("killed here")))
        assert run("--restart")[0] == 2
    with monkeypatch.context():
        little(1000)
        assert run("--restart")[0] == 2
    monkeypatch.undo()
    assert texts(out) == whole and attempts(out) == before
    assert run()[0] == 0 and attempts(out) == before, "what was done was run again"


def test_a_restart_writes_everything_anew_over_its_own(run, out, whole):
    assert run("--max-new-tokens", 5)[0] == 0
    assert texts(out) != whole
    assert run("--restart")[0] == 0 and texts(out) == whole
    assert set(attempts(out).values()) == {1}


def test_a_ledger_that_is_lost_or_empty_is_told_and_a_restart_helps(run, out, whole):
    assert run()[0] == 0
    for lost in (lambda: (out / "scope.db").unlink(), lambda: (out / "scope.db").write_bytes(b"")):
        lost()
        code, said = run()
        assert code == 2 and "by a job whose ledger is not there any more, or empty" in said
        assert "--restart" in said and texts(out) == whole
        assert run("--restart")[0] == 0 and texts(out) == whole


# A ledger that a disk has damaged


def turned(text, draw):
    """Text as SQLite holds it, one bit of it other than it was."""
    content = bytearray(text.encode())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


@pytest.mark.parametrize("column", ["record", "meta", "sampling"])
def test_a_row_whose_entry_is_damaged_is_run_again(run, scope, out, whole, column):
    """Every byte, whatever it becomes: no JSON, other JSON, no UTF-8."""
    assert run()[0] == 0
    draw, database = random.Random(0), sqlite3.connect(out / "scope.db")
    for _ in range(3):
        if column == "meta":
            database.execute("UPDATE rows SET meta = ?", (sealed({"page": 3}),))
        ((text,),) = database.execute(f"SELECT {column} FROM rows WHERE id = '2.txt'").fetchall()
        changed = turned(text, draw)
        database.execute(f"UPDATE rows SET {column} = CAST(? AS TEXT) WHERE id = '2.txt'", (changed,))
        database.commit()
        for more in ([], ["--json"], ["--report"]):
            result = scope("batch", "--status", out, *more)
            assert result.code == 0 and "Traceback" not in result.stderr
            assert DAMAGED in result.stdout
        code, said = run()
        assert code == 0 and f"2.txt: {DAMAGED}; it is run again" in said
        assert texts(out) == whole
    database.close()


def test_a_prompt_that_is_damaged_in_the_ledger_is_never_run(run, out, whole):
    assert run("--limit", 1)[0] == 0
    database = sqlite3.connect(out / "scope.db")
    ((content,),) = database.execute("SELECT prompt_ids FROM rows WHERE id = '2.txt'").fetchall()
    database.execute("UPDATE rows SET prompt_ids = ? WHERE id = '2.txt'", (b"\1" + content[1:],))
    database.commit()
    database.close()
    code, said = run()
    assert code == 1 and f"2.txt: failed: {DAMAGED}: its prompt" in said
    assert run("--retry-failed")[0] == 0 and texts(out) == whole


@pytest.mark.parametrize("what", ["settings", "memory", "plan"])
def test_settings_and_groups_that_are_damaged_are_told(run, scope, out, whole, what):
    assert run("--limit", 1)[0] == 0
    table, column, where = ("groups", "plan", "1") if what == "plan" else ("job", "value", f"key = '{what}'")
    database = sqlite3.connect(out / "scope.db")
    ((text, *_),) = database.execute(f"SELECT {column} FROM {table} WHERE {where} LIMIT 1").fetchall()
    changed = turned(text, random.Random(1))
    database.execute(f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE {where}", (changed,))
    database.commit()
    database.close()
    code, said = run()
    assert code == 2 and "scope.db is damaged" in said and "--restart starts over" in said
    if what != "memory":
        assert scope("batch", "--status", out, "--json").code == 2
    assert run("--restart")[0] == 0 and texts(out) == whole


@pytest.mark.parametrize("times", [30, pytest.param(100, marks=pytest.mark.long)])
def test_a_byte_of_the_file_that_is_turned_never_ends_in_a_traceback(run, tmp_path, out, capfd, times):
    """Anywhere in the file, and often in its first 100 bytes: what can be read is read, all else is told."""
    from scope_cli.batch.report import page
    from scope_cli.batch.results import as_result
    from scope_cli.batch.status import print_status, status_json

    assert run()[0] == 0
    content, draw, refused = (out / "scope.db").read_bytes(), random.Random(2), 0
    other = tmp_path / "other"
    other.mkdir()
    for time in range(times):
        changed = bytearray(content)
        changed[draw.randrange(len(content) if time % 3 else 100)] ^= 1 << draw.randrange(8)
        for left in other.glob("scope.db*"):
            left.unlink()
        (other / "scope.db").write_bytes(changed)
        try:
            ledger = Ledger(other)
        except UsageError:
            refused += 1
            continue
        try:
            ledger.check()
            ledger.mend()
            ledger.recover(())
            print_status(ledger, other)
            capfd.readouterr()
            assert status_json(ledger, other) and page(ledger, "x")
            assert all(as_result(other, row) for row in ledger.rows())
        except UsageError:
            refused += 1
        finally:
            ledger.close()
    assert 0 < refused < times
    capfd.readouterr()


def test_older_ledgers_without_checksums_are_read():
    assert unsealed('{"a": 1}') == {"a": 1} and unsealed(sealed({"a": 1})) == {"a": 1}
    with pytest.raises(ValueError, match="checksum"):
        unsealed(sealed({"a": 1}).replace("a", "b"))


# One row


@pytest.mark.parametrize(
    "error",
    [
        TypeError("can only concatenate str"),
        RecursionError("too deep"),
        MemoryError(),
        PanicException("at x.rs"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"),
        StopIteration(),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["tokenizer", "plan", "text"])
def test_whatever_one_row_raises_it_fails_alone(run, out, whole, monkeypatch, error, where):
    """In its template or tokenizer, while it is planned, while its text is taken."""
    from scope_cli.engine import text

    if where == "tokenizer":
        encode = Chat.prompt

        def breaks(self, text, *args):
            if text.startswith("2.txt"):
                raise error
            return encode(self, text, *args)

        monkeypatch.setattr(Chat, "prompt", breaks)
    elif where == "plan":
        plan = start.tokenise.__globals__["Demand"].of
        calls = []

        def breaks_too(number, *args):
            calls.append(number)
            if number == 1:
                raise error
            return plan(number, *args)

        monkeypatch.setattr("scope_cli.batch.job.Demand.of", breaks_too)
    else:
        if isinstance(error, MemoryError):
            pytest.skip("memory that ends is another matter")
        feed = text.TextStream.feed

        def breaks_when_written(self, token_id):
            if bytes(self._ids[:1]) == b"2" or getattr(self, "second", False):
                self.second = True
                raise error
            return feed(self, token_id)

        monkeypatch.setattr(text.TextStream, "feed", breaks_when_written)
    code, said = run()
    assert code == 1 and f"2.txt: {'failed: ' if where == 'text' else ''}{type(error).__name__}" in said
    assert texts(out) == {name: one for name, one in whole.items() if name != "2.txt"}
    (failed,) = Ledger(out).rows("failed")
    assert "Traceback" in failed.detail
    monkeypatch.undo()
    assert run("--retry-failed")[0] == 0 and texts(out) == whole


def test_a_template_that_breaks_on_one_conversation_fails_it_alone(run, tmp_path, out):
    from tests.helpers.tiny import tiny_model, tiny_tokenizer

    template = (
        "{% for m in messages %}{% if 'add' in m.content %}{{ 'a' + 5 }}{% endif %}"
        "{% if 'zero' in m.content %}{{ 1/0 }}{% endif %}{{ m.content }}{% endfor %}"
    )
    folder = tmp_path / "model"
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer(template).save_pretrained(folder)
    lines = [
        {"id": word, "messages": [{"role": "user", "content": word}]} for word in ("add", "fine", "zero")
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, _ = run("--model", folder, prompts=tmp_path / "p.jsonl")
    assert code == 1
    assert states(out) == {"add": "failed", "fine": "done", "zero": "failed"}


@pytest.mark.parametrize("temperature", [0, 1])
def test_numbers_that_are_none_fail_their_row_alone(run, tmp_path, out, tiny_folder, temperature):
    """A checkpoint that is broken for one token: who has it in the prompt has failed."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.get_input_embeddings().weight.data[1] = torch.nan  # the byte 1, which is nobody's likeliest
    model.save_pretrained(folder)
    lines = [{"id": str(number), "prompt": "a\x01" if number % 2 else "ab"} for number in range(6)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    more = ("--temperature", temperature, "--top-k", 5, "--model", folder)
    code, said = run(*more, prompts=tmp_path / "p.jsonl")
    assert code == 1
    assert states(out) == {str(number): "failed" if number % 2 else "done" for number in range(6)}
    assert "1: failed: the model computed no numbers for token 1 of the output" in said
    assert "NaN" not in (out / "results.jsonl").read_text()
    alone = tmp_path / "alone"
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(line) for line in lines if line["prompt"] == "ab"))
    assert run(*more, prompts=tmp_path / "q.jsonl", out=alone)[0] == 0
    for name in ("0.txt", "2.txt", "4.txt"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()


def test_odd_lines_fail_alone(run, tmp_path, out):
    odd = [
        b'{"id":"deep","prompt":"hi","meta":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id":"big","prompt":"hi","sampling":{"seed":' + b"9" * 30 + b"}}",
        b'{"id":"inf","prompt":"hi","meta":1e999}',
        b'{"id":"half","prompt":"\\ud800"}',
        b'{"id":"bytes\xff","prompt":"hi"}',
        b"\x00" * 50,
    ]
    good = b'{"id":"good %d","prompt":"hi"}'
    lines = [part for place, line in enumerate(odd) for part in (line, good % place)]
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(lines))
    code, _ = run(prompts=tmp_path / "p.jsonl")
    assert code == 1
    found = list(states(out).values())
    assert found.count("failed") == len(odd) and found.count("done") == len(odd)


def test_a_folder_whose_own_name_is_no_utf8_is_like_any_other(run, tmp_path, prompts, whole):
    odd = tmp_path / os.fsdecode(b"p\xff")
    try:
        shutil.copytree(prompts, odd)
    except OSError:
        pytest.skip("this disk takes no such names")
    assert run(prompts=odd, out=odd / os.fsdecode(b"out\xfe"))[0] == 0
    assert texts(odd / os.fsdecode(b"out\xfe")) == whole


# What may change while a job goes on


def test_another_compile_or_order_or_number_of_threads_does_not_stop_a_job(run, out, whole):
    assert run("--limit", 2)[0] == 0
    code, said = run("--compile", "on", "--order", "longest", "--threads", 2)
    assert code == 0 and texts(out) == whole, "what is planned keeps its compiled step, or none"
    assert 'note: model.compile: "off" before, "on" now: what is planned already keeps it' in said
    assert "note: order: " in said and "threads" not in said
