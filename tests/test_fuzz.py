"""Folders of small models, damaged by chance: refused in a line, or written as transformers writes."""

import json
import random
import shutil
import signal
from contextlib import redirect_stderr
from io import StringIO

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scope_cli.machine.setup import hushed
from tests.helpers.tiny import tiny_model, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WRITTEN = 6
CASES = 300
USUAL = 40  # of them, in every run
HANGS_AFTER_S = 120  # a busy machine takes some seconds


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, family, options in (
        ("llama", "llama", {}),
        ("shards", "llama", {"max_shard_size": "10KB"}),
        ("gemma3", "gemma3", {}),
        ("qwen3", "qwen3", {}),
    ):
        made[name] = tmp_path_factory.mktemp(name)
        tiny_model(family, torch.float32).save_pretrained(made[name], **options)
        tiny_tokenizer(TEMPLATE).save_pretrained(made[name])
    return made


def damage(folder, folders, chance):
    """One file of a folder is cut, flipped, emptied or swapped; where tensors may have other values, True."""
    files = sorted(one for one in folder.iterdir() if one.is_file())
    file = chance.choice(files)
    content = bytearray(file.read_bytes())
    how = chance.choice(["cut", "flip", "flip", "flip", "empty", "swap with another", "swap parts", "zeros"])
    first_of_data = len(content)
    if file.suffix == ".safetensors":
        first_of_data = 8 + int.from_bytes(content[:8], "little")
        if how == "flip" and chance.random() < 0.7:  # else nearly all of them hit the data
            first_of_data, data = first_of_data, first_of_data
        else:
            data = len(content)
    else:
        data = len(content)
    touched = 0
    if how == "cut":
        del content[chance.randrange(len(content)) :]
    elif how == "flip":
        for _ in range(chance.randint(1, 3)):
            touched = chance.randrange(data)
            content[touched] ^= 1 << chance.randrange(8)
    elif how == "empty":
        content.clear()
    elif how == "zeros":
        content[:] = bytes(len(content))
    elif how == "swap parts":
        size = max(1, len(content) // 8)
        one, other = sorted(chance.randrange(max(1, len(content) - size)) for _ in range(2))
        a, b = content[one : one + size], content[other : other + size]
        content[other : other + size] = a
        content[one : one + size] = b
        touched = one
    else:
        others = [folders[name] / file.name for name in folders if (folders[name] / file.name).is_file()]
        other = chance.choice([*others, *files])
        content[:] = other.read_bytes()
    file.write_bytes(bytes(content))
    of_weights = file.suffix == ".safetensors"
    return f"{how} {file.name}", of_weights and (touched >= first_of_data or how == "swap with another")


def ids_of_transformers(folder):
    """What transformers writes of the same folder, damaged as it is; None where it cannot."""
    try:
        with hushed(), redirect_stderr(StringIO()), torch.no_grad():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt"
            )["input_ids"]
            for _ in range(WRITTEN):
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
            return ids[0, -WRITTEN:].tolist()
    except Exception:
        return None


def run(scope, folder):
    """The outcome, and the ids that were written."""
    argv = ["generate", "hi", "-m", folder, "--temperature", "0", "--max-new-tokens", WRITTEN, "-q", "--json"]
    result = scope(*argv, "--offline", "--kv", "plain")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return result, [one["token_id"] for one in events if one["event"] == "token"]


def check(case, folders, tmp_path, scope):
    chance = random.Random(case)
    folder = shutil.copytree(folders[chance.choice(sorted(folders))], tmp_path / "it")
    what, values_differ = damage(folder, folders, chance)

    def hangs(number, frame):
        raise AssertionError(f"{what}: hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS_AFTER_S)
    try:
        result, ids = run(scope, folder)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert "Traceback" not in result.stderr and "traceback" not in result.stderr, (what, result.stderr)
    assert result.code in (0, 1, 2), (what, result)
    if result.code:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (what, result.stderr)
        assert result.code == 2 or "no number" in result.stderr or "numbers" in result.stderr, (what, result)
    elif not values_differ:
        assert ids and ids == ids_of_transformers(folder)[: len(ids)], (what, result)


@pytest.mark.parametrize("case", range(USUAL))
def test_a_damaged_folder_is_refused_or_read_as_transformers_reads_it(case, folders, tmp_path, scope):
    check(case, folders, tmp_path, scope)


@pytest.mark.long
@pytest.mark.parametrize("case", range(USUAL, CASES))
def test_more_damaged_folders(case, folders, tmp_path, scope):
    check(case, folders, tmp_path, scope)


def test_what_is_whole_is_written_as_transformers_writes_it(folders, scope):
    for folder in folders.values():
        result, ids = run(scope, folder)
        assert result.code == 0 and ids == ids_of_transformers(folder)[: len(ids)]
        assert len(set(ids)) > 1
