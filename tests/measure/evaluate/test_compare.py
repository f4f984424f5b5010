"""Tables of saved results: paired where both were measured, and files that name the same profile."""

import csv
import io

import pytest

from scope_cli.console.tables import as_markdown
from scope_cli.errors import UsageError
from scope_cli.measure.evaluate.compare import as_csv, as_table, compare, differences, mean_bytes, verdict
from tests.helpers.results import HELD, fidelity, result


def test_means_differences_and_bytes():
    hard = [0.1 * (number % 5) for number in range(10)]
    lines = compare(
        [("a.json", result(fidelity("slide", hard), fidelity("random", [one + 1 for one in hard])))]
    )
    (slide, random) = [line for line in lines if line.metric == "kl"]
    assert (slide.mean, slide.difference) == (pytest.approx(0.2), None)
    assert random.difference == pytest.approx(1.0)
    assert (random.difference_low, random.difference_high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert random.differs
    assert random.low < random.mean < random.high
    assert (slide.held_mean_bytes, slide.held_peak_bytes, slide.of_full) == (50.0, 80, 0.5)
    same = next(line for line in lines if line.metric == "top1" and line.profile == "random")
    assert (same.difference, same.differs) == (0, False)


def test_only_what_both_were_measured_on_is_compared():
    both = fidelity("slide", [0.0] * 10)
    both["rows"] += fidelity("slide", [5.0] * 10, text="b")["rows"]
    lines = compare([("a", result(both)), ("b", result(fidelity("random", [7.0] * 10, text="b")))])
    random = next(line for line in lines if (line.profile, line.metric) == ("random", "kl"))
    assert random.difference == pytest.approx(2.0)


def test_profiles_that_share_nothing_are_refused():
    one, other = fidelity("slide", [0.0] * 10), fidelity("random", [0.0] * 10, text="b")
    with pytest.raises(UsageError, match="random and slide share no measurement"):
        compare([("a", result(one, other))])


def test_a_name_that_two_files_have_is_told_by_its_file():
    lines = compare(
        [("a.json", result(fidelity("slide", [0.1] * 10))), ("b.json", result(fidelity("slide", [0.3] * 10)))]
    )
    assert [line.profile for line in lines if line.metric == "kl"] == ["slide", "slide (b.json)"]


def test_the_full_cache_is_the_baseline_where_it_was_measured():
    lines = compare([("a", result(fidelity("slide", [1.0] * 10), fidelity("full", [0.0] * 10)))])
    assert next(line for line in lines if line.metric == "kl" and line.profile == "slide").difference == 1
    lines = compare([("a", result(fidelity("slide", [1.0] * 10), fidelity("full", [0.0] * 10)))], "slide")
    assert next(line for line in lines if line.metric == "kl" and line.profile == "full").difference == -1


def test_recall_is_paired_question_by_question():
    def recalled(name, logprobs):
        answers = [{"logprob": one, "hits": 1.0, "rank": int(one < -1)} for one in logprobs]
        row = {"probe_id": "p", "answers": answers, "bytes": HELD}
        return {"name": name, "rows": [row], "bytes": mean_bytes([row])}

    lines = compare(
        [("a", result(recalled("full", [-0.1] * 5), recalled("slide", [-0.1] * 4 + [-5.1]), kind="recall"))]
    )
    found = {(line.profile, line.metric): line for line in lines}
    assert found["slide", "logprob"].difference == pytest.approx(-1)
    assert found["slide", "exact"].mean == pytest.approx(0.8)
    assert found["full", "exact"].mean == 1


def test_questions_of_one_prompt_are_one_block():
    def scored(name, *prompts):
        rows = [
            {
                "prompt_id": str(number),
                "answers": [{"correct": one, "correct_paper": False} for one in answers],
                "bytes": HELD,
            }
            for number, answers in enumerate(prompts)
        ]
        return {"name": name, "rows": rows, "bytes": mean_bytes(rows)}

    same, other = [True] * 20, [False] * 20
    lines = compare([("a", result(scored("full", same, other, same, other, same), kind="longgenbench"))])
    assert lines[0].mean == pytest.approx(0.6)
    assert lines[0].high - lines[0].low > 0.5, "100 independent questions would give about 0.2"


def test_tables_say_the_same_in_both_formats():
    lines = compare([("a", result(fidelity("slide", [0.1] * 10), fidelity("random", [0.3] * 10)))])
    table = as_markdown(as_table("fidelity", lines))
    assert "| random | 0.3000 (0.3000 to 0.3000) * | 0.500 (0.500 to 0.500) |" in table
    assert "| 50 B | 80 B | 50.0% |" in table
    assert "| random minus slide | 0.2000 (0.2000 to 0.2000) * |" in as_markdown(
        differences("fidelity", lines)
    )
    rows = list(csv.DictReader(io.StringIO(as_csv(lines))))
    assert [(row["profile"], row["metric"]) for row in rows] == [
        (line.profile, line.metric) for line in lines
    ]
    assert float(rows[1]["difference"]) == pytest.approx(0.2)


def test_a_verdict_names_the_best_bounded_cache_and_whether_chance_explains_it():
    def said(*profiles, baseline=None):
        return verdict("fidelity", compare([("a", result(*profiles))], baseline))

    whole = fidelity("full", [0.0] * 10)
    whole["bytes"] = {**whole["bytes"], "held_mean": 100.0}
    slide, random = fidelity("slide", [0.1] * 10), fidelity("random", [0.3] * 10)
    assert said(whole, slide, random) == (
        "slide: KL to full (nats) lowest of 2: 0.1000 (0.1000 to 0.1000), with 50.0% of the full cache's "
        "bytes; worse than full, and not by chance"
    )
    assert said(random, slide).endswith("better than random, and not by chance")
    noise = [0.3, -0.3] * 10
    far = fidelity("window", [0.09 + one for one in noise], tokens=640)
    assert said(fidelity("slide", [0.1] * 20, tokens=640), far).endswith("not told apart from slide")
    few = [fidelity(name, [kl], tokens=32) for name, kl in (("slide", 0.2), ("random", 0.1))]
    assert said(*few).endswith("to tell it from slide")
    assert said(slide) == "", "alone there is nothing to say"


def test_different_evaluations_are_not_compared():
    with pytest.raises(UsageError, match="different evaluations"):
        compare([("a", result(fidelity("slide", [0.1]))), ("b", result(kind="loops"))])
    with pytest.raises(UsageError, match="`evaluate claims` cannot be compared"):
        compare([("a", result(kind="claims"))])
    with pytest.raises(UsageError, match="nothing was measured yet"):
        compare([("a", result())])
    with pytest.raises(UsageError, match="no profile 'slid'"):
        compare([("a", result(fidelity("slide", [0.1])))], "slid")
