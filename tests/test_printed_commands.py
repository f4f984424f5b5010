"""Every command line that a page prints is one; where a page prints several they can be typed in that order.

Planning, listing and checking are run as printed. What needs a model is run up to the moment at which it is
opened: by then every option, file, profile and output has been checked.
"""

import io
import json
import re
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import typer

from scope_cli import cli
from scope_cli.commands import doctor, measure, models, plan
from scope_cli.commands.menu import whole
from scope_cli.errors import ScopeError
from scope_cli.measure.bench import engine, peers
from scope_cli.measure.profiling import runner, source
from scope_cli.models import model, opening, registry
from scope_cli.models.model_folder import ModelFolder
from tests.helpers.configs import LLAMA_8B
from tests.helpers.pages import PAGES, ROOT, blocks, parse
from tests.helpers.results import fidelity, made_up, result

EMBEDDED_SHAPE = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
OPENED = 77  # the exit code of a command that came as far as its model
PLACEHOLDERS = re.compile(r"\.\.\.|\$|\[|\{|<|\b[A-Z]{3,}\b")
UNDOES = (["batch", "--status"], ["models", "rm"])  # what a run before it would have left


def printed(page):
    """(argv, file that stdout goes to or None) of every `scope ...` in a block, fenced or indented."""
    text = "\n".join(blocks(page, "sh", "console"))
    indented = re.findall(r"(?:^|\n)\n((?:    .*\n)+)", page.read_text(encoding="utf-8"))
    text += "\n" + "\n".join(part.replace("\\\n", " ") for part in indented)
    for line in text.splitlines():
        for part in re.split(r"\s(?:\||&&|;)\s", line.strip().removeprefix("$ ").split(" # ")[0]):
            command, _, file = part.partition(" > ")
            if re.match(r"(\S*/)?scope ", command):
                yield shlex.split(command)[1:], file.strip() or None


PRINTED = {page.name: found for page in PAGES if (found := list(printed(page)))}


def test_pages_print_commands():
    assert {"README.md", "first-long-text.md", "profile.md", "quality.md", "bench.md", "batch.md"} <= set(
        PRINTED
    )
    assert (["profiles", "show", "slide"], "mine.yaml") in PRINTED["README.md"]


@pytest.mark.parametrize("page", PRINTED)
def test_every_printed_command_is_understood(page):
    for argv, _ in PRINTED[page]:
        if not any("[" in part or "$" in part for part in argv):  # how it is used, in cli.md
            try:
                parse(argv)
            except typer.Exit:  # --help, --version
                continue


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_in_a_sentence_exists(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for words in re.findall(r"`scope ([^`]+)`", prose):
        command, named = whole(cli.command()), words.split()
        while named and hasattr(command, "commands") and named[0] in command.commands:
            command = command.commands[named.pop(0)]
        assert not hasattr(command, "commands") or not named or named[0][0] in "-([|" or "|" in words, words
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        assert {word.split("=")[0] for word in named if word.startswith("--")} <= known, words


class Opened(ScopeError):
    exit_code = OPENED


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A reader's folder: the examples, files of the names that pages use, and no model."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name in ("report.txt", "book.txt", "story.txt", "examples.txt"):
        shutil.copy(ROOT / "examples" / "report.txt", tmp_path / name)
    rows = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(40)]
    (tmp_path / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, kl in (("a", 0.1), ("b", 0.3)):
        made = result(fidelity("slide", [kl] * 10), fidelity("random", [kl] * 10))
        (tmp_path / f"{name}.json").write_text(json.dumps({**made, "format": 1}))
    for name in ("before", "after"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"format": 1, "results": [asdict(made_up())]}))
    (tmp_path / "llama-3.1-8b").mkdir()
    (tmp_path / "llama-3.1-8b" / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "config.json").write_text(json.dumps(EMBEDDED_SHAPE))

    def opened(*_, **__):
        raise Opened("the model would be opened now")

    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))  # nothing that is printed touches the real one
    monkeypatch.setattr(model, "open_model", opened)
    for taken in (registry, opening, doctor, models, source):  # a module first imported now would keep it
        monkeypatch.setattr(taken, "find", opened)
    for taken in (engine, peers):
        monkeypatch.setattr(taken, "open_model", opened)
    for taken in (runner, measure):
        monkeypatch.setattr(taken, "run_job", opened)
    embedded = ModelFolder("smollm2-135m", tmp_path / "embedded", "a test")
    monkeypatch.setattr(source, "find", lambda *_, **__: embedded)
    for taken in (source, plan):
        monkeypatch.setattr(taken, "free_bytes", lambda *_: 8 * 2**30)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"A prompt.")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(argv):
    """The files that this command would have left behind."""
    params = parse(argv)
    return [Path(params[name]) for name in ("output",) if params.get(name) is not None]


@pytest.mark.parametrize("page", [page for page in PRINTED if page != "cli.md"])
def test_a_pages_commands_work_one_after_the_other(scope, desk, page, monkeypatch):
    valid = scope("profiles", "show", "slide").stdout
    for argv, file in PRINTED[page]:
        line = shlex.join(argv)
        left_behind = (
            "doctor",
            "prompt",
            "resume",
            "runs",
        )  # they open a model, or want what a run before them left
        if (
            PLACEHOLDERS.search(line)
            or argv[:2] in UNDOES
            or argv[0] in left_behind
            or "report.scope" in argv
        ):
            continue
        ran = scope(*argv)
        assert ran.code in (0, OPENED), f"scope {line}\n{ran.stderr}"
        if file is not None:
            Path(file).write_text(ran.stdout or (desk / "before.json").read_text())
        if ran.code == OPENED:
            for output in written(argv):
                if output.suffix == ".yaml":
                    output.write_text(valid)


@pytest.mark.parametrize("name", ["generate", "profile", "tune", "bench", "batch"])
def test_a_command_that_needs_a_model_comes_as_far_as_its_model(scope, desk, name):
    """Otherwise the test above would believe anything."""
    argv = {
        "generate": ["generate", "hello"],
        "profile": ["profile", "--prompt-tokens", "5", "--max-new-tokens", "5"],
        "tune": ["tune", "--text", "report.txt"],
        "bench": ["bench", "hello"],
        "batch": ["batch", "examples/prompts", "--output-dir", "texts"],
    }[name]
    assert scope(*argv).code == OPENED
