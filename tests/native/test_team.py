"""The team of threads: whatever calls it, and on a machine that has other things to do."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from tests.helpers.attention_case import Case

CASE = ("int8", "int8")


def test_several_python_threads_take_turns(native):
    native.threads(2)
    cases = [Case(64, 3, 300 + place, CASE) for place in range(8)]
    expected = [case.attend()[0] for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            got = list(pool.map(lambda case: case.attend()[0], cases))
            assert all(map(torch.equal, got, expected))


def test_more_threads_than_cores(native):
    case = Case(64, 3, 777, CASE)
    expected, _ = case.attend()
    for threads in (16, 1, 5):
        native.threads(threads)
        assert torch.equal(case.attend()[0], expected)


def test_a_forked_process_has_a_team_of_its_own(native):
    native.threads(2)
    case = Case(64, 3, 777, CASE)
    expected, _ = case.attend()
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(case.attend()[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(case.attend()[0], expected)


def test_ctrl_c_is_heard_between_two_calls(native):
    code = (
        "import os, signal, threading, torch\n"
        "from tests.native.test_attention import Case\n"
        "torch.set_num_threads(2)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever starts the tests may ignore it
        "case = Case(64, 3, 777, ('int8', 'int8'))\n"
        "case.attend()\n"  # the library is built or found
        "try:\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    while True: case.attend()\n"
        "except KeyboardInterrupt: print('heard')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "heard"
