"""What is going on before there is anything to see: one line that goes, or a line each."""

import io
from types import SimpleNamespace

import pytest

from scope_cli.console.phases import Phases


class Screen(io.StringIO):
    """What a terminal of one row shows, where every line that ended has scrolled into `gone`."""

    def isatty(self):
        return True

    def rows(self):
        lines = self.getvalue().split("\n")
        return [line.rpartition("\r\x1b[K")[2] for line in lines]


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(
        "scope_cli.console.phases.sys", SimpleNamespace(stderr=screen)
    )  # pytest takes sys.stderr back
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_on_a_terminal_a_phase_takes_the_place_of_the_one_before_and_nothing_stays(screen):
    phases = Phases()
    phases.begin("loading tiny")
    assert screen.rows() == ["loading tiny ..."]
    phases.begin("reading the weights")
    assert screen.rows() == ["reading the weights ..."]
    phases.say("fetching tiny")
    phases.begin("converting")
    phases.end()
    assert screen.rows() == ["fetching tiny", ""]


def test_a_name_cannot_move_the_cursor(screen):
    phases = Phases()
    phases.begin("loading a\x1b[2Jb")
    phases.say("of c\x9bd")
    assert screen.rows() == ["of c\\x9bd", ""] and "\x1b[2J" not in screen.getvalue()


@pytest.mark.parametrize(
    ("quiet", "log", "told"),
    [(False, True, "loading tiny ...\nfetching\n"), (False, False, "fetching\n"), (True, True, "")],
)
def test_in_a_log_each_phase_is_a_line_unless_it_is_quiet(capsys, quiet, log, told):
    phases = Phases(quiet, log)
    phases.begin("loading tiny")
    phases.say("fetching")
    phases.end()
    assert capsys.readouterr() == ("", told)


def test_an_error_finds_the_line_free(screen):
    with pytest.raises(ZeroDivisionError), Phases() as phases:
        phases.begin("loading tiny")
        assert screen.rows() == ["loading tiny ..."]
        raise ZeroDivisionError
    assert screen.rows() == [""]


def test_stages_are_told_in_their_order_and_add_up_to_the_whole(monkeypatch):
    clock = iter([10.25, 12.0, 12.0, 13.5])
    monkeypatch.setattr("scope_cli.console.phases.perf_counter", lambda: next(clock))
    monkeypatch.setattr("scope_cli.BEGAN", 10.0)
    phases = Phases()
    for stage in ("command", "imports", "command", "first token"):  # a second lane reaches a stage again
        phases.reach(stage)
    assert phases.times() == "3.50 s: command 0.25, imports 1.75, first token 1.50"
