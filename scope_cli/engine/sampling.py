"""Logits in, next ids out: transformers' processors, then what cuts off the improbable, then a draw.

Each lane asks for its next token (`Sampler.ask`), and those that are cut off alike are picked together
(`pick_all`); a row's numbers are the same whatever other rows are there. The vocabulary is sorted only where
it must be: on a CPU, top_p and min_p without top_k look at the few hundred likeliest tokens, unless these
hold too little of the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from scope_cli.settings.schema import SamplingSettings

NEVER = 2**62  # tokens
LIKELIEST = 512  # tokens that top_p and min_p look at first


@dataclass(frozen=True)
class Change:
    """How one token is chosen otherwise than the settings say."""

    forbidden: tuple[int, ...] = ()
    warmer: float = 0.0  # added to the temperature


AS_SET = Change()


@dataclass(frozen=True)
class Cut:
    """From how many tokens one is drawn, and how evenly."""

    temperature: float
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def draw(self, scores: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and their shares of what may be drawn, [rows, 1] both.

        scores: [rows, vocab]
        chances: [rows, 1], float64, from 0 to 1
        """
        probabilities, at = self.candidates(scores)
        reached = probabilities.double().cumsum(-1)
        total = reached[:, -1:]
        # the first that reaches beyond, which has a share; where there are no numbers, any
        drawn = torch.searchsorted(reached, chances * total, right=True).clamp(max=reached.shape[-1] - 1)
        weight = probabilities.gather(1, drawn) / total
        return drawn if at is None else at.gather(1, drawn), weight

    def candidates(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """What may be drawn: shares, [rows, some], and their ids; None: the whole vocabulary in its order.

        Those of a few are float64: kinds of CPU differ in an exponential's last bit, which then is too small
        to be drawn by.
        """
        vocab = scores.shape[-1]
        if self.top_k is not None:
            some, at = scores.topk(min(self.top_k, vocab))
            return self._cut_off((some.double() / self.temperature).softmax(-1)), at
        scores = scores / self.temperature
        if self.top_p == 1 and not self.min_p:
            return scores.softmax(-1), None
        if scores.device.type == "cpu" and vocab > LIKELIEST:
            some, at = scores.topk(LIKELIEST)
            shares = (some.double() - scores.logsumexp(-1, keepdim=True)).exp()
            enough = (shares.sum(-1) >= self.top_p) | (shares[:, -1] < self.min_p * shares[:, 0])
            if enough.all():
                return self._cut_off(shares), at
        some, at = scores.sort(descending=True)
        return self._cut_off(some.softmax(-1)), at

    def _cut_off(self, shares: Tensor) -> Tensor:
        """The likeliest that reach top_p together, and of those the ones from min_p times the first on.

        shares: [rows, some], the likeliest first
        """
        keeps = (shares.cumsum(-1) - shares < self.top_p) & (shares >= self.min_p * shares[:, :1])
        return shares.where(keeps, 0)  # nothing is left where any is no number

    @property
    def alone(self) -> bool:
        """Whether the vocabulary is sorted depends on the row."""
        return self.top_k is None and (self.top_p < 1 or self.min_p > 0)


@dataclass(frozen=True)
class Asked:
    """What a lane's next token is picked from."""

    logits: Tensor  # [1, vocab], the model's own
    scores: Tensor  # [1, vocab], as the settings change them
    cut: Cut | None = None  # None: the highest score
    chance: Tensor | None = None  # [1, 1], float64, from 0 to 1
    known: Tensor | None = None  # [1, 1], an id that was picked before


def pick_all(asked: Sequence[Asked]) -> Tensor:
    """Each one's id and its log-probability under the model's own distribution, [asked, 2], float64.

    A log-probability is no number where anything was none that the choice was made by: then the id says
    nothing. Nobody waits here to find out; whoever reads the two sees it.
    """
    groups: dict[object, list[int]] = {}
    for index, one in enumerate(asked):
        apart = index if one.cut is not None and one.cut.alone else None
        groups.setdefault((one.cut, one.known is None, apart), []).append(index)
    picked = [_pick_alike([asked[index] for index in group]) for group in groups.values()]
    if len(picked) == 1:
        return picked[0]
    order = [index for group in groups.values() for index in group]
    rows = torch.cat(picked)
    return torch.stack([rows[order.index(index)] for index in range(len(asked))])


def _pick_alike(asked: Sequence[Asked]) -> Tensor:
    first = asked[0]
    logits = _rows([one.logits for one in asked]).float()  # [asked, vocab]
    changed = any(one.scores is not one.logits for one in asked)
    scores = _rows([one.scores for one in asked]).float() if changed else logits
    if first.known is not None:
        picked = _rows([one.known for one in asked if one.known is not None])
        weight = torch.zeros_like(logits[:, :1])
    elif first.cut is None:
        picked = scores.argmax(-1, keepdim=True)
        weight = scores.gather(1, picked)
    else:
        picked, weight = first.cut.draw(
            scores, _rows([one.chance for one in asked if one.chance is not None])
        )
    logprob = logits.log_softmax(-1).gather(1, picked)
    return torch.cat([picked.double(), (logprob + (weight - weight)).double()], 1)  # adds 0, or NaN


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


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
        self._processors = _processors(settings, prompt_tokens, eos_ids, device)
        self._cut = Cut(settings.temperature, settings.top_k, settings.top_p, settings.min_p or 0.0)
        self._generator = torch.Generator(device).manual_seed(settings.seed if seed is None else seed)

    def state(self) -> Tensor:
        """Of the generator, on the CPU: what is drawn from now on depends on nothing else."""
        return self._generator.get_state()

    def restore(self, state: Tensor) -> None:
        """Draw as another sampler would have; one of another kind of device goes on with its own seed."""
        if state.shape == self._generator.get_state().shape:
            self._generator.set_state(state)

    def ask(self, logits: Tensor, ids: Tensor, change: Change = AS_SET) -> Asked:
        """For the next token; one draw of the generator is used up.

        logits: [1, vocab]
        ids: [1, prompt + output], all there is before the next one
        """
        scores = self._processors(ids, logits.float()) if self._processors else logits
        if change.forbidden:
            scores = scores.index_fill(-1, torch.tensor(change.forbidden, device=scores.device), -torch.inf)
        temperature = self._cut.temperature + change.warmer
        if not temperature:
            return Asked(logits, scores)
        cut = replace(self._cut, temperature=temperature) if change.warmer else self._cut
        chance = torch.rand(1, 1, dtype=torch.float64, device=scores.device, generator=self._generator)
        return Asked(logits, scores, cut, chance)


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
