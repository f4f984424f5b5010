"""scope from Python: a few names, typed, lazy; the README's lines run."""

import re
from pathlib import Path

import pytest

import scope_cli
from scope_cli import Profile, ScopeError, generate, load

ROOT = Path(__file__).parent.parent
QUIET = {"temperature": 0.0, "max_new_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(str(tiny_folder), device="cpu")


def lines(page):
    return re.findall(
        r"^```python\n(from scope_cli .*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("page", ["README.md", "docs/reference/api.md"])
def test_the_lines_of_the_pages_run(page, tiny_folder, capsys):
    (code,) = lines(page)
    exec(code.replace("smollm2-135m", str(tiny_folder)).replace("400", "12"), {})
    assert capsys.readouterr().out


def test_the_pieces_are_the_text_that_the_command_writes(model, tiny_folder, scope):
    profile = Profile(decode={"budget": 8}, sampling=QUIET)
    pieces = list(writing := generate(model, "Once upon a time", profile))
    typed = ["--budget", 8, "--temperature", 0, "--max-new-tokens", 24, "--ignore-eos", "--quiet"]
    ran = scope("generate", "Once upon a time", "--model", tiny_folder, "--device", "cpu", *typed)
    assert ran.stdout == "".join(pieces) + "\n" * ran.stdout.endswith("\n")
    assert writing.end.output_tokens == 24 and writing.end.audit.passed
    assert writing.started.profile["decode"]["budget"] == 8


def test_changes_are_laid_over_a_profile_by_name_or_value(model):
    for profile in ("slide", Profile(sampling=QUIET)):
        text = generate(model, "Once", profile, {"decode.budget": 4, "sampling.max_new_tokens": 9})
        list(text)
        assert text.started.profile["decode"]["budget"] == 4 and text.end.output_tokens <= 9


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda model: generate(model, "hi", "slid"), "did you mean slide?"),
        (lambda model: generate(model, "hi", Profile(decode={"budget": 8, "recent": 9})), "recent: is 9"),
        (lambda model: generate(model, "hi", changes={"decode.budgt": 9}), "did you mean budget?"),
        (lambda model: load("there/is/none"), "none"),
        (lambda model: load(devise="cpu"), "did you mean device?"),
    ],
)
def test_what_is_wrong_is_a_scope_error_with_the_sentence_of_the_command(model, act, words):
    with pytest.raises(ScopeError, match=re.escape(words)):
        act(model)


def test_a_cache_that_does_not_fit_is_refused_before_the_prompt_is_read(model, monkeypatch):
    monkeypatch.setattr("scope_cli.machine.memory.free_bytes", lambda device: 1000)
    with pytest.raises(ScopeError, match="not enough memory"):
        generate(model, "Once", Profile(sampling=QUIET))


def test_the_page_lists_what_is_public_and_nothing_else():
    page = (ROOT / "docs/reference/api.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
    assert listed == set(scope_cli.__all__)
    for name in scope_cli.__all__:
        assert getattr(scope_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        scope_cli.nothing  # noqa: B018
