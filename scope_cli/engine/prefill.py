"""Prompt ids in, first logits and a filled lane out, chunk by chunk."""

from collections.abc import Callable, Generator
from itertools import pairwise

import torch
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import PromptPlan
from scope_cli.cache.staging import Staging
from scope_cli.cache.state import copy_beginning
from scope_cli.engine.beginning import Beginning
from scope_cli.engine.chunks import chunk_ends
from scope_cli.events import PromptProgress
from scope_cli.models.lean import PreTrainedModel
from scope_cli.models.native_prompt import reader_of
from scope_cli.native.library import library
from scope_cli.policies.schedule import Schedule


@torch.no_grad()
def read_prompt(
    model: PreTrainedModel,
    cache: ScopeCache,
    prompt_ids: Tensor,
    schedule: Schedule,
    *,
    plan: PromptPlan | None = None,
    lane: int = 0,
    number: int = 0,
    seed: int = 0,
    chunk: int = 2048,
    begins: Beginning | None = None,
    native: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Generator[PromptProgress, None, Tensor | None]:
    """Read a prompt into a lane, reporting after each chunk.

    prompt_ids: [1, prompt_tokens], the job's prompt `number`; plan: what stays of it, all where there is none
    begins: with what a row holds, which is copied and not read
    native: the model has passed the self-test of what is ours (models/step_test.py)
    returns the logits of the last token, [1, vocab], or None when interrupted
    """
    if plan is not None and not plan.staged and cache.policy.protect_prompt:
        cache.make_room(plan.kept)  # the prompt before it may have made slots of its own size
    cache.start_prompt(lane, schedule, seed)
    staging = Staging(cache, lane, plan, seed) if plan is not None and plan.staged else None
    if begins is not None:
        copy_beginning(cache, begins.row, lane, begins.tokens)
    begun, tokens = cache.count(lane).prompt, prompt_ids.shape[1]
    left = prompt_ids[:, begun:]
    if cache.device.type != "cpu":
        cache.count_transfer(lane, left.nbytes)
    forward = reader_of(model, cache, library() if native else None)
    logits = prompt_ids.new_empty(0)
    ends = [end for end in chunk_ends(tokens, chunk, cache.device.type) if end > begun]
    sizes = [end - start for start, end in pairwise([begun, *ends])]
    for ids in left.to(cache.device).split(sizes, dim=1):
        positions = cache.start_chunk(lane, ids.shape[1])
        logits = forward(ids, positions, staging or cache)
        cache.end_chunk()
        yield PromptProgress(lane, cache.count(lane).prompt, tokens, number)
        if interrupted():
            return None
    if staging is not None:
        staging.settle()
    cache.start_decode(lane)
    return logits


def read_to_end(reading: Generator[PromptProgress, None, Tensor | None]) -> Tensor:
    """Let `read_prompt` read everything; the logits of the prompt's last token, [1, vocab]."""
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value
