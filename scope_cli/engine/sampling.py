"""Logits in, next ids out: transformers' processors in the profile's order."""

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from scope_cli.settings.schema import SamplingSettings


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
        self._greedy = settings.temperature == 0
        self._processors = _processors(settings, prompt_tokens, eos_ids, device)
        self._top_k = settings.top_k
        self._warpers = _warpers(settings)
        self._generator = torch.Generator(device).manual_seed(settings.seed if seed is None else seed)

    def pick(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The next id, [1], and its log-probability under the model's own distribution, [1].

        The log-probability is no number where anything was none that the choice was made by: then the id says
        nothing. Nobody waits here to find out; whoever reads the two sees it.

        logits: [1, vocab]
        ids: [1, prompt + output], all there is before the next one
        """
        logits = logits.float()
        scores = self._processors(ids, logits)  # [1, vocab]
        if self._greedy:
            picked = scores.argmax(-1, keepdim=True)  # [1, 1]
            weight = scores.gather(1, picked)
        else:
            picked, weight = self._draw(scores, ids)
        logprob = logits.log_softmax(-1).gather(1, picked)
        return picked[0], (logprob + (weight - weight))[0]  # adds 0, or NaN

    def _draw(self, scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """An id and its probability, [1, 1] both.

        After top_k only k scores are looked at: the same, and the vocabulary is not sorted.
        """
        at = None
        if self._top_k is not None:
            scores, at = scores.topk(min(self._top_k, scores.shape[-1]))
        probabilities = self._warpers(ids, scores).softmax(-1)
        # one NaN makes all of them NaN; multinomial would raise, or on a GPU end the process
        drawn = torch.multinomial(probabilities.nan_to_num(nan=1.0), 1, generator=self._generator)
        return drawn if at is None else at.gather(1, drawn), probabilities.gather(1, drawn)


def _processors(
    settings: SamplingSettings, prompt_tokens: int, eos_ids: tuple[int, ...], device: torch.device | str
) -> LogitsProcessorList:
    """What changes scores; only those that do something."""
    chain = LogitsProcessorList()
    if eos_ids and settings.ignore_eos:
        chain.append(SuppressTokensLogitsProcessor(eos_ids, device=device))
    elif eos_ids and settings.min_new_tokens:
        minimum = settings.min_new_tokens
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, minimum, list(eos_ids), device=device))
    if settings.repetition_penalty != 1:
        penalty = settings.repetition_penalty
        chain.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt_tokens))
    if settings.temperature not in (0, 1):
        chain.append(TemperatureLogitsWarper(settings.temperature))
    return chain


def _warpers(settings: SamplingSettings) -> LogitsProcessorList:
    """What cuts off the improbable, after top_k."""
    chain = LogitsProcessorList()
    if settings.top_p < 1:
        chain.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        chain.append(MinPLogitsWarper(settings.min_p))
    return chain
