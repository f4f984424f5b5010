"""Filled lanes in, one Token event per lane and step out; the only decode loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope_cli.cache import ScopeCache
from scope_cli.events import FinishReason, Loop, Token
from scope_cli.loops import LoopWatch
from scope_cli.sampling import Sampler
from scope_cli.text import TextStream


@dataclass
class Lane:
    """One sequence on its way: what it samples with, what it has written, when it ends."""

    prompt_ids: Tensor  # [1, prompt_tokens]
    logits: Tensor  # [1, vocab], of the last token read
    sampler: Sampler
    text: TextStream
    eos_ids: frozenset[int]  # that end the output
    max_new_tokens: int
    stop_on_loop: bool = False
    at_the_end: FinishReason = "length"  # the reason when max_new_tokens are written
    written: int = 0
    reason: FinishReason | None = None
    watch: LoopWatch = field(default_factory=LoopWatch)
    ids: Tensor = field(init=False)  # [1, prompt_tokens + max_new_tokens], filled from the left

    def __post_init__(self) -> None:
        room = self.prompt_ids.new_zeros(1, self.max_new_tokens)
        self.ids = torch.cat([self.prompt_ids, room], 1)

    def next_token(self) -> tuple[int, float, str]:
        """Sample, and notice whether that ends the lane: id, log-probability, printable text."""
        so_far = self.prompt_ids.shape[1] + self.written
        chosen, logprob = self.sampler.pick(self.logits, self.ids[:, :so_far])
        self.ids[:, so_far] = chosen
        self.written += 1
        token_id = int(chosen)
        text = self.text.feed(token_id)
        looping = self.watch.feed(token_id)
        if token_id in self.eos_ids or self.text.stopped is not None:
            self.reason = "stop"
        elif looping and self.stop_on_loop:
            self.reason = "loop"
        elif self.written == self.max_new_tokens:
            self.reason = self.at_the_end
        return token_id, float(logprob), text

    @property
    def loop(self) -> Loop | None:
        return self.watch.longest()


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    cache: ScopeCache,
    lanes: list[Lane],
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Token]:
    """Write until every lane has a reason to end; `interrupted` is asked once per step."""
    started = perf_counter()
    while running := [(index, lane) for index, lane in enumerate(lanes) if lane.reason is None]:
        for index, lane in running:
            token_id, logprob, text = lane.next_token()
            if lane.reason is None and interrupted():
                lane.reason = "interrupted"
            yield Token(
                index, lane.written, token_id, text, logprob, perf_counter() - started, cache.reading()
            )
            if lane.reason is not None:
                cache.finish(index)
        if any(lane.reason is None for lane in lanes):
            step(model, cache, lanes)


def step(model: PreTrainedModel, cache: ScopeCache, lanes: list[Lane]) -> None:
    """Feed each lane its newest token and leave the next logits with it; finished lanes ride along."""
    newest = torch.cat([lane.ids[:, lane.prompt_ids.shape[1] + lane.written - 1 :][:, :1] for lane in lanes])
    logits = model(
        input_ids=newest, position_ids=cache.next_position.unsqueeze(1), use_cache=False, scope_cache=cache
    ).logits[:, -1]
    cache.end_step()
    for index, lane in enumerate(lanes):
        lane.logits = logits[index : index + 1]
    if cache.device.type != "cpu":
        cache.host_bytes += 12 * len(lanes)  # an id (int64) and a log-probability (float32) come back
