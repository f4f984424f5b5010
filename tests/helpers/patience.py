"""How long a test waits before it takes something for hung: with much other work on the machine all is slow.

A limit, never a measure: no test says how fast something is.
"""

import time
from collections.abc import Callable

import pytest

PATIENCE_S = 600


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not after {PATIENCE_S} s")
        time.sleep(0.02)
