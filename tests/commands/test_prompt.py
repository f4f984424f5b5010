"""A prompt that was read once: the texts that start from its file are those that read it."""

import json

import pytest
import torch

from tests.helpers.tiny import tiny_model, tiny_tokenizer

SNAPKV = ["--prefill", "snapkv", "--prefill-budget", 40, "--set", "prefill.window=8"]
WAYS = {
    "whole": [],
    "snapkv": SNAPKV,
    "own sizes": [*SNAPKV, "--set", "prefill.wrap=[adakv]"],
    "unprotected": ["--set", "decode.protect_prompt=false", "--scorer", "accumulated"],
}
READ = "\n".join(f"Line {number} of the lighthouse keeper's logbook." for number in range(4))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "report.txt").write_text(READ)
    return tmp_path


@pytest.fixture
def writes(tiny_folder):
    return ["--model", tiny_folder, "--ignore-eos", "--max-new-tokens", 60, "--budget", 24, "--recent", 8,
            "--temperature", 1, "-q"]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("samples", [1, 2])
def test_a_text_from_a_prompt_file_is_that_of_the_prompt(scope, folder, writes, tiny_folder, way, samples):
    if way == "own sizes" and samples > 1:
        samples, lanes = 2, ["--lanes", 1]
    else:
        lanes = []
    report, kept = folder / "report.txt", folder / "report.scope"
    more = ["-n", samples, *lanes, *writes]
    read = scope("generate", "-f", report, *more, *WAYS[way])
    assert scope("prompt", "save", "-f", report, "-o", kept, "--model", tiny_folder, *WAYS[way]).code == 0
    policy = WAYS[way] if way == "unprotected" else []
    ran = scope("generate", "--prompt-cache", kept, *more, *policy)
    assert (ran.code, ran.stdout) == (0, read.stdout)


def test_nothing_is_read_and_the_summary_says_so(scope, folder, writes, tiny_folder):
    kept = folder / "report.scope"
    saved = scope("prompt", "save", "-f", folder / "report.txt", "-o", kept, "--model", tiny_folder)
    assert "tokens, " in saved.stderr and "--prompt-cache" in saved.stderr
    assert scope("prompt", "show", kept).stdout in saved.stderr
    ran = scope("generate", "--prompt-cache", kept, *writes[:-1], "-o", folder / "out.txt")
    record = json.loads((folder / "out.txt.run.json").read_text())
    assert ran.code == 0 and record["results"][0]["read_tokens"] == 0
    assert record["prompt"]["file"] == str(kept)


def test_what_does_not_fit_is_refused(scope, folder, writes, tiny_folder):
    kept = folder / "report.scope"
    save = ["prompt", "save", "-f", folder / "report.txt", "-o", kept, "--model", tiny_folder]
    assert scope(*save).code == 0
    again = scope(*save)
    assert again.code == 2 and "--force" in again.stderr
    other = folder / "other"
    tiny_model(dtype=torch.float32, seed=1).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    cases = [
        (["hi", "--prompt-cache", kept, *writes], "give no other"),
        (["--prompt-cache", kept, *writes, "--prefill", "streaming", "--prefill-budget", 40], "--prefill"),
        (["--prompt-cache", folder / "report.txt", *writes], "no state"),
        (["--prompt-cache", folder / "no.scope", *writes], "cannot read"),
        (["--prompt-cache", kept, *writes, "--model", other], "another model"),
    ]
    for argv, said in cases:
        refused = scope("generate", *argv)
        assert refused.code == 2 and said in refused.stderr, refused.stderr
    lru = scope("generate", "--prompt-cache", kept, *writes, "--scorer", "lru")
    assert lru.code == 1 and "does not fit" in lru.stderr


def test_a_prompt_that_was_read_to_be_kept_is_not_one_that_may_be_evicted(scope, folder, writes, tiny_folder):
    """Where it does not fit the policy of now, no text is written."""
    may_go = ["--set", "decode.protect_prompt=false"]
    for number, (then, now) in enumerate(((may_go, []), ([], may_go))):
        kept = folder / f"{number}.scope"
        save = ["prompt", "save", "-f", folder / "report.txt", "-o", kept, "--model", tiny_folder]
        assert scope(*save, *then).code == 0
        refused = scope("generate", "--prompt-cache", kept, *writes, *now)
        assert (refused.code, refused.stdout) == (1, "") and "protect_prompt" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_the_file_says_which_model_reads_on_wherever_one_is(scope, folder, writes, tiny_folder, monkeypatch):
    (folder / "model").symlink_to(tiny_folder)
    monkeypatch.chdir(folder)
    assert scope("prompt", "save", "-f", "report.txt", "-o", "report.scope", "--model", "model").code == 0
    read = scope("generate", "-f", "report.txt", *writes)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    ran = scope("generate", "--prompt-cache", "../report.scope", *writes[2:])
    assert (ran.code, ran.stdout) == (0, read.stdout), ran.stderr
