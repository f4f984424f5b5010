"""Where a prompt is cut."""

from hypothesis import given
from hypothesis import strategies as st

from scope_cli.engine.chunks import chunk_ends


def is_cut_after(position: int, chunk: int) -> bool:
    """Slowly: a power of four times 64 below a chunk, or a multiple of it."""
    small = position
    while small > 64 and small % 4 == 0:
        small //= 4
    return position % chunk == 0 or (small == 64 and position < chunk)


@given(st.integers(1, 9_000), st.integers(1, 4_096), st.sampled_from(["cpu", "cuda"]))
def test_a_prompt_is_cut_at_fixed_places_and_at_its_end(tokens, chunk, device):
    at_most = min(chunk, 512) if device == "cpu" else chunk
    places = [position for position in range(1, tokens) if is_cut_after(position, at_most)]
    assert chunk_ends(tokens, chunk, device) == [*places, tokens]


def test_it_begins_small():
    assert chunk_ends(1_300, 2_048, "cpu") == [64, 256, 512, 1_024, 1_300]
    assert chunk_ends(5_000, 2_048, "cuda") == [64, 256, 1_024, 2_048, 4_096, 5_000]
    assert chunk_ends(64, 2_048, "cuda") == [64]
