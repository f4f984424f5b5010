"""A misspelt name and the known ones in, the nearest one out."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean slide?' or, where nothing is near, '; known: full, slide'."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
