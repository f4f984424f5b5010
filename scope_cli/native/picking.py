"""A lane's logits in, its next token out, in one call of C++: what `engine/sampling.py` defines."""

import ctypes
from ctypes import c_double, c_int64, c_void_p

from torch import Tensor

from scope_cli.native.library import Library


class Pick(ctypes.Structure):
    """What sampling.h calls scope_pick."""

    _fields_ = [
        *((name, c_void_p) for name in ("logits", "scores", "forbidden")),
        *((name, c_int64) for name in ("vocab", "forbidden_count", "known", "top_k", "among_all")),
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "chance", "logprob")),
    ]


def pick(
    library: Library,
    logits: Tensor,
    scores: Tensor,
    forbidden: Tensor | None,
    known: int = -1,
    top_k: int = 1,
    among_all: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    chance: float = 0.0,
) -> tuple[int, float] | None:
    """An id and its log-probability; None where the `top_k` likeliest hold too little of the whole.

    logits, scores: float32, [1, vocab] in one piece; forbidden: int64 ids; known: one that was picked before
    among_all: shares are of the whole vocabulary, not of the `top_k` likeliest
    """
    ids, count = (None, 0) if forbidden is None else (forbidden.data_ptr(), forbidden.shape[0])
    asked = Pick(
        logits.data_ptr(), scores.data_ptr(), ids, logits.shape[-1], count,
        known, top_k, among_all, temperature, top_p, min_p, chance,
    )  # fmt: skip
    picked = library.functions.scope_pick_one(ctypes.byref(asked))
    return None if picked < 0 else (picked, asked.logprob)
