"""Prompts and scores of hand-written questions and outputs; nothing here comes from a benchmark."""

import json
import re

import pytest

from scope_cli.errors import UsageError
from scope_cli.measure.evaluate.longgenbench import (
    Group,
    Item,
    by_index,
    find_answers,
    make_groups,
    read_items,
    same_answer,
    score,
    worked_examples,
)

NUMBERS = Group(0, "", 3, ("18", "70,000", "2.5", "-4"))
GOOD = """Answer_3:
Nine hens lay 2 eggs each.
The answer is 18.

Answer_4:
The answer is $70,000.

Answer_5:
Half of 5 is 2.5 litres. The answer is 2.50 litres.

Answer_6:
The answer is -4 degrees."""


def correct(output, group=NUMBERS):
    return [one.correct for one in score(output, group)]


def test_commas_units_currencies_decimals_and_signs_are_read():
    assert correct(GOOD) == [True] * 4
    assert [one.found for one in score(GOOD, NUMBERS)] == ["18", "$70,000", "2.50", "-4"]


@pytest.mark.parametrize(
    ("said", "right", "same"),
    [
        ("The answer is 18.", "18", True),
        ("the answer is: 18", "18", True),
        ("The answer is **18**.", "18", True),
        ("The answer is 18.0.", "18", True),
        ("The answer is £18 a week.", "18", True),
        ("The answer is 1,234,567 stars.", "1234567", True),
        ("The answer is .5", "0.5", True),
        ("The answer is 5 + 13 = 18.", "18", True),
        ("So the answer is about 18 eggs.", "18", True),
        ("The answer is 18%.", "18", True),
        ("The answer is 180.", "18", False),
        ("The answer is 1.8.", "18", False),
        ("The answer is eighteen.", "18", False),
        ("The answer is", "18", False),
        ("It is 18.", "18", False),
        ("The answer is 17. No, the answer is 18.", "18", False),
        ("The answer is\n18", "18", False),
        ("The answer is 18 of 20.", "18", True),
    ],
)
def test_what_counts_as_the_answer(said, right, same):
    assert correct(f"Answer_1:\nSome thinking about 3 things.\n{said}", Group(0, "", 1, (right,))) == [same]


def test_a_missing_answer_is_wrong_and_moves_no_other():
    assert correct(re.sub(r"Answer_4.*?\n\n", "", GOOD, flags=re.S)) == [True, False, True, True]


def test_an_answer_that_says_nothing_is_wrong_and_moves_no_other():
    assert correct(GOOD.replace("The answer is $70,000.", "I do not know.")) == [True, False, True, True]


def test_text_around_the_answers_changes_nothing():
    around = f"Of course! Here are the answers.\n\n{GOOD}\n\nI hope this helps. The answer is 42."
    assert correct(around) == [True] * 4


def test_answers_out_of_order_are_found_by_their_numbers():
    parts = GOOD.split("\n\n")
    assert correct("\n\n".join(reversed(parts))) == [True] * 4


def test_of_two_answers_with_one_number_the_first_counts():
    assert correct(f"{GOOD}\n\nAnswer_3:\nThe answer is 19.") == [True] * 4
    assert correct(f"Answer_3:\nThe answer is 19.\n\n{GOOD}") == [False, True, True, True]


@pytest.mark.parametrize("header", ["Answer 3:", "answer_3.", "**Answer_3:**", "ANSWER #3:", "Answer_3)"])
def test_other_ways_to_write_the_beginning_of_an_answer(header):
    assert correct(GOOD.replace("Answer_3:", header)) == [True] * 4


def test_a_model_that_starts_again_at_one_is_understood():
    anew = GOOD
    for number in (3, 4, 5, 6):
        anew = anew.replace(f"Answer_{number}:", f"Answer_{number - 2}:")
    assert correct(anew) == [True] * 4


def test_a_model_that_repeats_the_examples_first_is_understood_as_well():
    repeated = "Answer_1:\nThe answer is 1.\n\nAnswer_2:\nThe answer is 2.\n\n" + GOOD
    assert correct(repeated) == [True] * 4


def test_an_empty_output_has_no_right_answer():
    assert correct("") == [False] * 4


CHOICES = Group(0, "", 1, ("B", "A", "D"))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("The answer is (B).", "B"),
        ("The answer is (b).", "B"),
        ("The answer is B.", "B"),
        ("The answer is B", "B"),
        ("The answer is: **(B)** a horse", "B"),
        ("The answer is B) a horse", "B"),
        ("The answer is option B.", "B"),
        ("The answer is a horse.", None),
        ("The answer is A horse.", None),
        ("The answer is (B) and not (C).", "B"),
        ("The answer is none of these.", None),
    ],
)
def test_letters(said, found):
    assert find_answers(f"Answer_1: {said}", 1, 3, choices=True).get(1) == found


def test_choices_are_scored():
    output = "Answer_1: The answer is (B).\nAnswer_2: The answer is (C).\nAnswer_3: The answer is D."
    assert correct(output, CHOICES) == [True, False, True]


