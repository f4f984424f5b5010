"""What ends an output: texts, special tokens, tokens by id, the end of a turn; and what never could."""

import json
import re

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scope_cli.commands.overrides import unescaped
from scope_cli.errors import UsageError
from scope_cli.models.stops import Stops, stops_of
from scope_cli.settings.schema import SamplingSettings
from tests.helpers.scripted import END, EOS, scripted
from tests.helpers.tokenizers import TOKENIZERS, every_tokenizer

TURNS = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"


@pytest.fixture(scope="module")
def two_turns(tmp_path_factory):
    return scripted(tmp_path_factory.mktemp("two"), "QFi\tn\\", END, "ok", EOS)


@pytest.fixture
def write(scope, two_turns):
    def run(*argv, model=two_turns):
        return scope(
            "generate", "--model", model, "--raw", "Q", "--temperature", 0, "--max-new-tokens", 30, *argv
        )

    return run


def test_without_a_stop_the_next_turn_is_written_too(write):
    assert write().stdout == "Fi\tn\\ok"


@pytest.mark.parametrize(
    ("argv", "text", "stopped_by"),
    [
        (["--stop", "<end>"], "Fi\tn\\", "<end>"),
        (["--stop", r"\t"], "Fi", "\t"),
        (["--stop", r"n\\"], "Fi\t", "n\\"),
        (["--stop", "zzz", "--stop", "<end>", "--stop", "k"], "Fi\tn\\", "<end>"),
        (["--stop-token", "259"], "Fi\tn\\", "<end>"),
        (["--stop-token", "<end>"], "Fi\tn\\", "<end>"),
        (["--stop-token", "n"], "Fi\t", "n"),
        (["--stop-token", "110"], "Fi\t", "n"),
        (["--stop-token", r"\t"], "Fi", "\\t"),
        (["--set", "sampling.stop=<end>"], "Fi\tn\\", "<end>"),
        (["--set", r'sampling.stop="\t"'], "Fi", "\t"),
        (["--set", "sampling.stop_tokens=110"], "Fi\t", "n"),
        (["--set", "sampling.stop_tokens=[110, <end>]"], "Fi\t", "n"),
        (["--stop", "<end>", "--ignore-eos"], "Fi\tn\\", "<end>"),
    ],
    ids=str,
)
def test_a_stop_ends_the_output_before_it_and_is_named(write, argv, text, stopped_by):
    result = write(*argv)
    assert (result.code, result.stdout) == (0, text)
    assert "finish:    stop" in result.stderr
    shown = re.search(r"finish:    stop (.*)", result.stderr)
    assert shown and stopped_by.strip("\t") in shown[1]


def test_the_event_names_the_token(write):
    events = [json.loads(line) for line in write("--stop-token", "259", "--json").stdout.splitlines()]
    assert (events[-1]["stopped_by"], events[-1]["reason"]) == ("<end>", "stop")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--stop", "n<end>"], "no text shows"),
        (["--stop", "<end>\n"], "no text shows"),
        (["--stop", r"<end>\n<bos>"], "no text shows"),
        (["--stop-token", "260"], "there is no token 260"),
        (["--stop-token", "99999999999999999999"], "there is no token"),
        (["--stop-token", "no such"], "7 tokens"),
        (["--stop-token", "-1"], "2 tokens"),
        (["--ignore-eos", "--stop", "<eos>"], "--ignore-eos"),
        (["--ignore-eos", "--stop-token", "257"], "--ignore-eos"),
        (["--stop", ""], "--stop: is ''"),
        (["--stop-token", ""], "--stop-token: is ''"),
        (["--set", "sampling.stop=[1]"], "sampling.stop"),
        (["--set", "sampling.stop_tokens=[1.5]"], "sampling.stop_tokens"),
        (["--set", "sampling.stop_tokens=true"], "sampling.stop_tokens"),
    ],
    ids=str,
)
def test_a_stop_that_never_comes_is_refused(write, argv, told):
    result = write(*argv)
    assert (result.code, result.stdout) == (2, "")
    assert told in result.stderr and "Traceback" not in result.stderr


def test_the_end_that_the_template_writes_ends_the_turn(scope, tmp_path):
    folder = scripted(tmp_path, END, "Fin", EOS, "ok", chat_template=TURNS)
    argv = ("generate", "--model", folder, "--temperature", 0, "--max-new-tokens", 9)
    assert scope(*argv, "Q").stdout == "Fin"
    folder = scripted(tmp_path, "QFin", END, "ok", EOS, chat_template=TURNS.replace("<end>", "", 1) + "Q")
    assert scope(*argv, "x").stdout == "Finok"  # it writes none
    folder = scripted(tmp_path, "QFin", END, "ok", EOS, chat_template=TURNS + "Q")
    assert scope(*argv, "x").stdout == "Fin"


def test_an_end_that_is_no_special_token_is_not_written(write, tmp_path):
    folder = scripted(tmp_path, "QFin.ok")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [ord(".")]}))
    assert write(model=folder).stdout == "Fin"


def test_a_row_of_a_batch_with_a_stop_that_never_comes_fails_alone(scope, two_turns, tmp_path):
    rows = [
        {"id": "a", "prompt": "Q", "sampling": {"stop": ["n<end>"]}},
        {"id": "b", "prompt": "Q", "sampling": {"stop_tokens": [110]}},
    ]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    argv = ("--model", two_turns, "--raw", "--temperature", 0, "--max-new-tokens", 30)
    assert scope("batch", tmp_path / "p.jsonl", "--output-dir", tmp_path / "out", *argv).code == 1
    results = {row["id"]: row for row in map(json.loads, (tmp_path / "out/results.jsonl").open())}
    assert results["a"]["state"] == "failed" and "no text shows" in results["a"]["error"]
    assert results["b"]["text"] == "Fi\t"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n", "\n"),
        (r"\t", "\t"),
        (r"\r\n", "\r\n"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"a\d", r"a\d"),
        (r"\\", "\\"),
        ("\\", "\\"),
        ("\n", "\n"),
        ("", ""),
    ],
)
def test_what_no_shell_types_easily_is_spelt(typed, meant):
    assert unescaped(typed) == meant


@every_tokenizer
@pytest.mark.parametrize(
    "text", ["river", " river", "\n", "\n\n", "水", "é.", "The river", "\t", "  ", " ", "END", "</think>"]
)
def test_what_a_model_can_write_is_looked_for_as_a_text(kind, text):
    got = stops_of(TOKENIZERS[kind], 1000, SamplingSettings(stop=text))
    assert got == Stops(texts=(text,))


@every_tokenizer
def test_a_special_token_is_looked_for_by_its_id(kind):
    tokenizer = TOKENIZERS[kind]
    got = stops_of(tokenizer, 1000, SamplingSettings(stop=["<|im_end|>", "x"]))
    assert got == Stops(("x",), {tokenizer.convert_tokens_to_ids("<|im_end|>"): "<|im_end|>"})


@pytest.mark.parametrize(("text", "instead"), [("Foo", "foo"), ("zzz", ""), ("foo.", "foo ."), ("\n", "")])
def test_what_no_token_of_the_model_makes_is_refused(text, instead):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "foo": 1, ".": 2, "a": 3}, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(UsageError, match="never comes") as caught:
        stops_of(tokenizer, 4, SamplingSettings(stop=text))
    assert f"--stop {instead!r}" in caught.value.hint or not instead
