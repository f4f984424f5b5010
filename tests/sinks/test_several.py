"""Events of several prompts in, one output at a time out."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from scope_cli.errors import ScopeError
from scope_cli.events import Busy, Finished, Started, Token
from scope_cli.sinks.plain import PlainText
from scope_cli.sinks.record import RunRecord
from scope_cli.sinks.several import Every, InOrder, Only
from scope_cli.sinks.summary import Summary


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


class Listener:
    """Keeps what it receives; fails from the event `fails_at` on."""

    def __init__(self, fails_at=None):
        self.seen, self.closed, self._fails_at = [], 0, fails_at

    def receive(self, event):
        if len(self.seen) == self._fails_at:
            raise ScopeError("full")
        self.seen.append(event)

    def close(self):
        self.closed += 1


def test_a_sink_that_fails_takes_nothing_from_the_others(events_of_a_run):
    first, failing, last = Listener(), Listener(fails_at=2), Listener()
    everybody = Every(first, failing, last)
    events = events_of_a_run(["a", "b"])
    with pytest.raises(ScopeError, match="full"), everybody:
        for event in events:
            everybody.receive(event)
    assert first.seen == last.seen == events[:3] and failing.seen == events[:2]
    assert (first.closed, failing.closed, last.closed) == (1, 1, 1)


def test_a_failure_in_the_middle_of_held_events_loses_none_of_them(events_of_a_run):
    good, failing = Listener(), Listener(fails_at=4)
    sink = InOrder(Every(failing, good))
    lost = 0
    for event in side_by_side(events_of_a_run, ["ab", "cd", "ef"]):
        try:
            sink.receive(event)
        except ScopeError:
            lost += 1
    sink.close()
    assert lost == 1
    assert (
        "".join(event.text for event in good.seen if isinstance(event, Token | Finished)) == "ab\n\ncd\n\nef"
    )


def test_the_summary_of_an_output_stands_between_its_text_and_the_next_heading(events_of_a_run):
    out = StringIO()
    sink = InOrder(Every(PlainText(out, out), Summary(Console(file=out, width=200))))
    received(sink, side_by_side(events_of_a_run, ["abcdefgh", "ij", "klmno"]))
    lines = out.getvalue().splitlines()
    at = [
        lines.index(one)
        for one in ("output 1 of 3", "abcdefgh", "output 2 of 3", "ij", "output 3 of 3", "klmno")
    ]
    assert at == sorted(at)
    assert sum(line.startswith("audit:") for line in lines[at[1] : at[2]]) == 1
    assert sum(line.startswith("audit:") for line in lines[at[5] :]) == 1


def test_what_is_nobodys_turn_goes_to_everybody(events_of_a_run):
    listener = Listener()
    InOrder(listener).receive(Busy("compiling the step"))
    assert listener.seen == [Busy("compiling the step")]
