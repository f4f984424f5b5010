"""The embedded model itself: the same tokens as transformers, and thousands of tokens within the budget."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.schema import ModelSettings, PromptSettings
from tests.helpers.greedy import plain, write

pytestmark = pytest.mark.real_model
TOKENS = 64
PROMPT = "List ten animals, and write one surprising sentence about each of them."


@pytest.fixture(scope="module")
def opened():
    return open_model(ModelSettings(name="smollm2-135m", dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def expected(opened):
    """What transformers writes with its own cache and attention."""
    prompt = opened.encode(PROMPT, PromptSettings())
    return prompt, plain(opened.load(attention="sdpa").model, prompt, TOKENS)


@pytest.fixture(scope="module")
def model(opened):
    return opened.load().model


@pytest.mark.parametrize("strategy", ["full", "slide", "adaptive", "discontinuous"])
def test_a_budget_that_fits_everything_changes_no_token(opened, model, expected, strategy):
    prompt, ids = expected
    assert len(set(ids)) > TOKENS / 2, "the text must be one that can differ"
    got = write(model, prompt, TOKENS, opened.tokenizer, strategy=strategy, budget=4096, recent=64)
    assert got == ids


def test_a_small_budget_does_change_the_text(opened, model, expected):
    prompt, ids = expected
    small = write(model, prompt, TOKENS, opened.tokenizer, strategy="slide", budget=24, recent=8, interval=1)
    assert small != ids and small[:24] == ids[:24]


def test_int4_is_the_files_own_weights(model):
    """The default. Codes are kept, scales rounded to bfloat16; what that moves is less than bfloat16 does."""
    default = open_model(ModelSettings(name="smollm2-135m", device="cpu"))
    assert default.load_in == "int4"
    packed = default.load(attention="sdpa").model
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            blocks = module.weight.unflatten(1, (-1, 32))
            error = (packed.model.layers.get_submodule(name).weight - module.weight).unflatten(1, (-1, 32))
            step = (blocks.amax(2) - blocks.amin(2)) / 15
            assert (error.abs().amax(2) <= step / 32 + blocks.abs().amax(2) / 512).all()

    def answers(loaded):
        ids = loaded.opened.tokenizer(Path("examples/report.txt").read_text())["input_ids"][:300]
        model = loaded.model
        return torch.cat([model(torch.tensor([part])).logits[0] for part in (ids[:80], ids[80:160])])

    expected, halves = (
        answers(open_model(ModelSettings(name="smollm2-135m", device="cpu", dtype=dtype)).load("sdpa"))
        for dtype in ("float32", "bfloat16")
    )
    assert kl(expected, answers(LoadedModel(packed, default))) < min(2e-3, kl(expected, halves))


def kl(expected, got):
    expected, got = (logits.float().log_softmax(-1) for logits in (expected, got))
    return float((expected.exp() * (expected - got)).sum(-1).mean())


@pytest.mark.once
def test_what_make_run_writes_is_what_the_tutorial_shows(scope, tmp_path):
    """Its text, and every line of its summary that holds no time, peak or advice."""
    tutorial = Path("docs/tutorial/first-long-text.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\t\$\(BIN\)/scope (.+)$", Path("Makefile").read_text(), re.MULTILINE)
    assert f"scope {line}\n" in tutorial
    result = scope(*shlex.split(line), "--output", tmp_path / "bread.txt")
    assert result.code == 0 and (tmp_path / "bread.txt").read_text() == result.stdout
    quoted = " ".join(line[2:] for line in tutorial.splitlines() if line.startswith("> "))
    assert result.stdout.startswith(quoted)
    shown = tutorial[tutorial.index("finish:") : tutorial.index("in short:")]
    assert "evicted" in shown and shown in result.stderr


@pytest.mark.long
@pytest.mark.parametrize("interval", [1, 64])
def test_4000_tokens_at_budget_256(scope, tmp_path, interval):
    out = tmp_path / "story.txt"
    result = scope(
        "generate", "Write a very long novel about a lighthouse keeper.", "--budget", 256, "--recent", 64,
        "--interval", interval, "--max-new-tokens", 4001, "--ignore-eos", "--temperature", 0.8,
        "--output", out, "--json",
    )  # fmt: skip
    assert result.code == 0
    tokens = [json.loads(line) for line in result.stdout.splitlines() if '"event": "token"' in line]
    assert len(tokens) == 4001
    bytes_of_a_token = 30 * 3 * 64 * 2 * 4
    prompt = json.loads(result.stdout.splitlines()[0])["prompt_tokens"][0]
    assert all(token["held_bytes"] <= (prompt + 257) * bytes_of_a_token for token in tokens)
    end = json.loads((tmp_path / "story.txt.run.json").read_text())["results"][0]
    assert end["reading"]["moved_bytes"] == 0 and end["audit"]["problems"] == []
    assert end["reading"]["kept_generated"] <= 256 < end["reading"]["evicted_tokens"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_writes_what_the_cpu_writes(scope):
    argv = [
        "generate",
        PROMPT,
        "--dtype",
        "float32",
        "--budget",
        24,
        "--recent",
        8,
        "--max-new-tokens",
        60,
        "--quiet",
    ]
    assert scope(*argv, "--device", "cuda").stdout == scope(*argv, "--device", "cpu").stdout
