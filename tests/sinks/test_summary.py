import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from scope_cli.engine.run_plan import kept_in_words, make_plan
from scope_cli.events import Audit, Busy, Loop
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.models.catalogue import KNOWN
from scope_cli.sinks import summary
from scope_cli.sinks.summary import NEXT, Summary
from tests.helpers.pages import parse
from tests.helpers.plain import load_profile
from tests.helpers.readings import READING


def printed(events, files=(), **console) -> str:
    file = io.StringIO()
    sink = Summary(Console(file=file, **{"width": 40, **console}), files)
    for event in events:
        sink.receive(event)
    sink.close()
    return file.getvalue()


def test_the_summary_of_a_piped_run_is_plain_aligned_text(events_of_a_run):
    assert printed(events_of_a_run(["x"] * 1328)) == (
        "tiny, cpu float32, slide, budget 256\n"
        "prompt:    3,210 tokens in 5.6 s, 573 tokens/s, peak 1.00 GiB\n"
        "output:    1,328 tokens in 1:06, 20.0 tokens/s, peak 1.50 GiB\n"
        "finish:    length\n"
        "KV held:   12.00 MiB / 96.00 MiB full cache (12.5%)\n"
        "KV memory: 14.00 MiB allocated, 768.00 KiB overhead, 13.00 MiB read per step\n"
        "transfer:  1.00 MiB moved, 5.00 GiB saved of 5.00 GiB, 25.08 KiB host\n"
        "kept:      3,210 of 3,210 prompt tokens, 256 of 1,327 generated, in 3,467 slots\n"
        "evicted:   1,071 tokens in 17 evictions\n"
        "audit:     policy active, budget held, bytes accounted for\n"
        "in short:  the model wrote 1,328 tokens, and remembers all 3,210 of your prompt and 256 of the 1,327"
        " that it wrote: 12.00 MiB, where remembering everything would take 96.00 MiB."
        " The text itself is whole: only the model forgets\n"
    )


def test_a_run_that_forgot_nothing_says_so(events_of_a_run):
    reading = replace(READING, evicted_tokens=0, kept_generated=9)
    assert "remembers all 3,219 tokens that it has read and written" in printed(
        events_of_a_run(["x"] * 10, reading=reading)
    )
    part = replace(READING, kept_prompt=800)
    assert "remembers 800 of 3,210 of your prompt" in printed(events_of_a_run(["x"] * 9, reading=part))


def test_the_model_for_trying_names_what_comes_next_once(events_of_a_run):
    started, *rest = events_of_a_run(["x"])
    assert "next:" not in printed([started, *rest])
    embedded = replace(started, model={**started.model, "name": "smollm2-135m"})
    assert printed([embedded, *rest]).count("\nnext:      ") == len(NEXT) + 1 == 3
    two = replace(embedded, prompt_tokens=(3210, 3210))
    assert printed([two, *rest]).count("next:") == 0, "one is still to come"
    assert printed([two, *rest, *rest]).count("next:") == 3
    cut = events_of_a_run(["x"], reason="interrupted")[1:]
    assert "next:" not in printed([embedded, *cut])


@pytest.mark.parametrize("known", [KNOWN["qwen3-4b"], None])
def test_the_next_model_is_one_that_fits(known, monkeypatch):
    monkeypatch.setattr(summary, "next_to_take", lambda: known)
    said = "--model qwen3-4b (7.49 GiB to fetch)" if known else "none of them fits this machine now"
    assert said in summary.larger()


def test_what_is_named_next_can_be_typed():
    commands = [re.sub("`.*", "", line.partition("scope ")[2]) for line in NEXT]
    for command in commands:
        parse(command.replace("FILE", "file").split())


def test_a_loop_and_a_failed_audit_are_named(events_of_a_run):
    audit = Audit(False, True, True, ("slide never evicted", "and more"))
    text = printed(events_of_a_run(["x"], loop=Loop(6, 411, 1120, True), audit=audit))
    assert "repeats itself: period 6, from token 412 to the end (1,120 tokens); --on-loop stop" in text
    assert "audit:     failed: slide never evicted; and more\n" in text


