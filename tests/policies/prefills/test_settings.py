"""What a profile may say about the prompt, what it may not, and the whole way through the command line."""

import json

import pytest

from scope_cli.errors import ProfileError
from scope_cli.settings.load import check
from tests.helpers.plain import load_profile


@pytest.mark.parametrize(
    ("prefill", "key", "told"),
    [
        ({"method": "snapkv"}, "prefill.budget", "how many prompt tokens stay"),
        ({"method": "snapkv", "budget": 0}, "prefill.budget", "a share of the prompt such as"),
        ({"method": "snapkv", "budget": "quarter"}, "prefill.budget", "a share of the prompt such as"),
        ({"method": "snapkv", "budget": "120%"}, "prefill.budget", "a share of the prompt such as"),
        ({"method": "snapkv", "budget": True}, "prefill.budget", "is true, which is not allowed here"),
        ({"method": "snapkv", "budget": 20}, "prefill.window", "is 32; it is part of the budget (20)"),
        ({"method": "snapkw", "budget": 64}, "prefill.method", "did you mean snapkv?"),
        ({"method": {"name": "snapkv", "kernel": 6}, "budget": 64}, "prefill.method.kernel", "an even pool"),
        ({"method": {"name": "snapkv", "kernal": 7}, "budget": 64}, "prefill.method.kernal", "kernel?"),
        ({"method": "snapkv", "budget": 64, "wrap": ["adakw"]}, "prefill.wrap", "did you mean adakv?"),
        ({"method": "snapkv", "budget": 64, "wrap": ["adakv", "adakv"]}, "prefill.wrap", "goes once"),
        (
            {"method": "snapkv", "budget": 64, "wrap": [{"name": "think", "share": 2}]},
            "prefill.wrap.share",
            "below 1",
        ),
        ({"method": "pyramidkv", "budget": 64, "wrap": ["mass"]}, "prefill.wrap", "pyramidkv and mass both"),
        ({"wrap": ["adakv"]}, "prefill.wrap", "full keeps everything: set prefill.method"),
        (
            {"method": "h2o", "budget": 64, "wrap": [{"name": "mass", "tau": 0.9}]},
            "prefill.budget",
            "finds its own",
        ),
    ],
)
def test_a_problem_names_its_key_and_what_to_set(prefill, key, told):
    with pytest.raises(ProfileError) as raised:
        check({"prefill": prefill}, "test")
    assert str(raised.value).startswith(f"{key}: ") and told in str(raised.value)


@pytest.mark.parametrize(
    "prefill",
    [
        {"method": "snapkv", "budget": 64},
        {"method": "snapkv", "budget": "25%"},
        {"method": "snapkv", "budget": "64"},
        {"method": {"name": "pyramidkv", "beta": 10}, "budget": 64, "wrap": ["adakv", "think"]},
        {"method": "keydiff", "wrap": [{"name": "mass", "tau": 0.9}]},
        {"wrap": ["think"]},
        {"budget": 64},
    ],
)
def test_a_profile_comes_back_from_its_own_text(prefill):
    profile = check({"prefill": prefill}, "test")
    assert check(profile.as_dict(), "again") == profile


@pytest.mark.parametrize(
    ("prefill", "named"),
    [
        ({"method": "pyramidkv", "budget": 64}, "pyramidkv"),
        ({"method": "snapkv", "budget": 64, "wrap": ["think", "adakv"]}, "adakv"),
        ({"method": "snapkv", "budget": 64, "wrap": ["mass"]}, "mass"),
    ],
)
def test_an_unprotected_prompt_needs_heads_that_keep_equally_many(prefill, named):
    with pytest.raises(ProfileError, match=f"decode.protect_prompt: .*{named} divides"):
        check({"prefill": prefill, "decode": {"protect_prompt": False}}, "test")
    check({"prefill": {"method": "snapkv", "budget": 64}, "decode": {"protect_prompt": False}}, "test")


def test_the_default_profile_keeps_the_whole_prompt():
    assert load_profile().profile.prefill.method.name == "full"


def test_a_prompt_is_compressed_from_the_command_line(scope, tiny_folder, tmp_path):
    text = tmp_path / "prompt.txt"
    text.write_text("A prompt of some length, from the command line to the printed token. " * 4)
    common = (
        "generate",
        "-f",
        text,
        "--raw",
        "-m",
        tiny_folder,
        "--max-new-tokens",
        40,
        "--ignore-eos",
        "--budget",
        16,
    )
    snapkv = ("--prefill", "snapkv", "--prefill-budget", "50%", "--set", "prefill.wrap=[adakv]")
    result = scope(*common, *snapkv)
    assert result.code == 0, result.stderr
    assert "prompt snapkv with adakv: 138 of 276 tokens" in result.stderr
    finished = json.loads(scope(*common, *snapkv, "--json").stdout.splitlines()[-1])
    assert finished["reading"]["kept_prompt"] == 138 and finished["reading"]["padding_bytes"] >= 0
    refused = scope(*common, "--prefill", "snapkv")
    assert refused.code == 2 and "how many prompt tokens stay" in refused.stderr
