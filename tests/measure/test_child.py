"""A process that is asked: what it tells, what it cannot do, and that it never outlives who asks."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from scope_cli.measure.child import Child, NoAnswer
from tests.helpers.patience import until

ASKED = """
import os, signal, sys
from scope_cli.errors import UsageError
from scope_cli.measure.child import serve

def answer(request, tell):
    if request["op"] == "refuse":
        raise UsageError("it cannot be", "try another")
    if request["op"] == "crash":
        raise KeyError("luck")
    print("what a library prints")
    tell(progress="half", part=0.5)
    return {"pid": os.getpid(), "said": request["op"]}

serve(answer, UsageError)
"""
COMMAND = [sys.executable, "-c", ASKED]


@pytest.fixture
def child():
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    one = Child(COMMAND, buffered)
    yield one
    one.kill()
    one.close()


def test_an_answer_comes_after_what_is_told_on_the_way(child):
    heard = []
    answer = child.ask({"op": "größe\n"}, heard.append)
    assert heard == [{"progress": "half", "part": 0.5}] and answer["said"] == "größe\n"
    assert "what a library prints" in child.words()


def test_a_refusal_is_an_answer_and_the_next_request_is_met(child):
    refusal = child.ask({"op": "refuse"})
    assert refusal == {"error": "it cannot be", "hint": "try another", "exit_code": 2}
    assert child.ask({"op": "x"})["said"] == "x"


def test_a_crash_is_told_with_its_last_words(child):
    with pytest.raises(NoAnswer, match="ended with exit code 1: KeyError: 'luck'") as told:
        child.ask({"op": "crash"})
    assert told.value.code == 1 and "Traceback" in child.words()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that is stopped stays")
def test_a_process_that_stands_still_ends_with_who_asks():
    asks = (
        "import os, sys, time; from scope_cli.measure.child import Child; "
        f"child = Child({COMMAND!r}, os.environ, in_turn=True); "
        "print(child.ask({'op': 'x'})['pid'], flush=True); time.sleep(3600)"
    )
    with subprocess.Popen([sys.executable, "-c", asks], stdout=subprocess.PIPE, text=True) as parent:
        stopped = psutil.Process(int(parent.stdout.readline()))
        until(lambda: stopped.status() == psutil.STATUS_STOPPED, "it stands still")
        parent.send_signal(signal.SIGKILL)
    until(lambda: not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE, "it ends")
