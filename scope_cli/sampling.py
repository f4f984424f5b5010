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
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from scope_cli.profile import SamplingSettings


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
        self._generator = torch.Generator(device).manual_seed(settings.seed if seed is None else seed)

    def pick(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The next id, [1], and its log-probability under the model's own distribution, [1].

        logits: [1, vocab]
        ids: [1, prompt + output], all there is before the next one
        """
        logits = logits.float()
        scores = self._processors(ids, logits)  # [1, vocab]
        if self._greedy:
            picked = scores.argmax(-1, keepdim=True)  # [1, 1]
        else:
            picked = torch.multinomial(scores.softmax(-1), 1, generator=self._generator)
        return picked[0], logits.log_softmax(-1).gather(1, picked)[0]

    def state(self) -> Tensor:
        """Where the lane's random numbers are; `restore` goes on from there."""
        return self._generator.get_state()

    def restore(self, state: Tensor) -> None:
        self._generator.set_state(state)


def _processors(
    settings: SamplingSettings, prompt_tokens: int, eos_ids: tuple[int, ...], device: torch.device | str
) -> LogitsProcessorList:
    """Only those that do something; top_k comes before top_p because that order is the cheaper one."""
    chain = LogitsProcessorList()
    if eos_ids and settings.ignore_eos:
        chain.append(SuppressTokensLogitsProcessor(eos_ids, device=device))
    elif eos_ids and settings.min_new_tokens:
        minimum = settings.min_new_tokens
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, minimum, list(eos_ids), device=device))
    if settings.repetition_penalty != 1:
        penalty = settings.repetition_penalty
        chain.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt_tokens))
    if settings.temperature == 0:  # the best stays the best under everything below
        return chain
    if settings.temperature != 1:
        chain.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k is not None:
        chain.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        chain.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        chain.append(MinPLogitsWarper(settings.min_p))
    return chain
