"""Whatever ends a run, `scope resume` writes the text that it would have written; or nothing at all."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from scope_cli.engine.checkpoint import Checkpoint, read_checkpoint, read_facts, write_checkpoint
from scope_cli.sinks import states
from tests.helpers.forked import Forked
from tests.helpers.tiny import tiny_model, tiny_tokenizer

THINKS_FOR_A_WHILE = 9  # a seed: the tiny model ends its thought after 74 tokens
KINDS = {  # one text and three, greedy and sampled; a small budget, so that tokens are evicted
    "greedy": ["the sea", "--temperature", 0, "--scorer", "lru"],
    "sampled": ["the sea", "--temperature", 1, "--scorer", "random", "--stop", "zzz"],
    "three in two lanes": ["the sea", "-n", 3, "--lanes", 2, "--temperature", 1, "--strategy", "adaptive"],
}


@pytest.fixture
def argv(tiny_folder):
    def argv(kind, folder, *more):
        return [
            "generate", *KINDS[kind], "-o", folder / "story.txt", "--model", tiny_folder, "--ignore-eos",
            "--max-new-tokens", 120, "--budget", 40, "--recent", 8, "--interval", 8, "--compile", "off",
            *more,
        ]  # fmt: skip

    return argv


@pytest.fixture
def scope_in(scope, tmp_path):
    """`scope`, and the folder that holds its texts."""
    folder = tmp_path / "texts"
    folder.mkdir()
    return scope, folder


def texts(folder):
    return {file.name: file.read_bytes() for file in folder.glob("story*.txt")}


def everything(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def whole(scope, argv, tmp_path):
    """The texts of a run that nobody disturbed, which leaves no state."""

    def whole(kind):
        folder = tmp_path / "whole"
        folder.mkdir()
        assert scope(*argv(kind, folder, "-q")).code == 0
        assert not list(folder.glob("*.state*"))
        return texts(folder)

    return whole


def wait_for(process, folder, tokens):
    """Some text is there that a state knows of."""
    while process.alive:
        for file in folder.glob("*.state"):
            lane = read_facts(file)["lane"]
            if lane and lane["written"] >= tokens:
                return
        time.sleep(0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_random_moments_change_no_byte(kind, scope_in, argv, whole, tmp_path):
    (scope, folder), expected, draw = scope_in, whole(kind), random.Random(kind)
    process = Forked(tmp_path / "said", *argv(kind, folder, "--checkpoint-every", 0.01))
    kills = 0
    for _ in range(3):
        wait_for(process, folder, 1 + 20 * kills)
        time.sleep(draw.uniform(0, 0.05))
        kills += process.alive
        process.kill()
        left = sorted(folder.glob("*.state"))
        if not left:
            break
        process = Forked(
            tmp_path / "said", "resume", str(left[0])[: -len(".state")], "--checkpoint-every", 0.01
        )
    process.wait()
    for state in sorted(folder.glob("*.state")):
        if state.exists():  # the first takes the others with it
            assert scope("resume", str(state).removesuffix(".state")).code == 0
    assert kills and texts(folder) == expected
    assert not list(folder.glob("*.state*"))


@pytest.mark.parametrize("thinking", ["hide", "show"])
def test_a_run_that_is_broken_off_inside_a_thought_goes_on_inside_it(
    thinking, scope_in, argv, tiny_folder, tmp_path
):
    """The prompt's end begins the thought; what is hidden stays hidden, and is counted."""
    (scope, folder), model, whole = scope_in, tmp_path / "thinks", tmp_path / "whole"
    shutil.copytree(tiny_folder, model)
    for file in (model / "tokenizer.json", model / "tokenizer_config.json"):
        named = file.read_text().replace("<pad>", "<think>").replace("<end>", "</think>")
        file.write_text(named)
    more = ["--model", model, "--thinking", thinking, "--allow-control-tokens", "--seed", THINKS_FOR_A_WHILE]

    def command(where):
        words = argv("sampled", where, *more)
        return ["the sea <think>" if word == "the sea" else word for word in words]

    whole.mkdir()
    assert scope(*command(whole), "-q").code == 0
    assert scope(*command(folder), "--max-new-tokens", 20, "--keep-checkpoint", "-q").code == 0
    assert scope("resume", folder / "story.txt", "--max-new-tokens", 120).code == 0
    assert texts(folder) == texts(whole) and texts(whole)["story.txt"]
    thoughts, expected = (
        json.loads((where / "story.txt.run.json").read_text())["results"][0]["thinking_tokens"]
        for where in (folder, whole)
    )
    assert thoughts == expected and 20 < thoughts < 120, "broken off inside it, and out of it again"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_every_token(number, scope_in, argv, whole, tmp_path):
    (scope, folder), expected = scope_in, whole("sampled")
    process = Forked(tmp_path / "said", *argv("sampled", folder, "--checkpoint-every", 0.01))
    wait_for(process, folder, 5)
    process.send_signal(number)
    assert process.wait() == 128 + number and "scope resume" in process.stderr
    record = json.loads((folder / "story.txt.run.json").read_text())
    tokens = record["results"][0]["output_tokens"]
    assert 5 <= tokens < 120 and read_facts(folder / "story.txt.state")["lane"]["written"] == tokens
    before = (folder / "story.txt").read_bytes()
    ran = scope("resume", folder / "story.txt.run.json")
    assert ran.code == 0 and f"continues after {tokens} tokens" in ran.stderr
    assert texts(folder) == expected and expected["story.txt"].endswith(ran.stdout.rstrip("\n").encode())
    assert len(before) <= len(expected["story.txt"])
    record = json.loads((folder / "story.txt.run.json").read_text())
    assert record["status"] == "finished" and record["resumed"][0]["tokens"] == tokens
    assert record["results"][0]["output_tokens"] == 120 and record["command"][1] == "generate"