def test_a_loop_that_ended_says_where(events_of_a_run):
    assert "from token 1 to token 80 (80 tokens)" in printed(events_of_a_run([], loop=Loop(2, 0, 80, False)))


def test_tokens_that_no_scorer_chose_are_told_from_those_that_one_did(events_of_a_run):
    for audit, told in (
        (Audit(True, True, True, (), 64, 0), "policy active, budget held"),
        (Audit(True, True, True, (), 64, 10), "policy active, budget held"),
        (Audit(True, True, True, (), 0, 10), "evicted by age alone, the scorer had no choice, budget held"),
    ):
        assert f"audit:     {told}" in printed(events_of_a_run([], audit=audit))


def test_nothing_evicted_is_said(events_of_a_run):
    assert "audit:     nothing had to be evicted, budget" in printed(
        events_of_a_run([], audit=Audit(None, True, True))
    )


def test_notes_come_first_and_markup_in_data_is_only_text(events_of_a_run):
    started, *rest = events_of_a_run(["x"], reason="stop", stopped_by="[/red]")
    started = replace(started, notes=("cut to [bold]900[/bold] :smile:",), policy="[red]slide")
    text = printed([started, *rest])
    assert text.startswith("note: cut to [bold]900[/bold] :smile:\ntiny, cpu float32, [red]slide\n")
    assert "finish:    stop '[/red]'\n" in text


def test_colour_is_for_terminals(events_of_a_run):
    events = events_of_a_run(["x"], audit=Audit(True, False, True, ("over budget",)))
    assert "\x1b" not in printed(events)
    assert "\x1b[" in printed(events, force_terminal=True, color_system="standard", no_color=False)


def test_a_terminal_breaks_lines_between_words(events_of_a_run):
    started, *_ = events_of_a_run(["x"])
    text = printed([replace(started, policy="slide, budget 256 (128 recent), every 64")], force_terminal=True)
    assert [line.rstrip() for line in text.splitlines()] == [
        "tiny, cpu float32, slide, budget 256",
        "(128 recent), every 64",
    ]


def test_what_was_read_is_told_not_what_there_was_to_read(events_of_a_run):
    cut = events_of_a_run([], read_tokens=1024, prefill_s=10.24, reason="interrupted")
    assert "prompt:    1,024 of 3,210 tokens in 10.2 s, 100 tokens/s" in printed(cut)
    copied = events_of_a_run(["x"], read_tokens=0, prefill_s=0.0001)
    assert "prompt:    3,210 tokens, read once for all samples\n" in printed(copied)


def test_advice_is_not_given_to_who_has_followed_it(events_of_a_run):
    started, *rest = events_of_a_run(["x"], loop=Loop(6, 411, 1120, True))
    started = replace(started, profile={"sampling": {"on_loop": "stop"}})
    assert "--on-loop" not in printed([started, *rest])


def test_the_file_that_was_written_is_named_with_its_size(events_of_a_run, tmp_path):
    (tmp_path / "a.txt").write_text("x" * 2048)
    assert f"written:   {tmp_path}/a.txt, 2.00 KiB\n" in printed(events_of_a_run(["x"]), [tmp_path / "a.txt"])
    (tmp_path / "a.txt.run.json").write_text("{}")
    assert "2.00 KiB, and a.txt.run.json\n" in printed(events_of_a_run(["x"]), [tmp_path / "a.txt"])


def test_control_characters_of_a_models_name_are_spelt_out(events_of_a_run):
    started, *_ = events_of_a_run(["x"])
    text = printed([replace(started, model={**started.model, "name": "a\x1b[2J\x9b"})])
    assert text.startswith("a\\x1b[2J\\x9b, cpu")


def test_compiling_is_told_once(events_of_a_run):
    started, *_ = events_of_a_run(["x"])
    busy = Busy("compiling the step")
    assert printed([started, busy, busy]).endswith("\ncompiling the step ...\n")


def test_a_header_writes_thousands_as_the_summary_does():
    settings = load_profile("default", {"prefill.method": "snapkv", "prefill.budget": 1052})
    plan = make_plan(settings, Geometry((LayerGeometry("full", 4, 2, 8),), 8192, 32, 260), 2572)
    assert kept_in_words(settings.profile, plan) == ", prompt snapkv: 1,052 of 2,572 tokens"
