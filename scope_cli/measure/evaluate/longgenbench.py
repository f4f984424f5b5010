"""Questions in, prompts of many questions out; a long answer in, the score of each question out.

LongGenBench as SCOPE uses it (arXiv 2412.13649, section 4.1; the benchmark is arXiv 2410.04199): K questions
in one prompt, after worked examples; the model answers them one after the other. Nothing is dropped: the last
prompt of a task has the questions that are left.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

from scope_cli.errors import UsageError

Task = Literal["gsm8k", "mmlu", "csqa"]
TASKS: tuple[Task, ...] = ("gsm8k", "mmlu", "csqa")
LETTERS = "ABCDEFGHIJ"
INSTRUCTION = (
    "Below are worked examples, and after them questions with numbers that go on from the examples. Answer "
    "all of the questions, in order, in the form of the examples: begin each answer with 'Answer_' and its "
    "number, think step by step, and end it with 'The answer is'. Do not write the questions again."
)
HEADER = re.compile(r"answer[\s_#]*(\d+)\s*[:.)\]]", re.IGNORECASE)
SAYS = re.compile(r"answer\s+is\b", re.IGNORECASE)
NUMBER = re.compile(r"-?\s?[$€£]?\s?(\d[\d,]*(?:\.\d+)?|\.\d+)")
CHOICE = re.compile(r"\(\s*([A-Za-z])\s*\)|\b([A-J])(?=\s*(?:[.,:;)\]]|$))")
PAPER_NUMBER = re.compile(r"Answer_\d+:\s*.*?answer is (\d+)", re.DOTALL)
PAPER_CHOICE = re.compile(r"Answer_\d+:\s*.*?answer is \((.*?)\)")


@dataclass(frozen=True)
class Item:
    """One question of the data, as it is asked, and its right answer: a number's text or a letter."""

    text: str
    right: str
    worked: str = ""  # how the answer is reached, for worked examples
    subject: str = ""


@dataclass(frozen=True)
class Group:
    """One prompt: worked examples, then K questions that are numbered on from them."""

    number: int
    prompt: str
    first: int  # number of the first question, as the model sees it
    right: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """One question: what was found in the output, and whether it is right."""

    index: int  # from 1, within its prompt
    right: str
    found: str | None  # None: there is no answer to it
    correct: bool
    correct_paper: bool  # by the authors' rule: the n-th match of their pattern, whole numbers only


