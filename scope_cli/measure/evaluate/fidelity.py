"""A known text and a profile in, the distance from the full cache out: KL, agreement, perplexity, bytes.

The text's output is fed to the full cache once, and to each profile's cache (teacher forcing): both predict
the same tokens after the same tokens, so what differs is the cache alone.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.engine.replay import PromptState, read_once, replay
from scope_cli.engine.run_plan import make_plan, policy_in_words
from scope_cli.errors import UsageError
from scope_cli.events import Reading
from scope_cli.formats.base import PLAIN, SlotFormat
from scope_cli.geometry import Geometry
from scope_cli.machine.memory import free_bytes
from scope_cli.measure.evaluate.statistics import BLOCK, Blocks, estimate, quantile
from scope_cli.models.model import LoadedModel
from scope_cli.settings.load import LoadedProfile, load_profile
from scope_cli.units import as_bytes


@dataclass(frozen=True)
class KnownText:
    """A prompt and what comes after it."""

    name: str
    prompt_ids: list[int]
    output_ids: list[int]


@dataclass(frozen=True)
class HeldBytes:
    """What a cache held while a text went through: keys and values."""

    held_mean: float  # over the tokens
    held_peak: int
    held_end: int
    full_mean: float  # what the full cache would have held
    full_peak: int
    overhead: int  # positions, bias, slot lists, query rings, memos
    allocated: int


@dataclass(frozen=True)
class Fidelity:
    """One profile's distance from the full cache on one text; intervals by block bootstrap."""

    text: str
    prompt_tokens: int
    output_tokens: int
    policy: str  # in words
    kl: list[float | None]  # mean KL(full || profile) in nats, and the interval's ends
    kl_p95: list[float | None]  # its 95th percentile over the tokens
    top1: list[float | None]  # how often both have the same most probable token
    perplexity: float
    full_perplexity: float
    first_divergence: int | None  # the first token, from 0, where the most probable tokens differ
    block_tokens: int
    blocks: dict[str, list[float]]  # by position: means of kl, top1 and nll over blocks of tokens
    bytes: HeldBytes
    evictions: int
    kept_prompt: int
    kept_generated: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """What the full cache says about a text, computed once for all profiles.

    logprobs: [output, vocab] in float32, the full cache's distributions
    """

    loaded: LoadedModel
    text: KnownText
    state: PromptState | None
    logprobs: Tensor

    @classmethod
    def of(cls, loaded: LoadedModel, text: KnownText) -> "Reference":
        """Raises UsageError where the text does not fit the model's context, or the memory there is."""
        check_text(loaded, text)
        needed = len(text.output_ids) * loaded.geometry.vocab * 4
        free = free_bytes(torch.device("cpu"))
        if needed > free:
            raise UsageError(
                f"{len(text.output_ids):,} distributions over {loaded.geometry.vocab:,} tokens take "
                f"{as_bytes(needed)}, {as_bytes(free)} are free",
                "measure less of the text: --tokens N",
            )
        state = read_once(loaded, text.prompt_ids)
        settings = planned(load_profile("full", {"cache.kv": "plain"}), len(text.output_ids))
        replayed = replay(loaded, settings, text.prompt_ids, text.output_ids, state)
        logprobs = torch.empty(len(text.output_ids), loaded.geometry.vocab)
        at = 0
        for logits, _cache in replayed:
            logprobs[at : at + len(logits)] = logits.float().log_softmax(-1)
            at += len(logits)
        return cls(loaded, text, state, logprobs)


def check_text(loaded: LoadedModel, text: KnownText) -> None:
    tokens, context = len(text.prompt_ids) + len(text.output_ids), loaded.geometry.context
    if len(text.output_ids) < 2:
        raise UsageError(f"{text.name}: there is no output to measure", "give a longer text")
    if tokens > context:
        raise UsageError(
            f"{text.name} has {tokens:,} tokens, the model's context is {context:,}",
            f"measure less of it: --tokens {max(2, context - len(text.prompt_ids))}",
        )


def planned(settings: LoadedProfile, tokens: int) -> LoadedProfile:
    """The profile with the output length that is going to be fed."""
    sampling = settings.profile.sampling.model_copy(update={"max_new_tokens": tokens})
    profile = settings.profile.model_copy(update={"sampling": sampling})
    return LoadedProfile(profile, settings.source, settings.typed - {"sampling.max_new_tokens"})


