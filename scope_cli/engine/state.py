"""A lane on its way out, as tensors and numbers; the same lane in, in this process or another.

What is not here follows from the token ids: the text, what it holds back, and what the loop watch has seen.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.state import lane_numbers, lane_tensors, put_lane
from scope_cli.engine.checkpoint import read_checkpoint
from scope_cli.engine.step import Step
from scope_cli.engine.text import TextStream
from scope_cli.policies.schedule import Schedule

if TYPE_CHECKING:
    from scope_cli.engine.decode import Lane

CACHE = "cache."  # before the names of the cache's tensors


@dataclass(frozen=True)
class LaneState:
    """All that a lane's future depends on, beside the model and the profile; its size never grows.

    tensors: the cache's, `ids` [prompt_tokens + max_new_tokens], `logits` [vocab], `generator` [bytes]
    numbers: what JSON takes: prompt_tokens, written, fed, reason, count, seconds and bytes so far. Where
        loops are taken back, `written` are the tokens that have been told, the tensors are those after
        `held_at` of them, and `known` have been chosen.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    @property
    def prompt_ids(self) -> list[int]:
        return self.tensors["ids"][: self.numbers["prompt_tokens"]].tolist()

    @property
    def output_ids(self) -> list[int]:
        start = self.numbers["prompt_tokens"]
        return self.tensors["ids"][start : start + self.numbers["written"]].tolist()

    @property
    def held_at(self) -> int:
        """Tokens of the output that had been written when the tensors were as they are."""
        return int(self.numbers.get("held_at", self.numbers["written"]))

    @property
    def known(self) -> int:
        """Tokens of the output that have been chosen."""
        return int(self.numbers.get("known", self.numbers["written"]))


class Keep(Protocol):
    """Who keeps states."""

    ends: bool  # whether those of lanes that end by themselves are wanted as well

    def due(self) -> bool:
        """Asked between two steps."""

    def saving(self) -> AbstractContextManager[None]:
        """Around every `take` of one moment."""

    def take(self, number: int, state: LaneState) -> None:
        """The state of a prompt's lane; all that it wrote has been told."""


def lane_in(path: Path) -> LaneState:
    """The lane in a file. Raises Refused."""
    kept = read_checkpoint(path)
    return LaneState(kept.tensors, kept.facts["lane"])


def state_of(cache: ScopeCache, lane: Lane) -> LaneState:
    """Between two steps, or when it has ended and still has its row. On a CPU it shows the buffers
    themselves: write it before the next step, or copy it."""
    tensors = {f"{CACHE}{name}": tensor for name, tensor in lane_tensors(cache, lane.row).items()}
    tensors |= {
        "ids": lane.ids[0].to("cpu", torch.int32),
        "logits": lane.logits[0].cpu(),
        "generator": lane.sampler.state(),
    }
    numbers = lane_numbers(cache, lane.row) | {
        "prompt_tokens": lane.prompt_ids.shape[1],
        "max_new_tokens": lane.max_new_tokens,
        "written": lane.written,
        "fed": lane.fed,
        "reason": lane.reason,
        "elapsed_s": lane.elapsed_s,
    }
    return LaneState(tensors, numbers)


def go_on(cache: ScopeCache, step: Step, lane: Lane, state: LaneState, own: Schedule, seed: int) -> None:
    """Let a new lane go on where another one was; one that has written nothing has its own schedule and seed.

    Raises OtherShape. A lane that had ended has a token that the model has not seen: it is fed now, to this
    lane alone. Where a longer output is planned than before, the lane's schedule stays what it was.
    """
    numbers, tensors = state.numbers, state.tensors
    schedule = None
    if not state.known:
        schedule = own
    elif lane.max_new_tokens > numbers["max_new_tokens"]:
        schedule = _longer(numbers["count"]["schedule"])
    put_back(cache, lane, state, schedule)
    cache.seeds[lane.row] = seed
    start, end = lane.prompt_ids.shape[1], lane.prompt_ids.shape[1] + state.known
    lane.ids[0, start:end] = tensors["ids"][start:end].to(lane.ids)
    if lane.back is not None:
        lane.back.go_on(state)
    if not state.known:
        return
    lane.sampler.restore(tensors["generator"])
    lane.started -= numbers["elapsed_s"]
    for token_id in lane.ids[0, start : start + lane.written].tolist():
        lane.text.feed(token_id)
        lane.watch.feed(token_id)
    if lane.fed < lane.written:
        _feed_newest(cache, step, lane)


def put_back(cache: ScopeCache, lane: Lane, state: LaneState, schedule: Schedule | None = None) -> None:
    """What the model goes on from, and how far that is. Raises OtherShape."""
    of_cache = {
        name.removeprefix(CACHE): one for name, one in state.tensors.items() if name.startswith(CACHE)
    }
    put_lane(cache, lane.row, of_cache, state.numbers, schedule)
    lane.written, lane.fed = state.held_at, state.numbers["fed"]
    lane.logits = state.tensors["logits"].to(cache.device, copy=True).unsqueeze(0)


def pieces_of(
    tokenizer: PreTrainedTokenizerFast, state: LaneState, stops: tuple[str, ...] = ()
) -> list[tuple[int, str]]:
    """What a lane has written, by token, without what it holds back."""
    stream = TextStream(tokenizer, state.prompt_ids, stops)
    return [(token_id, stream.feed(token_id)) for token_id in state.output_ids]


def text_so_far(tokenizer: PreTrainedTokenizerFast, state: LaneState, stops: tuple[str, ...] = ()) -> str:
    return "".join(text for _, text in pieces_of(tokenizer, state, stops))


def _longer(schedule: dict[str, Any]) -> Schedule:
    """As before; one that never evicted, because everything fitted, may have to now."""
    before = Schedule(**schedule)
    return replace(before, planned=max(before.planned, before.budget + 1))


@torch.no_grad()
def _feed_newest(cache: ScopeCache, step: Step, lane: Lane) -> None:
    ids = torch.zeros(cache.shape.lanes, 1, dtype=torch.int64, device=cache.device)
    ids[lane.row] = lane.ids[0, lane.prompt_ids.shape[1] + lane.written - 1]
    with cache.alone(lane.row):
        logits = step(ids)
        cache.end_step()
    lane.logits = logits[lane.row : lane.row + 1].clone()
    lane.fed += 1