def test_the_papers_rule_takes_matches_in_order_and_whole_numbers_only():
    """So a missing answer moves all later ones, "$" is not read, and a comma cuts."""
    got = [one.correct_paper for one in score(GOOD, NUMBERS)]
    assert got == [True, False, False, False]  # 18; then "2" of 2.50 (no match at $70,000), ...
    plain = Group(0, "", 1, ("1", "2", "3"))
    output = "Answer_1: The answer is 1.\nAnswer_2: dunno\nAnswer_3: The answer is 3."
    assert [one.correct_paper for one in score(output, plain)] == [True, False, False]
    assert [one.correct for one in score(output, plain)] == [True, False, True]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SUMS = [
    {"question": f"What is {n} and {n}?", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"}
    for n in range(1, 8)
]
ANIMALS = [
    {"question": "What barks?", "choices": ["a cat", "a dog"], "answer": "B", "task": "animals"},
    {"question": "What flies?", "choices": ["a bird", "a fish", "a stone"], "answer": 0, "task": "animals"},
    {"question": "What burns?", "choices": ["wood", "ice"], "answer": "A", "task": "things"},
    {
        "question": "What purrs?",
        "choices": ["a cat", "a cow"],
        "answer": "A",
        "task": "animals",
        "example": True,
        "explanation": "Cats purr.",
    },
]


def test_every_question_is_asked_once_and_numbers_go_on_from_the_examples(tmp_path):
    questions, _ = read_items(write(tmp_path / "sums.jsonl", SUMS), "gsm8k")
    groups = make_groups(questions[2:], 2, worked_examples(questions[:2]))
    assert [len(group.right) for group in groups] == [2, 2, 1]
    assert [right for group in groups for right in group.right] == ["6", "8", "10", "12", "14"]
    assert all(group.first == 3 for group in groups)
    prompt = groups[0].prompt
    assert "Question_3:\nWhat is 3 and 3?\n\nQuestion_4:\nWhat is 4 and 4?" in prompt
    assert prompt.index("Question_1:\nWhat is 1 and 1?") < prompt.index("Answer_1:\n1+1=2\nThe answer is 2.")
    assert "<<" not in prompt


def test_examples_from_a_file_stand_as_they_are(tmp_path):
    questions, _ = read_items(write(tmp_path / "sums.jsonl", SUMS), "gsm8k")
    (group,) = make_groups(questions, 10, "Question_1: \nHow many?\n\nAnswer_1:\nThe answer is 6.")
    assert group.first == 2
    assert (
        "Question_1: \nHow many?\n\nAnswer_1:\nThe answer is 6.\n\nQuestions:\n\nQuestion_2:\n"
        in group.prompt
    )


def test_multiple_choice_goes_by_subject_with_the_subjects_examples(tmp_path):
    questions, examples = read_items(write(tmp_path / "mc.jsonl", ANIMALS), "mmlu")
    groups = make_groups(questions, 30, examples)
    assert [group.right for group in groups] == [("B", "A"), ("A",)]
    assert "What purrs?\n(A) a cat (B) a cow" in groups[0].prompt
    assert "Answer_1:\nCats purr.\nThe answer is (A)." in groups[0].prompt
    assert "about animals" in groups[0].prompt
    assert "purrs" not in groups[1].prompt
    assert groups[1].first == 1


@pytest.mark.parametrize(
    ("line", "task", "words"),
    [
        ("{", "gsm8k", "line 1: not JSON"),
        ('["question"]', "gsm8k", "`question` and `answer`"),
        ('{"question": "What?"}', "gsm8k", "`question` and `answer`"),
        ('{"question": "What?", "answer": "18"}', "gsm8k", "does not end in '#### number'"),
        ('{"question": "What?", "answer": "#### many"}', "gsm8k", "does not end in '#### number'"),
        ('{"question": "What?", "answer": "A"}', "csqa", "`choices` is a list of 2 to 10 texts"),
        ('{"question": "What?", "answer": "C", "choices": ["a", "b"]}', "csqa", "one of A, B"),
        ('{"question": "What?", "answer": 2, "choices": ["a", "b"]}', "mmlu", "one of A, B"),
        ("", "gsm8k", "has no questions"),
    ],
)
def test_data_that_cannot_be_asked_names_its_line(tmp_path, line, task, words):
    (tmp_path / "bad.jsonl").write_text(f"{line}\n")
    with pytest.raises(UsageError, match=re.escape(words)):
        read_items(tmp_path / "bad.jsonl", task)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        read_items(tmp_path / "none.jsonl", "gsm8k")


def test_accuracy_by_index_counts_prompts_of_different_lengths():
    rows = [[{"index": 1, "correct": True}, {"index": 2, "correct": False}], [{"index": 1, "correct": False}]]
    assert list(by_index(rows, 3)) == [(1, 0.5, 2), (2, 0.0, 1)]


def test_numbers_are_compared_by_value():
    assert same_answer("18.00", "18") and same_answer("$1,000", "1000")
    assert not same_answer(None, "18") and not same_answer("18", "18.5")
    assert Item("q", "18") == Item("q", "18")
