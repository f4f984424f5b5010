"""Logits in, next ids out: transformers' processors, then what cuts off the improbable, then a draw.

Each lane asks for its next token (`Sampler.ask`). On a CPU it is picked in C++ (`native/sampling.h`), unless
the whole vocabulary has to be sorted or drawn from; elsewhere in PyTorch, which defines what it means, those
that are cut off alike together (`pick_together`). A row's numbers are the same whatever other rows are there.
The vocabulary is sorted only where it must be: on a CPU, top_p and min_p without top_k look at the few
hundred likeliest tokens, unless these hold too little of the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from scope_cli.native.library import Library, library
from scope_cli.native.picking import pick
from scope_cli.settings.schema import SamplingSettings

Picked = Tensor | list[tuple[int, float]]  # by lane, an id and its log-probability; a list on a CPU

NEVER = 2**62  # tokens
LIKELIEST = 512  # tokens that top_p and min_p look at first
DRAWS = 64  # numbers that a generator draws at once


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
        if self.whole:
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
        return self.top_k is None and not self.whole

    @property
    def whole(self) -> bool:
        """Nothing is cut off."""
        return self.top_k is None and self.top_p == 1 and not self.min_p


@dataclass(frozen=True)
class Asked:
    """What a lane's next token is picked from."""

    logits: Tensor  # [1, vocab], the model's own
    scores: Tensor  # [1, vocab], as the settings change them
    cut: Cut | None = None  # None: the highest score
    chance: Tensor | float = 0.0  # from 0 to 1; [1, 1], float64, on a GPU
    known: Tensor | None = None  # [1, 1], an id that was picked before
    forbidden: Tensor | None = None  # ids that are not picked, whatever their scores

    def allowed(self) -> Tensor:
        """Scores, those of forbidden ids -inf."""
        if self.forbidden is None:
            return self.scores
        return self.scores.index_fill(-1, self.forbidden, -torch.inf)


def pick_all(asked: Sequence[Asked]) -> Picked:
    """Each one's id and its log-probability under the model's own distribution.

    A log-probability is no number where anything was none that the choice was made by: then the id says
    nothing. Nobody waits for a device here to find out; whoever reads the two sees it.
    """
    if asked[0].logits.device.type != "cpu":
        return pick_together(asked)
    if (known := library()) is None:
        return [(int(token_id), logprob) for token_id, logprob in pick_together(asked).tolist()]
    return [_pick_natively(known, one) for one in asked]


def _pick_natively(library: Library, asked: Asked) -> tuple[int, float]:
    logits = _as_it_is(asked.logits)
    scores = logits if asked.scores is asked.logits else _as_it_is(asked.scores)
    picked = None
    if asked.known is not None:
        picked = pick(library, logits, scores, None, int(asked.known))
    elif asked.cut is None:
        picked = pick(library, logits, scores, asked.forbidden)
    elif not (cut := asked.cut).whole:
        few = LIKELIEST if cut.top_k is None else cut.top_k
        picked = pick(
            library, logits, scores, asked.forbidden, -1, few, cut.top_k is None,
            cut.temperature, cut.top_p, cut.min_p, float(asked.chance),
        )  # fmt: skip
    if picked is None:
        token_id, logprob = pick_together([asked])[0].tolist()
        return int(token_id), logprob
    return picked


def _as_it_is(row: Tensor) -> Tensor:
    """In float32 and in one piece; nothing is done where it is so."""
    return row if row.dtype == torch.float32 and row.is_contiguous() else row.float().contiguous()


