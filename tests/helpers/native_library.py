"""The native library for a test; it is as it was before when the test ends."""

from collections.abc import Iterator

import pytest
import torch

from scope_cli.native.library import INSTRUCTIONS, Library, library


class Native:
    """What a test may change."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.use = library.use
        self.threads = torch.set_num_threads

    def all_instructions(self) -> list[str]:
        """Those of this CPU."""
        before = self.library.instructions
        there = [one for one in INSTRUCTIONS if self.use(one) == one]
        self.use(before)
        return there


@pytest.fixture
def native() -> Iterator[Native]:
    found = library()
    if found is None:
        pytest.skip("there is no compiler here")
    instructions, threads = found.instructions, torch.get_num_threads()
    yield Native(found)
    found.use(instructions)
    torch.set_num_threads(threads)