def read_items(path: Path, task: Task) -> tuple[list[Item], list[Item]]:
    """(questions, worked examples that the file marks with `example: true`) of a JSONL file.

    Raises UsageError naming the line for what is missing or cannot be asked.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--data: cannot read {path}: {error}", "docs/results/quality.md says where data comes from"
        ) from error
    questions: list[Item] = []
    examples: list[Item] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(line, f"{path}, line {number}")
            item = (
                _gsm8k(row, f"{path}, line {number}")
                if task == "gsm8k"
                else _choice(row, f"{path}, line {number}")
            )
            (examples if row.get("example") is True else questions).append(item)
    if not questions:
        raise UsageError(f"--data: {path} has no questions")
    return questions, examples


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}", "one JSON object a line") from error
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or "answer" not in row:
        raise UsageError(f"{where}: a row has `question` and `answer`", "docs/results/quality.md shows one")
    return row


def _gsm8k(row: dict[str, Any], where: str) -> Item:
    worked, mark, right = str(row["answer"]).rpartition("####")
    if not mark or as_number(right) is None:
        raise UsageError(f"{where}: `answer` does not end in '#### number'", "is this --task gsm8k?")
    worked = re.sub(r"<<.*?>>", "", worked).strip()
    return Item(row["question"].strip(), right.strip(), worked)


def _choice(row: dict[str, Any], where: str) -> Item:
    choices, answer = row.get("choices"), row["answer"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise UsageError(
            f"{where}: `choices` is a list of 2 to {len(LETTERS)} texts", "is this a multiple-choice task?"
        )
    letters = LETTERS[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        answer = letters[answer]  # an index, as some copies of MMLU have it
    if not isinstance(answer, str) or answer not in letters or not answer:
        raise UsageError(
            f"{where}: `answer` is {answer!r}; it is one of {', '.join(letters)}, or an index from 0"
        )
    listed = " ".join(f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True))
    text = f"{row['question'].strip()}\n{listed}"
    return Item(text, answer, str(row.get("explanation", "")).strip(), str(row.get("task", "")))


def make_groups(
    questions: Sequence[Item], per_prompt: int, shots: str | Sequence[Item], limit: int | None = None
) -> list[Group]:
    """Prompts of `per_prompt` questions each; a prompt's questions are of one subject.

    shots: the text of worked examples numbered from 1, or the examples themselves, from which a subject gets
    its own
    """
    groups: list[Group] = []
    for subject in dict.fromkeys(item.subject for item in questions[:limit]):
        of_subject = [item for item in questions[:limit] if item.subject == subject]
        examples = shots if isinstance(shots, str) else worked_examples(shots, subject)
        first = 1 + max((int(number) for number in re.findall(r"Question[_ ](\d+)", examples)), default=0)
        for start in range(0, len(of_subject), per_prompt):
            asked = of_subject[start : start + per_prompt]
            listed = "\n\n".join(
                f"Question_{number}:\n{item.text}" for number, item in enumerate(asked, first)
            )
            about = f" The questions are about {subject.replace('_', ' ')}." if subject else ""
            parts = [
                INSTRUCTION + about,
                f"Examples:\n\n{examples.strip()}" if examples else "",
                f"Questions:\n\n{listed}",
            ]
            prompt = "\n\n".join(part for part in parts if part)
            groups.append(Group(len(groups), prompt, first, tuple(item.right for item in asked)))
    return groups


def worked_examples(items: Sequence[Item], subject: str = "") -> str:
    """All questions, then all answers, as the benchmark has it."""
    mine = [item for item in items if item.subject in ("", subject)]
    questions = [f"Question_{number}:\n{item.text}" for number, item in enumerate(mine, 1)]
    answers = [
        f"Answer_{number}:\n{item.worked}\nThe answer is {_as_answer(item.right)}.".replace("\n\n", "\n")
        for number, item in enumerate(mine, 1)
    ]
    return "\n\n".join([*questions, *answers])


def _as_answer(right: str) -> str:
    return f"({right})" if right in LETTERS else right


def score(output: str, group: Group) -> list[Scored]:
    """Every question of a prompt; an answer is found by its number, wherever it stands."""
    choices = all(right in LETTERS for right in group.right)
    answers = find_answers(output, group.first, len(group.right), choices)
    by_paper = _paper_answers(output, choices)
    scored = []
    for index, right in enumerate(group.right, 1):
        found = answers.get(index)
        paper = by_paper[index - 1] if index <= len(by_paper) else None
        # Their right answer is the whole number after '####', so one with a comma or a sign is cut there.
        paper_right = right if choices else (re.match(r"\d+", right) or [None])[0]
        scored.append(
            Scored(index, right, found, same_answer(found, right), paper is not None and paper == paper_right)
        )
    return scored


def find_answers(output: str, first: int, count: int, choices: bool) -> dict[int, str]:
    """Index from 1 -> what the model says after "answer is", for the answers that there are.

    An answer begins at "Answer_N:" (also "Answer N.", in any case) and goes to the next such beginning; of
    two with one number the first that says something counts. Numbers go on from the examples; a model that
    starts again at 1, and never reaches a number above `count`, is understood.
    """
    heads = list(HEADER.finditer(output))
    ends = [*(head.start() for head in heads), len(output)][1:]
    numbers = [int(head[1]) for head in heads]
    anew = bool(numbers) and min(numbers) < first and max(numbers) <= count
    found: dict[int, str] = {}
    for head, end, number in zip(heads, ends, numbers, strict=True):
        index = number if anew else number - first + 1
        said = _said(output[head.end() : end], choices)
        if 1 <= index <= count and said is not None and index not in found:
            found[index] = said
    return found


def _said(text: str, choices: bool) -> str | None:
    """What stands after the first "answer is" of an answer, up to the end of its line."""
    says = SAYS.search(text)
    if says is None:
        return None
    rest = text[says.end() :].split("\n", 1)[0].replace("*", "").strip()
    if choices:
        choice = CHOICE.search(rest)
        return (choice[1] or choice[2]).upper() if choice else None
    sentence = re.split(r"(?<=[^\d])\.\s|(?<=\d)\.\s+(?=[A-Z])", rest)[0]
    number = NUMBER.search(sentence.rsplit("=", 1)[-1])  # "5 + 3 = 8" says 8
    return number[0] if number else None


def same_answer(found: str | None, right: str) -> bool:
    """Letters as they are; numbers by value, without commas, currencies and trailing zeros."""
    if found is None:
        return False
    if right in LETTERS:
        return found == right
    one, other = as_number(found), as_number(right)
    return one is not None and one == other


def as_number(text: str) -> Decimal | None:
    cleaned = re.sub(r"[,$€£\s]", "", text)
    try:
        number = Decimal(cleaned)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _paper_answers(output: str, choices: bool) -> list[str]:
    return (PAPER_CHOICE if choices else PAPER_NUMBER).findall(output)


def by_index(rows: Iterable[Sequence[dict[str, Any]]], count: int) -> Iterator[tuple[int, float, int]]:
    """(index, share of right answers, how many prompts have such a question), from 1 on."""
    answers = list(rows)
    for index in range(1, count + 1):
        here = [answer["correct"] for row in answers for answer in row if answer["index"] == index]
        if here:
            yield index, sum(here) / len(here), len(here)