def pick_together(asked: Sequence[Asked]) -> Tensor:
    """As `pick_all`, in PyTorch: what it means. [asked, 2], float64, on the device"""
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
    allowed = [one.allowed() for one in asked]
    changed = any(one.logits is not scores for one, scores in zip(asked, allowed, strict=True))
    scores = _rows(allowed).float() if changed else logits
    if first.known is not None:
        picked = _rows([one.known for one in asked if one.known is not None])
        weight = torch.zeros_like(logits[:, :1])
    elif first.cut is None:
        picked = scores.argmax(-1, keepdim=True)
        weight = scores.gather(1, picked)
    else:
        chances = [torch.as_tensor(one.chance, dtype=torch.float64).view(1, 1) for one in asked]
        picked, weight = first.cut.draw(scores, _rows(chances))
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
        self._penalties = LogitsProcessorList()
        if (penalty := settings.repetition_penalty) != 1:
            self._penalties.append(
                RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt_tokens)
            )
        self._ends = eos_ids  # not picked before there are so many tokens, prompt and output:
        self._may_end = NEVER if settings.ignore_eos else prompt_tokens + settings.min_new_tokens
        self._kept_away: dict[tuple[int, ...], Tensor] = {}  # by their ids
        self._cut = Cut(settings.temperature, settings.top_k, settings.top_p, settings.min_p or 0.0)
        self._draws = Draws(device, settings.seed if seed is None else seed)

    def state(self) -> Tensor:
        """Of the generator, on the CPU: what is drawn from now on depends on nothing else."""
        return self._draws.state()

    def restore(self, state: Tensor) -> None:
        """Draw as another sampler would have; one of another kind of device goes on with its own seed."""
        self._draws.restore(state)

    def ask(self, logits: Tensor, ids: Tensor, change: Change = AS_SET) -> Asked:
        """For the next token; one draw of the generator is used up.

        logits: [1, vocab]
        ids: [1, prompt + output], all there is before the next one
        """
        scores = self._penalties(ids, logits.float()) if self._penalties else logits
        ends = self._ends if ids.shape[-1] < self._may_end else ()
        forbidden = self._forbidden(ends + change.forbidden, logits)
        temperature = self._cut.temperature + change.warmer
        if not temperature:
            return Asked(logits, scores, forbidden=forbidden)
        cut = replace(self._cut, temperature=temperature) if change.warmer else self._cut
        return Asked(logits, scores, cut, self._draws.next(), forbidden=forbidden)

    def _forbidden(self, ids: tuple[int, ...], logits: Tensor) -> Tensor | None:
        """As a tensor, those that the model has numbers for: a file may name others."""
        if not ids:
            return None
        if ids not in self._kept_away:
            there = [one for one in ids if one < logits.shape[-1]]
            self._kept_away[ids] = torch.tensor(there, dtype=torch.int64, device=logits.device)
        return self._kept_away[ids]


class Draws:
    """Numbers from 0 to 1, one after the other, of a generator of its own."""

    def __init__(self, device: torch.device | str, seed: int) -> None:
        self._device = torch.device(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self._before = self.generator.get_state()
        self._drawn: list[float] = []  # on a CPU: several at once, which are those that come one by one
        self._used = 0  # of them

    def next(self) -> Tensor | float:
        """A number; on a GPU, where nobody waits for it, [1, 1], float64."""
        if self._device.type != "cpu":
            return torch.rand(1, 1, dtype=torch.float64, device=self._device, generator=self.generator)
        if self._used == len(self._drawn):
            self._before, self._used = self.generator.get_state(), 0
            self._drawn = _drawn(self.generator, DRAWS)
        self._used += 1
        return self._drawn[self._used - 1]

    def state(self) -> Tensor:
        """Of a generator that has drawn no more than were used."""
        if self._used == len(self._drawn):
            return self.generator.get_state()
        one = torch.Generator()
        one.set_state(self._before)
        _drawn(one, self._used)
        return one.get_state()

    def restore(self, state: Tensor) -> None:
        """One of another kind of device stays what it is."""
        if state.shape == self.generator.get_state().shape:
            self.generator.set_state(state)
            self._drawn, self._used = [], 0


def _drawn(generator: torch.Generator, count: int) -> list[float]:
    numbers: list[float] = torch.rand(count, dtype=torch.float64, generator=generator).tolist()
    return numbers
