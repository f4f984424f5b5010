"""Rotary positions: contexts that a scaling gives, and factors by the length, chosen once for a run."""

import json
import math
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import new_cache, new_work
from scope_cli.errors import ModelError, UsageError
from scope_cli.geometry import BEYOND, Context, context_of
from scope_cli.models.architecture import geometry_of
from scope_cli.models.model import open_model
from scope_cli.models.shapes import shape_of
from scope_cli.policies.rope import fix_length, unrotate
from scope_cli.settings.load import LoadedProfile
from tests.families import model_of, ours, prompt_of
from tests.helpers.plain import profile_of
from tests.helpers.tiny import tiny_tokenizer

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
ORIGINAL = 512
SHORT, LONG = [1.0 + i / 8 for i in range(8)], [2.0 + i for i in range(8)]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": ORIGINAL,
}
PHI3 = {**SIZES, "original_max_position_embeddings": ORIGINAL, "rope_parameters": LONGROPE}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.fixture(scope="module")
def phi3(tmp_path_factory):
    return saved(Phi3Config(**PHI3), tmp_path_factory.mktemp("phi3"))


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    sizes = {**SIZES, "max_position_embeddings": 512}
    return saved(LlamaConfig(**sizes, rope_parameters=DYNAMIC), tmp_path_factory.mktemp("dynamic"))


