"""Every question of a probe asks for what was said, at the distance it names; the seed decides everything."""

import pytest

from scope_cli.errors import UsageError
from scope_cli.measure.evaluate.probes import KINDS, gaps_for, make_probe


def encode(text: str) -> list[int]:
    return list(text.encode())


def text_of(ids) -> str:
    return bytes(ids).decode()


def probe_of(kind, seed=0, tokens=2000):
    return make_probe(kind, seed, tokens, encode, encode)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_everything(kind):
    assert probe_of(kind, 3) == probe_of(kind, 3)
    assert probe_of(kind, 3).output_ids != probe_of(kind, 4).output_ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [300, 2000, 9000])
def test_a_probe_is_about_as_long_as_asked(kind, tokens):
    made = probe_of(kind, tokens=tokens)
    assert tokens * 0.75 <= len(made.output_ids) <= tokens * 1.2 + 900  # sentences end where they end


def test_a_fact_of_the_output_is_asked_for_at_the_distance_that_the_question_names():
    made = probe_of("output-fact", tokens=4000)
    text = text_of(made.output_ids)
    assert len(made.questions) == len(gaps_for(4000))
    for question in made.questions:
        answer = text_of(made.output_ids[question.start : question.start + question.tokens])
        before = text[: question.start].rsplit(". ", 1)[-1].rsplit("\n ", 1)[-1]
        statement = f"{before}{answer}."
        assert text.count(statement) == 2, "once as a statement, once as the answer"
        assert text.index(statement) + len(statement) == question.stated
        assert question.at == question.start - question.stated
        assert text.count(answer) == 2
        assert answer.strip() not in text_of(made.prompt_ids)
    assert [q.at for q in made.questions] == sorted((q.at for q in made.questions), reverse=True)


def test_a_fact_of_the_prompt_stands_there_and_nowhere_else():
    made = probe_of("prompt-fact")
    text = text_of(made.output_ids)
    for question in made.questions:
        answer = text_of(made.output_ids[question.start : question.start + question.tokens])
        asked = text[: question.start].rsplit(". ", 1)[-1].strip()
        assert f"{asked}{answer}." in text_of(made.prompt_ids)
        assert text.count(answer) == 1
        assert question.stated == 0


def test_the_list_is_written_out_in_order():
    made = probe_of("list")
    assert text_of(made.output_ids).strip() in text_of(made.prompt_ids)
    items = [text_of(made.output_ids[q.start : q.start + q.tokens]).strip() for q in made.questions]
    assert [f"{q.at}. {item}" for q, item in zip(made.questions, items, strict=True)] == text_of(
        made.output_ids
    ).strip().splitlines()


def test_the_copy_is_word_for_word():
    made = probe_of("copy")
    text = text_of(made.output_ids)
    assert text in text_of(made.prompt_ids)
    asked = sum(question.tokens for question in made.questions)
    assert asked > 0.85 * len(text)  # all but the first word of each sentence


def test_a_length_without_room_is_refused():
    with pytest.raises(UsageError, match="no room for a gap"):
        probe_of("output-fact", tokens=30)
