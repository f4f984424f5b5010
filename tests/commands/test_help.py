"""Help and Tab: words for values, defaults, examples; what can be completed."""

import re
from pathlib import Path

import pytest

from scope_cli import cli
from scope_cli.commands import completion, menu
from scope_cli.commands.options import SETTINGS
from scope_cli.settings.load import check


def options_of(command):
    """Every option of every command below `command`."""
    for one in menu.leaves(command):
        yield from (param for param in one.params if param.param_type_name == "option")


def test_no_value_is_named_by_pythons_type():
    words = {param.metavar for param in options_of(menu.whole(cli.command()))}
    assert all(word == "" or re.match(r"[A-Z]", word or "") for word in words), words


def test_a_command_says_of_itself_what_the_first_page_says():
    for command in cli.command().commands.values():
        assert command.real.help.strip().split("\n\n")[0] == command.help


def test_help_names_no_python_type_and_gives_examples_and_defaults(scope):
    top, generate = scope("--help").stdout, scope("generate", "--help").stdout
    assert not re.search(r"<\w+>|<list\[", top + generate)
    assert "Examples:" in top and "scope generate --prompt-file report.txt" in top and "docs/" in top
    for line in (
        "(slide)",
        "(attention)",
        "(0.7)",
        "(0.95)",
        "(50)",
        "text. (0)",
        "(2048)",
        "(4096)",
    ):
        assert line in generate


def tab(name):
    """What completes the values of a setting's option."""
    return SETTINGS[name].parameter(name).annotation.__metadata__[0].autocompletion


@pytest.mark.parametrize(
    ("incomplete", "complete", "found"),
    [
        ("", tab("strategy"), ["full", "slide", "adaptive", "discontinuous", "rpc"]),
        ("n", tab("load_in"), ["none"]),
        ("a", completion.plugins_of("scorers"), ["accumulated", "attention"]),
        ("py", completion.plugins_of("prefills"), ["pyramidinfer", "pyramidkv"]),
        ("base", completion.profiles, ["baselines/h2o", "baselines/snapkv-decode", "baselines/streamingllm"]),
        ("smol", completion.models, ["smollm2-135m"]),
        ("nosuch", completion.models, []),
    ],
)
def test_values_are_completed(incomplete, complete, found):
    assert complete(incomplete)[: len(found)] == found
    assert all(value.startswith(incomplete) for value in complete(incomplete))


def test_what_is_completed_is_what_is_accepted():
    for name in ("strategy", "dtype", "load_in", "compile", "interval"):
        section, field = SETTINGS[name].key.split(".")
        for value in tab(name)(""):
            check({section: {field: value}, "sampling": {"max_new_tokens": 9}}, "a test")


def test_files_are_completed_where_they_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a.yaml", "a.txt", "b.gguf", "sub/c.yaml"):
        (tmp_path / name).write_text("")
    assert "a.yaml" in completion.profiles("a") and "a.txt" not in completion.profiles("a")
    assert completion.profiles("sub/") == ["sub/c.yaml"] and completion.models("b") == ["b.gguf"]
    assert "sub/" in completion.models("su") and completion.models(str(tmp_path / "b")) == [
        str(Path(tmp_path, "b.gguf"))
    ]


@pytest.mark.parametrize("word", ["--scorer", "--strategy", "--profile", "--model", "--prefill"])
def test_tab_offers_values(word, capfd, monkeypatch):
    for name, value in {
        "_SCOPE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"scope generate {word} s",
        "COMP_CWORD": "3",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.command()(args=[], prog_name="scope", standalone_mode=False)
    offered = capfd.readouterr().out.split()
    assert offered or word == "--scorer"
    assert all(value.startswith("s") for value in offered)