def measure(reference: Reference, settings: LoadedProfile, plan_tokens: int | None = None) -> Fidelity:
    """Replay the text under a profile; its planned length is the text's, unless `plan_tokens` says more."""
    loaded, text = reference.loaded, reference.text
    settings = planned(settings, max(len(text.output_ids), plan_tokens or 0))
    meter = ByteMeter(loaded.geometry, loaded.dtype.itemsize, settings.profile.cache.form)
    kl, same, nll = _compare(reference, meter.watch(_replay(reference, settings)))
    kl_blocks, same_blocks, nll_blocks = Blocks.of(kl), Blocks.of(same), Blocks.of(nll)
    full_nll = _nll(reference.logprobs, text.output_ids).double().numpy()
    reading = meter.reading
    plan = make_plan(settings, loaded.geometry, len(text.prompt_ids))
    differs = np.flatnonzero(same == 0)
    return Fidelity(
        text=text.name,
        prompt_tokens=len(text.prompt_ids),
        output_tokens=len(text.output_ids),
        policy=policy_in_words(settings.profile, plan),
        kl=estimate([kl_blocks]).as_list(),
        kl_p95=quantile(kl, 0.95).as_list(),
        top1=estimate([same_blocks]).as_list(),
        perplexity=float(np.exp(nll.mean())),
        full_perplexity=float(np.exp(full_nll.mean())),
        first_divergence=int(differs[0]) if len(differs) else None,
        block_tokens=BLOCK,
        blocks={"kl": kl_blocks.means, "top1": same_blocks.means, "nll": nll_blocks.means},
        bytes=meter.bytes,
        evictions=reading.evictions,
        kept_prompt=reading.kept_prompt,
        kept_generated=reading.kept_generated,
    )


def _replay(reference: Reference, settings: LoadedProfile) -> Iterator[tuple[Tensor, ScopeCache]]:
    text = reference.text
    return replay(reference.loaded, settings, text.prompt_ids, text.output_ids, reference.state)


def _compare(
    reference: Reference, replayed: Iterator[tuple[Tensor, ScopeCache]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL(full || profile), same most probable token, -log p(the token that came): each [output]."""
    kl, same, nll, at = [], [], [], 0
    for logits, _cache in replayed:
        full = reference.logprobs[at : at + len(logits)]
        got = logits.float().log_softmax(-1).to(full.device)
        kl.append((full.exp() * (full - got)).sum(-1))
        same.append((full.argmax(-1) == got.argmax(-1)).double())
        nll.append(_nll(got, reference.text.output_ids[at : at + len(logits)]))
        at += len(logits)
    assert at == len(reference.logprobs), "a token was not predicted"
    return tuple(torch.cat(parts).double().numpy() for parts in (kl, same, nll))  # type: ignore[return-value]


def _nll(logprobs: Tensor, ids: list[int]) -> Tensor:
    return -logprobs.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)


class ByteMeter:
    """Bytes at every token of a replay, although the replay feeds many tokens at once."""

    def __init__(self, geometry: Geometry, dtype_bytes: int, form: SlotFormat) -> None:
        # Between two evictions every policy layer gains one token at a time.
        self._token_bytes = form.policy_token_bytes(geometry, dtype_bytes)
        self._full_token_bytes = PLAIN.policy_token_bytes(geometry, dtype_bytes)
        self._held = self._full = 0.0  # sums over the tokens
        self._tokens = 0
        self._peak = 0
        self.reading: Reading = None  # type: ignore[assignment]  # the newest

    def watch(self, replayed: Iterator[tuple[Tensor, ScopeCache]]) -> Iterator[tuple[Tensor, ScopeCache]]:
        for logits, cache in replayed:
            self._add(cache.reading(), len(logits))
            yield logits, cache
        audit = cache.audit()
        assert audit.passed, audit.problems

    def _add(self, reading: Reading, tokens: int) -> None:
        """`tokens` were fed since the last reading; an eviction may have followed the last of them."""
        if self.reading is not None:
            held, full = self.reading.held_bytes, self.reading.full_bytes
            between = sum(range(1, tokens))
            self._held += held * (tokens - 1) + between * self._token_bytes
            self._full += full * (tokens - 1) + between * self._full_token_bytes
            self._peak = max(self._peak, held + tokens * self._token_bytes)
        self._held += reading.held_bytes
        self._full += reading.full_bytes
        self._peak = max(self._peak, reading.held_bytes)
        self._tokens += tokens
        self.reading = reading

    @property
    def bytes(self) -> HeldBytes:
        return HeldBytes(
            held_mean=self._held / self._tokens,
            held_peak=self._peak,
            held_end=self.reading.held_bytes,
            full_mean=self._full / self._tokens,
            full_peak=self.reading.full_bytes,
            overhead=self.reading.overhead_bytes,
            allocated=self.reading.allocated_bytes,
        )
