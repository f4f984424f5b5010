"""Events of several prompts in, one output at a time out."""

from dataclasses import replace
from io import StringIO

from scope_cli.events import Finished, Started, Token
from scope_cli.sinks.plain import PlainText
from scope_cli.sinks.record import RunRecord
from scope_cli.sinks.several import InOrder, Only


def side_by_side(events_of_a_run, texts):
    """The events of one run for each text, taking turns."""
    runs = [events_of_a_run(list(text)) for text in texts]
    started = replace(runs[0][0], prompt_tokens=(10,) * len(texts), seeds=tuple(range(len(texts))))
    rests = [[replace(event, prompt=number) for event in run[1:]] for number, run in enumerate(runs)]
    events = [started]
    while any(rests):
        events += [rest.pop(0) for rest in rests if rest]
    return events


def received(sink, events):
    for event in events:
        sink.receive(event)
    sink.close()


def test_texts_come_in_the_order_of_the_prompts_a_blank_line_between(events_of_a_run):
    out = StringIO()
    received(InOrder(PlainText(out)), side_by_side(events_of_a_run, ["abcdefgh", "ij", "klmno"]))
    assert out.getvalue() == "abcdefgh\n\nij\n\nklmno"


def test_the_first_text_comes_as_it_is_written(events_of_a_run):
    out = StringIO()
    sink = InOrder(PlainText(out))
    events = side_by_side(events_of_a_run, ["abcdef", "ghi"])
    until = next(i for i, event in enumerate(events) if isinstance(event, Token) and event.n == 3)
    for event in events[: until + 1]:
        sink.receive(event)
    assert out.getvalue() == "abc"


def test_one_text_is_left_as_it_is(events_of_a_run):
    out = StringIO()
    received(InOrder(PlainText(out)), events_of_a_run(["a", "b"], held_back="!"))
    assert out.getvalue() == "ab!"


def test_only_one_prompts_events_and_its_own_numbers(events_of_a_run):
    seen = []

    class Keep:
        def receive(self, event):
            seen.append(event)

        def close(self):
            seen.append("closed")

    received(Only(1, Keep()), side_by_side(events_of_a_run, ["abc", "de"]))
    started, *_, end, closed = seen
    assert isinstance(started, Started) and (started.prompt_tokens, started.seeds) == ((10,), (1,))
    assert "".join(event.text for event in seen if isinstance(event, Token)) == "de"
    assert isinstance(end, Finished) and closed == "closed"


def test_a_prompt_that_was_never_begun_is_not_told_of(events_of_a_run, tmp_path):
    started, *rest = side_by_side(events_of_a_run, ["abc", "de"])
    records = [Only(number, RunRecord(tmp_path / f"{number}.txt")) for number in (0, 1)]
    for event in [started, *[event for event in rest if event.prompt == 0]]:
        for record in records:
            record.receive(event)
    assert [file.name for file in tmp_path.iterdir()] == ["0.txt.run.json"]
