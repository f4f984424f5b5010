"""Holes of glibc's heap, in a process of its own and in a stand-in."""

import platform
import subprocess
import sys
from types import SimpleNamespace

from scope_cli.machine import heap


def test_holes_of_the_heap_are_taken_once():
    """In a process of its own: what is taken is taken for good."""
    code = (
        "from scope_cli.machine import heap\n"
        "heap.return_freed_memory()\n"
        "blocks = [bytearray(20_000) for _ in range(400)]\n"
        "del blocks[::2]\n"
        "first, second = heap.fill_holes(), heap.fill_holes()\n"
        "print(first, second)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, second = map(int, said.split())
    if platform.libc_ver()[0] == "glibc":
        assert first > 2_000_000, "200 holes of 20,000 bytes, by powers of two"
    assert second < 100_000


class Heap:
    """In glibc's place: malloc takes a hole, maps a large block, or cuts from the top, which then grows."""

    def __init__(self, holes, top):
        self.holes, self.top, self.arena, self.mapped = list(holes), top, 2**30, 0
        self.kept = []  # the blocks that were not freed
        self.asked = 0
        self.mallinfo2 = lambda: SimpleNamespace(hblks=self.mapped, keepcost=self.top, arena=self.arena)
        self.malloc = lambda size: self._malloc(size)  # functions, which can be told their types
        self.free = lambda block: self.kept.remove(block)

    def _malloc(self, size):
        self.asked += 1
        assert self.asked < 500, "it never ends"
        block = (self.asked, size)
        self.kept.append(block)
        for number, hole in enumerate(self.holes):
            if hole >= size:
                self.holes[number] -= size
                return block
        if size >= heap.MMAP_FROM:
            self.mapped += 1
        elif size <= self.top:
            self.top -= size
        else:
            self.arena += 2**17
        return block


def test_holes_are_told_from_what_is_mapped_cut_from_the_top_or_grown(monkeypatch):
    holes = [3 * 2**20, 5 * 2**14, 2**12, 2**11 + 100, 2**10]
    stand_in = Heap(holes, top=20_000)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _name: stand_in)
    assert heap.fill_holes() == sum(holes[:4]) - 100
    assert sum(size for _, size in stand_in.kept) == sum(holes[:4]) - 100, "and everything else is given back"


def test_where_no_heap_can_be_asked_no_hole_is_taken(monkeypatch):
    def refuses(_name):
        raise OSError

    for library in (refuses, lambda _name: SimpleNamespace()):
        monkeypatch.setattr(heap.ctypes, "CDLL", library)
        assert heap.fill_holes() == 0
