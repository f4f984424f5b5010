"""Logits in, next ids out: transformers' processors, then what cuts off the improbable, then a draw.

The vocabulary is sorted only where it must be: on a CPU, top_p and min_p without top_k look at the few
hundred likeliest tokens, unless these hold too little of the whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from scope_cli.settings.schema import SamplingSettings

NEVER = 2**62  # tokens
LIKELIEST = 512  # tokens that top_p and min_p look at first


@dataclass(frozen=True)
class Change:
    """How one token is chosen otherwise than the settings say."""

    forbidden: tuple[int, ...] = ()
    warmer: float = 0.0  # added to the temperature


AS_SET = Change()


class Sampler:
    """Picks the tokens of one lane, with the lane's own generator; everything in float32."""

    def __init__(
        self,
        settings: SamplingSettings,
        prompt_tokens: int,
        eos_ids: tuple[int, ...],
        device: torch.device | str,
        seed: int | None = None,
    ) -> None:
        """`seed` takes the place of the settings' own, for lanes that must not write the same text."""
        self._temperature = settings.temperature
        self._processors = _processors(settings, prompt_tokens, eos_ids, device)
        self._top_k, self._top_p, self._min_p = settings.top_k, settings.top_p, settings.min_p or 0.0
        self._generator = torch.Generator(device).manual_seed(settings.seed if seed is None else seed)

    def state(self) -> Tensor:
        """Of the generator, on the CPU: what is drawn from now on depends on nothing else."""
        return self._generator.get_state()

    def restore(self, state: Tensor) -> None:
        """Draw as another sampler would have; one of another kind of device goes on with its own seed."""
        if state.shape == self._generator.get_state().shape:
            self._generator.set_state(state)

    def pick(self, logits: Tensor, ids: Tensor, change: Change = AS_SET) -> tuple[Tensor, Tensor]:
        """The next id, [1], and its log-probability under the model's own distribution, [1].

        The log-probability is no number where anything was none that the choice was made by: then the id says
        nothing. Nobody waits here to find out; whoever reads the two sees it.

        logits: [1, vocab]
        ids: [1, prompt + output], all there is before the next one
        """
        logits = logits.float()
        scores = self._processors(ids, logits)  # [1, vocab]
        if change.forbidden:
            scores = scores.index_fill(-1, torch.tensor(change.forbidden, device=scores.device), -torch.inf)
        if change.warmer:
            scores = scores * ((self._temperature or 1) / (self._temperature + change.warmer))
        if self._temperature + change.warmer == 0:
            picked = scores.argmax(-1, keepdim=True)  # [1, 1]
            weight = scores.gather(1, picked)
        else:
            picked, weight = self._draw(scores)
        logprob = logits.log_softmax(-1).gather(1, picked)
        return picked[0], (logprob + (weight - weight))[0]  # adds 0, or NaN

    def _draw(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """An id and its probability, [1, 1] both."""
        probabilities, at = self._candidates(scores)
        reached = probabilities.double().cumsum(-1)
        total = reached[:, -1:]
        chance = torch.rand(1, 1, dtype=torch.float64, device=scores.device, generator=self._generator)
        # the first that reaches beyond, which has a share; where there are no numbers, any
        drawn = torch.searchsorted(reached, chance * total, right=True).clamp(max=reached.shape[-1] - 1)
        weight = probabilities.gather(1, drawn) / total.float()
        return drawn if at is None else at.gather(1, drawn), weight

    def _candidates(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """What may be drawn: shares, [1, some], and their ids; None: the whole vocabulary in its order."""
        vocab = scores.shape[-1]
        if self._top_k is not None:
            some, at = scores.topk(min(self._top_k, vocab))
            return self._cut(some.softmax(-1)), at
        if self._top_p == 1 and not self._min_p:
            return scores.softmax(-1), None
        if scores.device.type == "cpu" and vocab > LIKELIEST:
            some, at = scores.topk(LIKELIEST)
            shares = (some - scores.logsumexp(-1, keepdim=True)).exp()
            if shares.sum() >= self._top_p or shares[0, -1] < self._min_p * shares[0, 0]:
                return self._cut(shares), at
        some, at = scores.sort(descending=True)
        return self._cut(some.softmax(-1)), at

    def _cut(self, shares: Tensor) -> Tensor:
        """The likeliest that reach top_p together, and of those the ones from min_p times the first on.

        shares: [1, some], the likeliest first
        """
        keeps = (shares.cumsum(-1) - shares < self._top_p) & (shares >= self._min_p * shares[:, :1])
        return shares.where(keeps, 0)  # nothing is left where any is no number


def _processors(
    settings: SamplingSettings, prompt_tokens: int, eos_ids: tuple[int, ...], device: torch.device | str
) -> LogitsProcessorList:
    """What changes scores; only those that do something."""
    chain = LogitsProcessorList()
    if eos_ids and settings.ignore_eos:
        chain.append(Forbidden(eos_ids, NEVER, device))
    elif eos_ids and settings.min_new_tokens:
        chain.append(Forbidden(eos_ids, prompt_tokens + settings.min_new_tokens, device))
    if settings.repetition_penalty != 1:
        penalty = settings.repetition_penalty
        chain.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt_tokens))
    if settings.temperature not in (0, 1):
        chain.append(TemperatureLogitsWarper(settings.temperature))
    return chain


class Forbidden:
    """Ids that are never picked, or not among the first tokens of the output.

    As transformers' processors, which search the vocabulary for them at every token.
    """

    def __init__(self, ids: tuple[int, ...], until: int, device: torch.device | str) -> None:
        """until: tokens, prompt and output, from which on they may be picked"""
        self._ids, self._until, self._device = ids, until, device
        self._known: Tensor | None = None  # of the ids, those that the model has numbers for

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[-1] >= self._until:
            return scores
        if self._known is None:
            there = [one for one in self._ids if one < scores.shape[-1]]  # a file may name others
            self._known = torch.tensor(there, dtype=torch.int64, device=self._device)
        return scores.index_fill(-1, self._known, -torch.inf)