def test_texts_that_were_not_begun_are_begun(scope_in, argv, whole, tmp_path):
    (scope, folder), expected = scope_in, whole("three in two lanes")
    process = Forked(tmp_path / "said", *argv("three in two lanes", folder, "--checkpoint-every", 0.01))
    wait_for(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    process.wait()
    waiting = [file.name for file in folder.glob("*.state") if read_facts(file)["lane"] is None]
    assert waiting == ["story-3.txt.state"]
    assert scope("resume", folder / "story-2.txt", "-q").code == 0
    assert texts(folder) == expected and not list(folder.glob("*.state"))


def test_a_run_that_was_killed_between_its_first_states_is_begun_anew(scope_in, argv, whole, tmp_path):
    """No text has begun by then, and one that goes on alone would leave the others empty."""
    (scope, folder), expected = scope_in, whole("three in two lanes")
    process = Forked(tmp_path / "said", *argv("three in two lanes", folder, "--checkpoint-every", 9999))
    while process.alive and not (folder / "story-3.txt.state").is_file():
        time.sleep(0.001)
    process.kill()
    begun = not all(read_facts(file)["lane"] is None for file in folder.glob("*.state"))
    (folder / "story-3.txt.state").unlink()
    (folder / "story-2.txt.state").unlink()
    assert not begun and len(list(folder.glob("*.state"))) == 1
    before = everything(folder)
    refused = scope("resume", folder / "story-1.txt", "-q")
    assert (refused.code, refused.stdout) == (2, "") and everything(folder) == before
    assert "story-2.txt, story-3.txt" in refused.stderr and "--force" in refused.stderr
    assert scope(*argv("three in two lanes", folder, "--force", "-q")).code == 0
    assert texts(folder) == expected


def test_what_has_lost_its_state_is_named_when_the_others_go_on(scope_in, argv, tmp_path):
    scope, folder = scope_in
    process = Forked(tmp_path / "said", *argv("three in two lanes", folder, "--checkpoint-every", 0.01))
    wait_for(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    process.wait()
    (folder / "story-3.txt.state").unlink()
    ran = scope("resume", folder / "story-1.txt", "-q")
    assert ran.code == 0 and "no state was kept of story-3.txt" in ran.stderr


def test_a_text_that_is_through_can_be_made_longer(scope_in, argv, whole, tmp_path):
    (scope, folder), expected = scope_in, whole("sampled")
    short = argv("sampled", folder, "--keep-checkpoint", "--max-new-tokens", 50, "-q")
    assert scope(*short).code == 0 and len(texts(folder)["story.txt"]) < len(expected["story.txt"])
    before = everything(folder)
    for more in ([], ["--max-new-tokens", 50]):
        refused = scope("resume", folder / "story.txt", *more)
        assert refused.code == 2 and "is finished" in refused.stderr and everything(folder) == before
    assert scope("resume", folder / "story.txt", "--max-new-tokens", 120, "-q").code == 0
    assert texts(folder) == expected


@pytest.fixture
def broken_off(scope_in, argv, tmp_path, tiny_folder):
    """A text that was interrupted, its folder, and a model that can be changed."""
    scope, folder = scope_in
    process = Forked(tmp_path / "said", *argv("sampled", folder, "--checkpoint-every", 0.01))
    wait_for(process, folder, 5)
    process.send_signal(signal.SIGTERM)
    process.wait()
    return scope, folder


def damage(state):
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)


def of_another_model(state):
    """Its profile names a folder whose weights are others by now."""
    other = state.parent.parent / "other"
    tiny_model(dtype=torch.float32, seed=1).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    kept = read_checkpoint(state)
    kept.facts["profile"]["model"]["name"] = str(other)
    write_checkpoint(state, kept)


SPOILED = {
    "damaged": (damage, "damaged"),
    "cut off": (lambda state: os.truncate(state, 5000), "damaged"),
    "foreign": (lambda state: state.write_text("Once upon a time."), "no state"),
    "gone": (lambda state: state.unlink(), "story.txt.state"),
    "another model": (of_another_model, "has changed: other weights"),
    "text longer": (lambda state: append(state.with_suffix(""), b" The end."), "has changed since"),
    "text shorter": (lambda state: os.truncate(state.with_suffix(""), 1), "has changed since"),
    "text other": (lambda state: overwrite(state.with_suffix("")), "has changed since"),
    "text gone": (lambda state: state.with_suffix("").unlink(), "cannot read"),
}


def append(file, content):
    file.write_bytes(file.read_bytes() + content)


def overwrite(file):
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


@pytest.mark.parametrize("how", SPOILED)
def test_what_cannot_be_gone_on_with_is_refused_and_nothing_is_touched(broken_off, how):
    scope, folder = broken_off
    spoil, said = SPOILED[how]
    spoil(folder / "story.txt.state")
    before = everything(folder)
    refused = scope("resume", folder / "story.txt")
    assert (refused.code, refused.stdout) == (2, "") and everything(folder) == before
    assert refused.stderr.count("error:") == 1 and said in refused.stderr, refused.stderr


def test_runs_says_what_is_through_and_what_goes_on(broken_off, argv):
    scope, folder = broken_off
    done = argv("greedy", folder, "--max-new-tokens", 20)
    done[done.index("-o") + 1] = folder / "done.txt"
    assert scope(*done).code == 0
    (folder / "foreign.run.json").write_text("[1, 2]")
    shown = scope("runs", folder)
    assert shown.code == 0 and "`scope resume story.txt`" in shown.stdout and "20 of 20" in shown.stdout
    found = {run["text"]: run for run in json.loads(scope("runs", folder, "--json").stdout)}
    assert found.keys() == {"done.txt", "story.txt"}
    assert (found["done.txt"]["status"], found["done.txt"]["goes_on"]) == ("finished", False)
    assert (found["story.txt"]["status"], found["story.txt"]["goes_on"]) == ("interrupted", True)
    record = json.loads((folder / "story.txt.run.json").read_text())
    (folder / "story.txt.run.json").write_text(json.dumps(record | {"status": "running", "results": []}))
    killed = json.loads(scope("runs", folder, "--json").stdout)[1]
    written = read_facts(folder / "story.txt.state")["lane"]["written"]
    assert (killed["status"], killed["tokens"]) == ("killed", written)
    assert "no text" in scope("runs", folder.parent).stdout and scope("runs", folder / "no").code == 2


def test_other_versions_go_on_and_say_so(broken_off):
    scope, folder = broken_off
    kept = read_checkpoint(folder / "story.txt.state")
    kept.facts["versions"]["torch"] = "1.0"
    kept.facts["depends_on"]["threads"] = 99
    write_checkpoint(folder / "story.txt.state", kept)
    ran = scope("resume", folder / "story.txt")
    assert ran.code == 0 and "the text may differ" in ran.stderr
    assert "torch 1.0 then" in ran.stderr and "threads 99 then" in ran.stderr


def test_a_text_goes_on_from_any_folder(scope, tmp_path, tiny_folder, monkeypatch):
    """Its model and its calibration were named as seen from where it was begun."""
    (tmp_path / "model").symlink_to(tiny_folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("the sea and the lighthouse " * 40)
    made = scope("calibrate", "queries.safetensors", "--text", "words.txt", "--model", "model")
    assert made.code == 0, made.stderr
    tri = ["--set", "decode.scorer={name: tri, calibration: queries.safetensors}"]
    begun = ["generate", "the sea", "-o", "story.txt", "--model", "model", "--budget", 20, "--ignore-eos"]
    ran = scope(*begun, *tri, "--max-new-tokens", 40, "--keep-checkpoint")
    assert ran.code == 0, ran.stderr
    monkeypatch.chdir(tmp_path / "elsewhere")
    ran = scope("resume", "../story.txt", "--max-new-tokens", 60)
    assert ran.code == 0, ran.stderr


def test_a_second_run_does_not_write_over_what_can_be_gone_on_with(broken_off, argv):
    scope, folder = broken_off
    before = everything(folder)
    refused = scope(*argv("sampled", folder))
    assert refused.code == 2 and "scope resume" in refused.stderr and everything(folder) == before


def test_a_disk_that_is_full_for_states_loses_no_text(scope_in, argv, whole, monkeypatch):
    (scope, folder), expected, written = scope_in, whole("sampled"), []

    def full(path, checkpoint, width=0):
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        written.append(checkpoint.facts["lane"])
        return write_checkpoint(path, checkpoint, width)

    monkeypatch.setattr(states, "write_checkpoint", full)
    monkeypatch.setattr(states, "remove_checkpoint", lambda path: None)
    ran = scope(*argv("sampled", folder, "--checkpoint-every", 0))
    assert ran.code == 0 and texts(folder) == expected
    assert ran.stderr.count("warning: cannot write") == 1
    kept = read_checkpoint(folder / "story.txt.state")
    assert kept.facts["lane"] == written[-1]


def test_no_checkpoint_keeps_none_and_a_state_does_not_grow(scope_in, argv, monkeypatch):
    scope, folder = scope_in
    sizes = set()

    def noted(path, checkpoint, width=0):
        width = write_checkpoint(path, checkpoint, width)
        if checkpoint.facts["lane"]:
            sizes.add(path.stat().st_size)
        return width

    monkeypatch.setattr(states, "write_checkpoint", noted)
    assert scope(*argv("sampled", folder, "--no-checkpoint")).code == 0 and not sizes
    assert scope(*argv("sampled", folder, "--force", "--checkpoint-every", 0)).code == 0
    assert len(sizes) == 1


def test_a_text_behind_another_goes_on_behind_it(scope_in, argv, tmp_path, whole):
    (scope, folder), expected = scope_in, whole("sampled")
    (folder / "story.txt").write_text("Before.\n")
    process = Forked(tmp_path / "said", *argv("sampled", folder, "--append", "--checkpoint-every", 0.01))
    wait_for(process, folder, 5)
    process.kill()
    assert scope("resume", folder / "story.txt", "-q").code == 0
    assert (folder / "story.txt").read_bytes() == b"Before.\n" + expected["story.txt"]


@pytest.mark.parametrize("kept_none", [True, False])
@pytest.mark.parametrize("way", ["--force", "--append", "deleted"])
def test_a_state_from_before_does_not_outlive_new_text(broken_off, argv, monkeypatch, way, kept_none):
    """It knew a prompt alone: nothing in the new text would have told scope resume that it is another's."""
    scope, folder = broken_off
    story, state = folder / "story.txt", folder / "story.txt.state"
    kept = read_checkpoint(state)
    facts = kept.facts | {"lane": None, "text": kept.facts["text"] | {"end": 0}}
    write_checkpoint(state, Checkpoint(facts, {"ids": torch.arange(3, dtype=torch.int32)}))
    if way == "deleted":
        story.unlink()
    if not kept_none:
        monkeypatch.setattr(states, "write_checkpoint", raises(OSError(28, "No space left on device")))
    more = [way] * (way != "deleted") + ["--no-checkpoint" if kept_none else "--keep-checkpoint"]
    assert scope(*argv("greedy", folder, *more)).code == 0
    written = story.read_bytes()
    assert not state.exists()
    assert scope("resume", story).code == 2 and story.read_bytes() == written != b""


def raises(error):
    def fail(*given):
        raise error

    return fail
