"""The CPU seconds of every test, the processes that it waits for included; and which tests are slow.

`make slow` writes tests/slow.txt anew: the test functions that `make test-fast` leaves out.
`pytest -p tests.helpers.cost` with COST=FILE appends a line for each test to the file.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW_S = 0.2  # CPU seconds of all of a function's cases together
SLOW = Path(__file__).parent.parent / "slow.txt"


def used_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = used_s()
    result = yield
    if "COST" in os.environ:
        with Path(os.environ["COST"]).open("a") as file:
            file.write(f"{used_s() - before:.2f}\t{item.nodeid}\n")
    return result


def function_of(node: str) -> str:
    """A test's file and function, below tests/, without its case."""
    return node.split("[")[0].split("@")[0].removeprefix("tests/")


def functions(lines: Iterator[str]) -> Counter[str]:
    """CPU seconds by function."""
    found: Counter[str] = Counter()
    for line in lines:
        seconds, node = line.rstrip("\n").split("\t", 1)
        found[function_of(node)] += float(seconds)
    return found


if __name__ == "__main__":
    found = functions(line for name in sys.argv[1:] for line in Path(name).read_text().splitlines())
    print("\n".join(sorted(name for name, seconds in found.items() if seconds >= SLOW_S)))
