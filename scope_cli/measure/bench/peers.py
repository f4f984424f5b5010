"""transformers' own caches as contenders: the same weights, the most probable token, nothing around them."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    PreTrainedConfig,
    QuantizedCache,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from scope_cli.engine.roofline import step_weight_bytes
from scope_cli.machine.device import resolve_device
from scope_cli.measure.bench.engine import touch
from scope_cli.measure.bench.protocol import Account, Ids, Job, Loaded
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import load_profile

CHUNK = 512  # known tokens fed at once; a prompt is read as `generate` reads it, all at once

CACHES: dict[str, tuple[str, Callable[[PreTrainedConfig, Job], Cache]]] = {
    "dynamic": ("DynamicCache", lambda config, job: DynamicCache(config=config)),
    "static": ("StaticCache", lambda config, job: StaticCache(config, max_cache_len=job.most_tokens)),
    "quantized": ("QuantizedCache, quanto, 4 bits", lambda config, job: QuantizedCache("quanto", config)),
}
CACHES["generate"] = ("generate() with DynamicCache", CACHES["dynamic"][1])


class TransformersPeer:
    """The model called as `generate` calls it, a token at a time; the kind `generate` is generate itself."""

    def __init__(self, kind: str, overrides: dict[str, Any], loaded: LoadedModel | None = None) -> None:
        """loaded: a model that is there already, and attends as transformers does."""
        self.kind, self.given = kind, loaded
        self.settings = load_profile("full", overrides).profile.model
        self.device = resolve_device(self.settings.device)

    def load(self, job: Job) -> Loaded:
        self.job = job
        loaded = self.given or open_model(self.settings, offline=True, lanes=job.lanes).load(attention="sdpa")
        self.model = loaded.model
        if job.threads:
            torch.set_num_threads(job.threads)
        self.name, self.make = CACHES[self.kind]
        self.make(self.model.config, job)  # a package that is missing is told now
        touch(self.model)
        plain = loaded.opened.load_in is None
        return Loaded(
            policy=f"transformers, {self.name}",
            exact=plain and self.kind != "quantized",
            versions={"torch": str(torch.__version__), "transformers": transformers.__version__},
            weight_bytes=step_weight_bytes(self.model, job.lanes),
        )

    @torch.no_grad()
    def read(self, ids: Ids) -> list[int]:
        self.cache: Cache | None = None  # the one before goes first
        self.cache = self.make(self.model.config, self.job)
        self.ids = torch.empty(
            len(ids), 0, dtype=torch.long, device=self.device
        )  # [lanes, tokens], in the cache
        return self._feed(torch.tensor(ids, device=self.device))

    @torch.no_grad()
    def advance(self, ids: Ids) -> list[int]:
        for chunk in torch.tensor(ids, dtype=torch.long, device=self.device).split(CHUNK, 1):
            if chunk.shape[1]:
                self._feed(chunk)
        return self.following[:, 0].tolist()

    def _feed(self, chunk: Tensor) -> list[int]:
        logits = self.model(chunk, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        self.following = logits[:, -1].argmax(-1, keepdim=True)  # [lanes, 1]
        self.ids = torch.cat([self.ids, chunk], 1)
        return self.following[:, 0].tolist()

    @torch.no_grad()
    def step(self, count: int) -> tuple[float, Ids]:
        before = self.ids.shape[1]
        held = self._held_bytes() / max(1, before)
        took = self._generate(count) if self.kind == "generate" else self._step(count)
        # an update concatenates, so it copies what there was; a cache of fixed size is written in place; what
        # a quantised one copies while it unpacks is not counted
        copies = 0 if self.kind == "static" else sum(range(before, before + count))
        self.moved = None if self.kind == "quantized" else round(copies * held)
        return took, self.ids[:, before:].tolist()

    def _step(self, count: int) -> float:
        written = []
        begin = perf_counter()
        for _ in range(count):
            written.append(self.following)
            logits = self.model(self.following, past_key_values=self.cache, use_cache=True).logits
            self.following = logits[:, -1].argmax(-1, keepdim=True)
            self.following.tolist()  # a reader wants to see it: the device is waited for
        took = perf_counter() - begin
        self.ids = torch.cat([self.ids, *written], 1)
        return took

    def _generate(self, count: int) -> float:
        """Between the first token, which pays for setting out, and `count` further ones."""
        stamps: list[float] = []

        class Stamp(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
                stamps.append(perf_counter())
                return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        ids = torch.cat([self.ids, self.following], 1)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=self.cache,
            max_new_tokens=count + 1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([Stamp()]),
        )
        self.ids, self.following = out[:, :-1], out[:, -1:]
        return stamps[-1] - stamps[0]

    def account(self) -> Account:
        held = self._held_bytes()
        if self.kind == "static":  # every slot is read, filled or not
            tokens = max(1, self.ids.shape[1])
            return Account(round(held * tokens / self.job.most_tokens), held, self.moved)
        return Account(held, held, self.moved)

    def _held_bytes(self) -> int:
        assert self.cache is not None, "a prompt comes first"
        names = ("keys", "values", "_quantized_keys", "_quantized_values")
        return sum(stored_bytes(getattr(layer, name, None)) for layer in self.cache.layers for name in names)


def stored_bytes(tensor: Any) -> int:
    """Bytes of a tensor, or of those inside it where it is a quantised one."""
    if not isinstance(tensor, Tensor):
        return 0
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) is not Tensor:
        inner, _ = tensor.__tensor_flatten__()
        return sum(stored_bytes(getattr(tensor, name)) for name in inner)
    return tensor.nbytes
