"""Who is measured when, what becomes of who fails, and what the figures are made of."""

import sys
import threading
from itertools import groupby, pairwise
from statistics import median

import psutil
import pytest

from scope_cli.measure.bench.contest import Course, Measured, Spec, Standing, contest, rotated
from scope_cli.measure.bench.protocol import Job
from scope_cli.measure.bench.report import agreements, lines_of, remarks
from tests.helpers.patience import PATIENCE_S, until

FAKE = """
import json, sys, time
name, step_s, log = sys.argv[1], float(sys.argv[2]), open(sys.argv[3], "a")
dies_at = sys.argv[4] if len(sys.argv) > 4 else ""
position = steps = 0
for line in sys.stdin:
    request = json.loads(line)
    op = request["op"]
    if op == "read":
        position = len(request["ids"][0])
    if op == "advance":
        position += len(request["ids"][0])
    if op == "step":
        steps += request["count"]
        position += request["count"]
    print(name, op, position, file=log, flush=True)
    if dies_at == "late":
        time.sleep(3600)
    if dies_at == "nonsense":
        print("hello", flush=True)
        continue
    if dies_at and dies_at == f"{op}{position}":
        print("first a word", file=sys.stderr)
        sys.exit("out of luck")
    answer = {"policy": name, "exact": True, "versions": {}, "weight_bytes": 100} if op == "load" else {
        "elapsed_s": request.get("count", 1) * step_s, "next": [7], "ids": [], "peak_bytes": steps,
        "held_bytes": position, "read_bytes": 100, "moved_bytes": 5,
    }
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def field(tmp_path):
    """Contenders that say what they were asked, and take the time that they were told to take."""
    (tmp_path / "fake.py").write_text(FAKE)
    log = tmp_path / "log"

    def run(*who: tuple, say=lambda line: None, **course):
        specs = [
            Spec(name, (sys.executable, str(tmp_path / "fake.py"), name, str(step_s), str(log), *more))
            for name, step_s, *more in who
        ]
        positions = course.pop("positions", (40,))
        job = Job("m", "f", prompt_tokens=10, most_tokens=positions[-1] + 1)
        options = {"burst": 4, "rounds": 2, **course}
        full = Course(job, tuple(range(10)), tuple(range(100, 200)), positions, **options)
        rows = {spec.name: Standing(spec.name) for spec in specs}
        contest(specs, list(rows.values()), full, say)
        asked = [line.split() for line in log.read_text().splitlines()]
        return rows, full, asked

    return run


def test_bursts_are_taken_in_turn(field):
    _, _, asked = field(("a", 1), ("b", 2), ("c", 3), rounds=3)
    steps = [name for name, op, _ in asked if op == "step"]
    assert steps == ["a", "b", "c"] * 4, "one round that is not counted, and three"


def test_the_bursts_end_at_the_position(field):
    rows, _, asked = field(("a", 1), positions=(40, 60))
    steps = [int(position) for _, op, position in asked if op == "step"]
    assert steps == [32, 36, 40, 52, 56, 60]
    assert [one.position for one in rows["a"].positions] == [40, 60]
    assert [len(one.step_ms) for one in rows["a"].positions] == [2, 2]


def test_every_position_starts_from_the_prompt_and_the_same_text(field):
    _, _, asked = field(("a", 1), positions=(40, 60))
    assert [(op, int(at)) for _, op, at in asked if op in ("read", "advance")] == [
        ("read", 10), ("advance", 28), ("read", 10), ("advance", 48)
    ]  # fmt: skip


def test_a_written_text_is_read_once_and_never_fed(field):
    _, _, asked = field(("a", 1), positions=(40, 60), write=True)
    assert [op for _, op, _ in asked].count("read") == 1
    assert not any(op == "advance" for _, op, _ in asked)
    steps = [int(position) for _, op, position in asked if op == "step"]
    assert steps[-1] == 60 and 40 in steps
    assert all(later - earlier <= 4 for earlier, later in pairwise(steps))


def test_positions_apart_are_taken_in_turn_too(field):
    _, _, asked = field(("a", 1), ("b", 1), positions=(40, 60), apart=True)
    assert [op for _, op, _ in asked].count("load") == 4
    steps = [(name, int(at)) for name, op, at in asked if op == "step"]
    assert steps[-4:] == [("a", 40), ("b", 40), ("a", 60), ("b", 60)]


def test_one_after_the_other_never_two_at_once(field):
    _, _, asked = field(("a", 1), ("b", 1), positions=(40, 60), sequential=True)
    assert [name for name, _ in groupby(asked, key=lambda one: one[0])] == ["a", "b"]


@pytest.mark.parametrize("when", ["load0", "read10", "advance28", "step32", "step40"])
def test_who_dies_is_a_row_with_its_reason_and_the_others_go_on(field, when):
    rows, course, _ = field(("a", 1), ("dead", 1, when), ("c", 3))
    assert rows["dead"].failed == "ended with exit code 1: out of luck"
    assert [len(rows[name].at(40).step_ms) for name in "ac"] == [2, 2]
    assert rows["a"].failed is None
    assert "dead failed: ended with exit code 1: out of luck" in remarks(list(rows.values()))
    assert {line.contender for line in lines_of(list(rows.values()), course, "a")} >= {"a", "c"}


@pytest.fixture
def impatient(monkeypatch):
    """Who is called late, and never answers, is given up soon; the others are waited for."""

    class Impatient(threading.Timer):
        def __init__(self, seconds, give_up):
            late = "late" in give_up.__self__.process.args
            super().__init__(0.1 if late else PATIENCE_S, give_up)

    monkeypatch.setattr("scope_cli.measure.child.Timer", Impatient)


def test_who_does_not_answer_in_time_is_ended(field, impatient):
    rows, _, _ = field(("late", 1, "late"), ("a", 1), timeout_s=77)
    assert rows["late"].failed == "no answer to a request within 77 s"
    assert len(rows["a"].at(40).step_ms) == 2


def test_who_speaks_something_else_is_told_so(field):
    rows, _, _ = field(("a", 1), ("odd", 1, "nonsense"))
    assert rows["odd"].failed == "does not speak the protocol: 'hello'"


def test_a_command_that_is_not_there_is_a_failed_row(field):
    course = Course(Job("m", "f", 2, 41), (1, 2), tuple(range(50)), (40,), burst=4, rounds=1)
    row = Standing("gone")
    contest([Spec("gone", ("/no/such/program",))], [row], course)
    assert row.failed == "cannot start /no/such/program: No such file or directory"


def test_a_baseline_that_failed_leaves_no_ratio(field):
    rows, course, _ = field(("dead", 1, "load0"), ("a", 1))
    (line,) = lines_of(list(rows.values()), course, "dead")
    assert (line.contender, line.ratio, line.ratio_least) == ("a", None, None)


def test_an_interrupted_run_keeps_what_it_has_and_leaves_no_process(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    log = tmp_path / "log"
    specs = [Spec(name, (sys.executable, str(tmp_path / "fake.py"), name, "1", str(log))) for name in "ab"]
    rows = [Standing("a"), Standing("b")]
    course = Course(Job("m", "f", 10, 61), tuple(range(10)), tuple(range(99)), (40, 60), burst=4, rounds=2)

    def interrupt(line):
        if line == "b: on the way to position 60":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        contest(specs, rows, course, interrupt)
    assert [[len(one.step_ms) for one in row.positions] for row in rows] == [[2, 0], [2]]
    assert {(line.contender, line.position) for line in lines_of(rows, course, "a")} == {("a", 40), ("b", 40)}
    assert not running("fake.py")


def running(script):
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.status() != "zombie" and script in " ".join(child.cmdline())]


def test_no_process_is_left_behind(field, impatient):
    rows, _, _ = field(("a", 1), ("late", 1, "late"))
    assert rows["a"].failed is None and rows["late"].failed
    assert not running("fake.py")


def test_who_is_not_on_turn_stands_still(field):
    seen = []

    def look(line):
        if line.startswith("2 rounds"):
            still = {psutil.STATUS_STOPPED}
            until(lambda: {child.status() for child in running("fake.py")} == still, "they stand still")
            seen.append(len(running("fake.py")))

    rows, _, _ = field(("a", 1), ("b", 1), say=look)
    assert seen == [2] and not any(row.failed for row in rows.values())


def row_of(name, bursts, lanes=1, **more):
    return Standing(name, lanes=lanes, weight_bytes=900, positions=[Measured(40, step_ms=bursts, **more)])


COURSE = Course(Job("m", "f", 10, 41), tuple(range(10)), (), (40,))


def test_the_figures_are_medians_of_bursts_and_ratios_are_paired_by_round():
    ours, theirs = [10.0, 40.0, 11.0], [30.0, 90.0, 22.0]  # the second round was noisy for both
    rows = [row_of("dynamic", theirs), row_of("slide", ours)]
    base, line = lines_of(rows, COURSE, "dynamic")
    paired = [b / a for a, b in zip(ours, theirs, strict=True)]
    assert line.step_ms == median(ours)
    assert (line.ratio, line.ratio_least, line.ratio_most) == (median(paired), min(paired), max(paired))
    assert line.tokens_per_s == pytest.approx(1000 / 11)
    assert (base.ratio, base.ratio_least) == (1, 1)


def test_lanes_count_in_tokens_and_not_in_steps():
    rows = [row_of("one", [10.0]), row_of("eight", [20.0], lanes=8)]
    _, line = lines_of(rows, COURSE, "one")
    assert (line.step_ms, line.tokens_per_s, line.ratio) == (20, pytest.approx(400), pytest.approx(4))


def test_the_prompt_counts_in_every_lane():
    rows = [row_of("one", [1.0], read_s=[2.0, 4.0, 9.0]), row_of("eight", [1.0], 8, read_s=[10.0])]
    one, eight = lines_of(rows, COURSE, "one")
    assert one.prefill_tokens_per_s == pytest.approx(10 / 4)
    assert eight.prefill_tokens_per_s == pytest.approx(80 / 10)
    assert eight.prefill_ratio == pytest.approx(8 / 2.5)


def test_the_share_of_the_limit_is_what_reading_the_bytes_would_take():
    (line,) = lines_of([row_of("a", [10.0], read_bytes=100)], COURSE, "a", bandwidth=200_000)
    assert line.share_of_limit == pytest.approx(0.5)  # 1,000 bytes at 200,000 a second are 5 of 10 ms


def test_agreement_is_with_the_first_exact_contender():
    rows = [
        Standing("slide", positions=[Measured(40, next_ids=[[1], [9]])]),
        Standing("full", exact=True, positions=[Measured(40, next_ids=[[1], [2]])]),
        Standing("wrong", exact=True, positions=[Measured(40, next_ids=[[1], [3]])]),
        Standing("two", lanes=2, exact=True, positions=[Measured(40, next_ids=[[1, 5], [2, 5]])]),
    ]
    assert agreements(rows) == {"slide": (1, 2), "full": (2, 2), "wrong": (1, 2), "two": (2, 2)}
    said = remarks(rows)
    assert any("wrong" in line and "an exact contender that differs" in line for line in said)
    assert sum("differs" in line for line in said) == 1


def test_every_lane_gets_a_prompt_of_its_own():
    prompts = rotated(tuple(range(8)), 4)
    assert prompts[0] == list(range(8))
    assert {tuple(sorted(one)) for one in prompts} == {tuple(range(8))}
    assert len({tuple(one) for one in prompts}) == 4
