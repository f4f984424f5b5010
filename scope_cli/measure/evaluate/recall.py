"""A probe and a profile in, the score of every question out: log-probability, rank, exactness.

The right output is fed (teacher forcing), so a model that would never reach the question still gives a
signal: how probable the right answer was, and how many tokens were more probable. `exact` is what counts at
the user's: with greedy decoding the whole answer would have been written.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from scope_cli.engine.replay import PromptState, read_once, replay
from scope_cli.measure.evaluate.fidelity import ByteMeter, HeldBytes, KnownText, check_text, planned
from scope_cli.measure.evaluate.probes import Probe
from scope_cli.models.model import LoadedModel
from scope_cli.settings.load import LoadedProfile


@dataclass(frozen=True)
class Answer:
    """One question, scored."""

    at: int  # tokens since the fact, or the number of the item
    logprob: float  # mean natural logarithm over the answer's tokens
    rank: int  # of the worst of them; 0: every token was the most probable
    hits: float  # share of the answer's tokens that were the most probable
    evictions: int  # of generated tokens, since the fact was stated

    @property
    def exact(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Recalled:
    kind: str
    seed: int
    prompt_tokens: int
    output_tokens: int
    answers: tuple[Answer, ...]
    bytes: HeldBytes

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class AskedModel:
    """A model that has read a probe's prompt, once for all profiles."""

    loaded: LoadedModel
    probe: Probe
    state: PromptState | None

    @classmethod
    def of(cls, loaded: LoadedModel, probe: Probe) -> "AskedModel":
        """Raises UsageError where the probe does not fit the model's context."""
        check_text(loaded, KnownText(f"the probe {probe.kind}", probe.prompt_ids, probe.output_ids))
        return cls(loaded, probe, read_once(loaded, probe.prompt_ids))


def recall(asked: AskedModel, settings: LoadedProfile) -> Recalled:
    loaded, probe = asked.loaded, asked.probe
    meter = ByteMeter(loaded.geometry, loaded.dtype.itemsize, settings.profile.cache.form)
    settings = planned(settings, len(probe.output_ids))
    wanted = [index for question in probe.questions for index in question.span]
    logprobs: dict[int, tuple[float, int]] = {}  # index in the output -> log-probability and rank
    evicted: list[tuple[int, int]] = [(0, 0)]  # (output tokens fed, evictions by then), ascending
    fed = 0
    replayed = replay(loaded, settings, probe.prompt_ids, probe.output_ids, asked.state)
    for logits, cache in meter.watch(replayed):
        # The first logits come from the prompt: they predict output 0, and nothing has been fed.
        first, fed = fed, fed + len(logits)
        here = [index for index in wanted if first <= index < fed]
        if here:
            logprobs |= dict(zip(here, _score(logits, probe.output_ids, here, first), strict=True))
        evicted.append((fed, cache.reading().evictions))
    answers = []
    for question in probe.questions:
        span = [logprobs[index] for index in question.span]
        answers.append(
            Answer(
                at=question.at,
                logprob=sum(logprob for logprob, _ in span) / len(span),
                rank=max(rank for _, rank in span),
                hits=sum(rank == 0 for _, rank in span) / len(span),
                evictions=_evictions(evicted, question.start) - _evictions(evicted, question.stated),
            )
        )
    tokens = len(probe.prompt_ids), len(probe.output_ids)
    return Recalled(probe.kind, probe.seed, *tokens, tuple(answers), meter.bytes)


def _score(logits: Tensor, ids: list[int], wanted: list[int], first: int) -> list[tuple[float, int]]:
    """Log-probability and rank of the right token at each wanted index; logits: [tokens, vocab]."""
    rows = logits[[index - first for index in wanted]].float().log_softmax(-1)
    right = rows.gather(1, torch.tensor([[ids[index]] for index in wanted], device=rows.device))
    ranks = (rows > right).sum(-1)
    return list(zip(right.squeeze(1).tolist(), ranks.tolist(), strict=True))


def _evictions(evicted: list[tuple[int, int]], written: int) -> int:
    """Evictions that a token with so many tokens before it in the output finds done."""
    return [count for fed, count in evicted if fed - 1 <= written][-1]
