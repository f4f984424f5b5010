"""glibc's heap, told to give back what is freed: a resident set is then what is in use."""

import ctypes
from contextlib import suppress

M_MMAP_THRESHOLD = -3  # of mallopt(3)
MMAP_FROM = 32 * 2**10
SMALLEST_HOLE = 2**11


def return_freed_memory() -> None:
    """From now on glibc gives blocks back as soon as they are freed: the resident set is what is in use.

    By default it learns to keep blocks of up to 32 MiB for later, which is faster, and counts for nothing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_FROM)


def release_freed() -> None:
    """Give back what lies free between smaller blocks."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


def fill_holes() -> int:
    """Take every larger hole between the blocks of the heap, untouched, for good; how many bytes that is.

    Importing leaves megabytes of them, empty pages after `release_freed`. Whatever is allocated next would
    scatter over them, each piece waking a page of its own, and the resident set would grow by more than what
    is in use. With no holes left a block is either mapped by itself or taken from the end of the heap.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Heap
    except (OSError, AttributeError):
        return 0
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    taken, size = 0, 2**24
    while size >= SMALLEST_HOLE:
        before = libc.mallinfo2()
        block = libc.malloc(size)
        after = libc.mallinfo2()
        same = (after.hblks, after.keepcost, after.arena) == (before.hblks, before.keepcost, before.arena)
        if block and same:  # no block: memory is limited, and what is not given is no hole
            taken += size
        else:  # no such hole: it was mapped, or cut from the end
            libc.free(block)
            size //= 2
    return taken
