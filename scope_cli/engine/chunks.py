"""How a prompt is cut: its length in, the ends of its chunks out."""

from itertools import count, takewhile

LEAST = 64  # tokens of the first chunk; fewer that two prompts have in common are not worth copying
CPU_CHUNK = 512  # tokens: a CPU takes about a second for them, and Ctrl-C is heard between two chunks


def chunk_of(chunk: int, device: str) -> int:
    """Prompt tokens that go through the model together, at most; chunk: `prefill.chunk`; device: its kind."""
    return min(chunk, CPU_CHUNK) if device == "cpu" else chunk


def chunk_ends(tokens: int, chunk: int, device: str) -> list[int]:
    """Where the chunks end that go through the model one after the other; chunk, device: as above.

    After 64, 256, 1,024, ... tokens as long as that is less than a chunk, then after every whole chunk, and
    at the prompt's end. Only the last one depends on the prompt's length, so two prompts are cut alike as far
    as they are alike: the same calls of the model, whose sums are rounded in the same way.
    """
    whole = chunk_of(chunk, device)
    small = takewhile(lambda end: end < whole, (LEAST * 4**step for step in count()))
    return [end for end in [*small, *range(whole, tokens, whole)] if end < tokens] + [tokens]
