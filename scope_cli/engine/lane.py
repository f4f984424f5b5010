"""A prompt that has been read in, the lane that goes on from it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from scope_cli.engine.decode import Lane
from scope_cli.engine.sampling import Sampler
from scope_cli.engine.text import TextStream
from scope_cli.models.model import LoadedModel

if TYPE_CHECKING:
    from scope_cli.engine.run import Work


def new_lane(
    loaded: LoadedModel, work: Work, prompt: Tensor, logits: Tensor, row: int = 0, number: int = 0
) -> Lane:
    """A lane whose prompt, [1, prompt_tokens], has been read; logits: [1, vocab], of its last token."""
    sampling, eos_ids = work.sampling, loaded.eos_ids
    stops = loaded.opened.stops(sampling)
    return Lane(
        prompt_ids=prompt,
        logits=logits,
        sampler=Sampler(sampling, prompt.shape[1], eos_ids, loaded.device, work.seed),
        text=TextStream(loaded.tokenizer, work.prompt_ids, stops.texts),
        eos_ids=frozenset() if sampling.ignore_eos else frozenset(eos_ids),
        max_new_tokens=work.plan.max_new_tokens,
        stop_tokens=stops.tokens,
        on_loop=sampling.on_loop,
        at_the_end="context" if work.plan.ends_with_context else "length",
        max_seconds=work.max_seconds,
        row=row,
        prompt=number,
    )
