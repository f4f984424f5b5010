"""What a model thinks before it answers: marked, counted, shown, put aside or hidden."""

from dataclasses import replace

import pytest

from scope_cli.commands import options, outputs
from scope_cli.engine.thinking import Tags, Thinking
from scope_cli.errors import UsageError
from scope_cli.events import Failed, Token
from scope_cli.sinks.base import text_of
from scope_cli.sinks.thinking import WithoutThinking
from tests.helpers.readings import READING
from tests.sinks.conftest import _run

BEGINS, ENDS = 500, 501
TAGS = Tags(BEGINS, ENDS)
TEXTS = {BEGINS: "<think>", ENDS: "</think>"}


def events(ids, held_back=""):
    """Of one output whose tokens are these ids; the text of others is their number and a blank."""
    *_, end = _run([], held_back=held_back)
    tokens = [Token(0, n, one, TEXTS.get(one, f"{one} "), -1.0, 0.0, READING) for n, one in enumerate(ids, 1)]
    return [*tokens, replace(end, output_tokens=len(ids))]


def marked(ids, prompt=(1, 2), tags=TAGS, held_back=""):
    thinking = Thinking(tags, [prompt])
    return [thinking.mark(event) for event in events(ids, held_back)]


@pytest.mark.parametrize(
    ("prompt", "ids", "thoughts"),
    [
        ((1,), [7, 8], 0),
        ((1,), [BEGINS, 7, ENDS, 8], 3),
        ((1, BEGINS), [7, ENDS, 8], 2),
        ((1, BEGINS, ENDS), [7, 8], 0),
        ((1,), [BEGINS, 7, 8], 3),
        ((1,), [7, BEGINS, 8, ENDS, 9, BEGINS, ENDS], 5),
    ],
)
def test_tokens_of_thoughts_are_counted_with_their_tags(prompt, ids, thoughts):
    *tokens, end = marked(ids, prompt)
    assert sum(token.thinking for token in tokens) == end.thinking_tokens == thoughts


def test_a_model_without_such_tokens_is_left_alone():
    assert marked([BEGINS, 7, ENDS], tags=None) == events([BEGINS, 7, ENDS])
    assert Tags.of({"<think>": 3}) is None
    assert Tags.of({"<think>": 3, "</think>": 4, "x": 5}) == Tags(3, 4)


class Kept:
    def __init__(self):
        self.text = ""
        self.closed = False

    def receive(self, event):
        self.text += text_of(event)

    def close(self):
        self.closed = True


def test_thoughts_go_aside_and_the_answer_begins_with_its_first_letter():
    sink, aside = Kept(), []
    without = WithoutThinking(sink, aside.append)
    blank = Token(0, 5, 9, "\n\n", -1.0, 0.0, READING)
    for event in [*marked([BEGINS, 7, ENDS])[:-1], blank, *marked([8, 9], held_back="end")]:
        without.receive(event)
    without.close()
    assert (sink.text, sink.closed) == ("8 9 end", True)
    assert "".join(aside) == "<think>7 </think>\n"


def test_what_is_held_back_inside_a_thought_is_part_of_it():
    sink, aside = Kept(), []
    for event in marked([BEGINS, 7], held_back="half"):
        WithoutThinking(sink, aside.append).receive(event)
    thinking = Thinking(TAGS, [(BEGINS,)])
    WithoutThinking(sink, aside.append).receive(thinking.mark(Failed(0, "broken", text="rest")))
    assert sink.text == "" and "".join(aside) == "<think>7 halfrest"


def test_where_thoughts_go_is_one_of_three():
    assert [options.thinking(one) for one in ("show", "stderr", "hide")] == ["show", "stderr", "hide"]
    with pytest.raises(UsageError, match="did you mean hide"):
        options.thinking("hied")


@pytest.mark.parametrize(
    ("where", "out", "aside", "file"),
    [
        ("show", "<think>7 </think>8 ", "", "<think>7 </think>8 "),
        ("stderr", "8 ", "<think>7 </think>\n", "8 "),
        ("hide", "8 ", "", "8 "),
    ],
)
def test_stdout_stderr_and_file(where, out, aside, file, tmp_path, capfd):
    path = tmp_path / "a.txt"
    started, *_ = _run([])
    sinks = outputs.open_sinks([outputs.OutputFile(path, "new", {})], False, True, None, where)
    for event in [started, *marked([BEGINS, 7, ENDS, 8])]:
        for sink in sinks:
            sink.receive(event)
    for sink in sinks:
        sink.close()
    said = capfd.readouterr()
    assert (said.out, said.err) == (out, aside)
    assert path.read_text() == file