def saved(config, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


def frequencies(factors):
    """LongRoPE as its paper has it, one channel after the other; and what cos and sin are scaled by."""
    inv_freq = [1 / (factor * 1e4 ** (2 * j / 16)) for j, factor in enumerate(factors)]
    scaling = math.sqrt(1 + math.log(2048 / ORIGINAL) / math.log(ORIGINAL))
    return torch.tensor(inv_freq), scaling


@torch.no_grad()
def plain(folder, prompt, written, inv_freq, scaling):
    """transformers, whose positions are turned by these frequencies from the first to the last."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()

    def turned(x, position_ids):
        angles = position_ids[0, :, None].float() * inv_freq
        angles = torch.cat([angles, angles], -1)[None]
        return angles.cos() * scaling, angles.sin() * scaling

    model.model.rotary_emb.forward = turned
    ids = torch.tensor([prompt])
    for _ in range(written):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("prompt_tokens", "written", "factors"),
    [(400, 60, SHORT), (400, 112, SHORT), (400, 130, LONG), (508, 40, LONG), (700, 40, LONG)],
)
def test_longrope_takes_the_factors_of_the_whole_run(phi3, prompt_tokens, written, factors):
    """Up to 512 tokens, prompt and output, short ones; else long ones from the first token on."""
    prompt = prompt_of(prompt_tokens)
    expected = plain(phi3, prompt, written, *frequencies(factors))
    assert ours(phi3, prompt, written) == expected
    other = frequencies(LONG if factors is SHORT else SHORT)
    assert len(set(expected)) > 5 and plain(phi3, prompt, 20, *other) != expected[:20]


def settings_of(folder, new_tokens, **model):
    profile = profile_of(
        {
            "model": {"name": str(folder), "device": "cpu", **model},
            "sampling": {"max_new_tokens": new_tokens},
        }
    )
    return LoadedProfile(profile, "test", frozenset())


@pytest.mark.parametrize(
    ("prompt_tokens", "new_tokens", "context", "factors"),
    [(100, 412, None, SHORT), (100, 413, None, LONG), (100, None, None, LONG), (20, 20, 2000, LONG)],
)
def test_scorers_undo_the_rotation_that_the_run_has(phi3, prompt_tokens, new_tokens, context, factors):
    settings = settings_of(phi3, new_tokens, context=context)
    loaded = open_model(settings.profile.model, offline=True).load()
    work = new_work(settings, loaded.geometry, prompt_of(prompt_tokens))
    cache = new_cache(loaded, settings.profile, work.plan.shape)
    torch.testing.assert_close(cache.inv_freq, frequencies(factors)[0])
    which = "more than 512" if factors is LONG else "up to 512"
    assert f"RoPE has the factors for texts of {which} tokens" in " ".join(work.plan.notes)


def test_texts_on_both_sides_of_the_switch_do_not_share_a_run(phi3):
    settings = settings_of(phi3, 20)
    geometry = open_model(settings.profile.model, offline=True).geometry
    plans = [new_work(settings, geometry, prompt_of(tokens)).plan for tokens in (100, 600)]
    with pytest.raises(UsageError, match="longrope") as caught:
        shared_shape(plans, 2)
    assert "--context" in caught.value.hint
    settings = settings_of(phi3, 20, context=1000)
    geometry = open_model(settings.profile.model, offline=True).geometry
    plans = [new_work(settings, geometry, prompt_of(tokens)).plan for tokens in (100, 600)]
    assert shared_shape(plans, 2).beyond


def test_a_batch_writes_texts_on_both_sides_of_the_switch_as_each_alone(phi3, scope, tmp_path):
    """Rectangles of one size hold those of one side only; --context sets it for all."""
    lengths = {"a": 100, "b": 480, "c": 500, "d": 481, "e": 499}
    prompts = {name: tmp_path / "in" / name for name in lengths}
    (tmp_path / "in").mkdir()
    for name, tokens in lengths.items():
        prompts[name].write_text(" ".join("abcdefgh"[at % 7] for at in range(tokens))[:tokens])
    argv = ("--model", phi3, "--raw", "--temperature", 0, "--max-new-tokens", 20, "--ignore-eos")
    out = tmp_path / "out"
    for more in ((), ("--context", 1000)):
        result = scope("batch", tmp_path / "in", "-o", out, *argv, *more, "--lanes", 2, "--restart")
        assert result.code == 0, result.stderr
        for name, tokens in lengths.items():
            assert (out / name).read_text() == scope("generate", "-f", prompts[name], *argv, *more).stdout
            record = json.loads((out / f"{name}.run.json").read_text())
            which = "more than 512" if more or tokens + 20 > 512 else "up to 512"
            assert f"texts of {which} tokens" in " ".join(record["notes"])


def test_a_prompt_file_goes_on_with_the_factors_that_it_was_read_with(phi3, dynamic, scope, tmp_path):
    """One set of them turns all keys of a text, wherever its prompt was read."""

    def texts(model, *context):
        """Of a prompt that is read, and of its file."""
        asked, file = ["--model", model, "--kv", "plain", *context], tmp_path / "kept.scope"
        long = ["--temperature", 0, "--max-new-tokens", 450, "--ignore-eos", "-q"]
        read = scope("generate", "--raw", "x" * 100, *asked, *long)
        saved = scope("prompt", "save", "--raw", "x" * 100, *asked, "-o", file, "--force")
        assert (read.code, saved.code) == (0, 0)
        return read.stdout, partial(scope, "generate", "--prompt-cache", file, *long)

    _, from_file = texts(phi3)
    other = from_file()
    assert (other.code, other.stdout) == (1, "") and "RoPE" in other.stderr and "--context" in other.stderr
    read, from_file = texts(phi3, "--context", 1000)
    assert from_file().stdout == read
    read, from_file = texts(dynamic, "--context", 1024)
    assert from_file().stdout == read
    assert from_file("--context", 2048).code == 1


def test_a_text_does_not_get_longer_than_its_factors(phi3, scope, tmp_path):
    story = tmp_path / "story.txt"
    asked = ["--raw", "x" * 100, "--model", phi3, "--kv", "plain", "--ignore-eos", "-q"]
    assert scope("generate", *asked, "--max-new-tokens", 20, "-o", story, "--keep-checkpoint").code == 0
    longer = scope("resume", story, "--max-new-tokens", 450)
    assert longer.code == 1 and "RoPE" in longer.stderr
    assert scope("resume", story, "--max-new-tokens", 60, "-q").code == 0
    whole = scope("generate", *asked, "--max-new-tokens", 60)
    assert story.read_text() == whole.stdout


@pytest.mark.parametrize(("context", "prompt_tokens"), [(None, 400), (1024, 400), (1024, 700)])
def test_dynamic_rope_is_that_of_the_context_from_the_first_token_on(dynamic, context, prompt_tokens):
    stretched = 2.0 * max(context or 512, 512) / 512 - 1
    base = 1e4 * stretched ** (16 / 14)
    inv_freq = torch.tensor([1 / base ** (2 * j / 16) for j in range(8)])
    prompt = prompt_of(prompt_tokens)
    assert ours(dynamic, prompt, 40, context=context) == plain(dynamic, prompt, 40, inv_freq, 1.0)


def test_a_context_is_what_the_scaling_gives():
    assert context_of(512, {}) == Context(512, BEYOND * 512)
    assert context_of(512, None) == Context(512, 512)  # learned positions
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert context_of(512, yarn) == Context(2048, 2048)
    assert context_of(2048, yarn) == Context(2048, 2048)  # said already
    assert context_of(512, {"type": "yarn", "factor": 4.0}) == Context(2048, 2048)
    assert context_of(512, {"type": "linear", "factor": 2.0}) == Context(1024, 1024)
    gemma = {
        "full_attention": {"rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_type": "default"},
    }
    assert context_of(4096, gemma) == Context(4096, 4096)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    assert context_of(131_072, llama3) == Context(131_072, BEYOND * 131_072)
    assert context_of(4096, {"type": "dynamic", "factor": 8.0}) == Context(4096, 32_768)
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    assert context_of(131_072, longrope) == Context(131_072, 131_072, 4096)


SCALINGS = [
    {},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("context", [None, 100, 4096, 100_000])
def test_a_plan_has_the_context_that_the_run_has(scaling, context):
    config = LlamaConfig(**SIZES, **scaling)

    def of(make):
        try:
            return make().context
        except ModelError as error:
            return str(error)

    planned = of(lambda: shape_of(config.to_dict(), "it", context).geometry)
    assert planned == of(lambda: geometry_of(config, context, "it"))
    assert context != 100_000 or "it was made for" in planned


def test_a_context_beyond_what_a_model_was_made_for_is_told_and_has_an_end(tmp_path, scope):
    folder = saved(LlamaConfig(**{**SIZES, "max_position_embeddings": 64}), tmp_path)
    common = ["generate", "x" * 100, "-m", folder, "--raw", "--max-new-tokens", "5"]
    result = scope(*common)
    assert (result.code, "the model's context is 64" in result.stderr) == (2, True)
    result = scope(*common, "--context", "128")
    assert result.code == 0
    assert "a context of 128 tokens; the model was made for 64" in result.stderr
    result = scope(*common, "--context", "257")
    assert (result.code, result.stdout) == (2, "")
    assert "was made for 64 tokens" in result.stderr and "at most --context 256" in result.stderr


def test_yarn_reads_a_prompt_of_the_length_it_is_meant_for(tmp_path, scope):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    folder = saved(LlamaConfig(**{**SIZES, "max_position_embeddings": 64}, rope_parameters=yarn), tmp_path)
    assert scope("generate", "x" * 200, "-m", folder, "--raw", "--max-new-tokens", "5").code == 0
    result = scope("generate", "x" * 252, "-m", folder, "--raw", "--max-new-tokens", "5")
    assert (result.code, "context of 256" in result.stderr) == (2, True)


def test_a_models_own_scaling_follows_the_length_and_comes_back():
    """Phi-3.5-MoE has one for short texts and one for long ones."""
    model = model_of("phimoe (longrope)")
    parameters = model.config.rope_parameters
    for length, scaling in ((512, 1.1), (513, 1.3), (8, 1.1)):
        fix_length(model, length)
        assert (parameters["short_mscale"], parameters["long_mscale"]) == (scaling, scaling)


def test_keys_without_positions_are_as_they_were():
    x = torch.randn(3, 8)
    assert unrotate(x, torch.arange(3), None) is x
