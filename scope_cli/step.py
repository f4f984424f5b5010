"""The newest ids in, the next logits out: one forward of the model over a cache's fixed slots.

Plain; or every decoder layer through one compiled graph; or, on a GPU, that captured as a CUDA graph. A step
and an eviction read and write the cache's buffers alone, whose shapes and addresses never change.
"""

import os
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scope_cli.cache import ScopeCache
from scope_cli.registry import cache_folder

Wish = Literal["auto", "on", "off"]
PAYS_AFTER = {"cpu": 1000, "cuda": 500}  # steps, measured on a CPU (docs/performance.md), a guess on a GPU
MOST_GRAPHS = 64  # per function; torch gives up after 8, which layers of several sizes exceed
WARM_UPS = 3  # runs before a capture, as CUDA graphs want them

Tell = Callable[[str], None]


class Step(Protocol):
    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [lanes, 1]; returns logits, [lanes, vocab]"""


def compiles(wish: Wish, device: torch.device, steps: int) -> bool:
    """Whether compiling pays for itself in a run of so many steps."""
    if wish == "auto":
        return steps >= PAYS_AFTER.get(device.type, steps + 1)
    return wish == "on"


def new_step(model: PreTrainedModel, cache: ScopeCache, compiled: bool, tell: Tell) -> Step:
    if not compiled:
        return EagerStep(model, cache)
    step = CompiledStep(model, cache, tell)
    return GraphStep(step, cache, tell) if cache.device.type == "cuda" else step


class EagerStep:
    """The model as it is."""

    def __init__(self, model: PreTrainedModel, cache: ScopeCache) -> None:
        self.model, self.cache = model, cache

    def __call__(self, ids: Tensor) -> Tensor:
        return self.model(
            input_ids=ids,
            position_ids=self.cache.next_position.unsqueeze(1),
            use_cache=False,
            scope_cache=self.cache,
        ).logits[:, -1]


class CompiledStep:
    """Every decoder layer through torch.compile; layers of one size share one graph.

    While the step runs, and only then, the layers are replaced by their compiled selves, and each attention
    module is told its slots: looked up by the layer's number, that number would be compiled in.
    """

    def __init__(self, model: PreTrainedModel, cache: ScopeCache, tell: Tell) -> None:
        self.model, self.cache, self._tell = model, cache, tell
        self._plain = EagerStep(model, cache)
        self._works = True
        self.layers = decoder_layers(model)
        keep_compiled_code()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        self._compiled = [
            torch.compile(layer._call_impl, fullgraph=True, dynamic=False) for layer in self.layers
        ]
        cache.fixed_reads = True

    def __call__(self, ids: Tensor) -> Tensor:
        if not self._works:
            return self._plain(ids)
        try:
            return self._run(ids)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler may say
            self._works = False
            self._tell(f"warning: the step cannot be compiled, going on without: {first_line(error)}")
            return self._plain(ids)  # writes again what the other has written

    def _run(self, ids: Tensor) -> Tensor:
        for layer, compiled in zip(self.layers, self._compiled, strict=True):
            layer.self_attn.scope_slots = self.cache.layers[layer.self_attn.layer_idx]
            layer._compiled_call_impl = compiled
        try:
            position_ids = self.cache.next_position.unsqueeze(1)
            return self.model(input_ids=ids, position_ids=position_ids, use_cache=False).logits[:, -1]
        finally:
            for layer in self.layers:
                layer._compiled_call_impl = None
                del layer.self_attn.scope_slots


def first_line(error: Exception) -> str:
    """What went wrong, in a line; of what a compiler's backend raised, not of the wrapping."""
    while isinstance(inner := getattr(error, "inner_exception", None), Exception):
        error = inner
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def decoder_layers(model: PreTrainedModel) -> list[Any]:
    """The layers whose attention has a number, in its order."""
    found = [module for module in model.modules() if hasattr(getattr(module, "self_attn", None), "layer_idx")]
    return sorted(found, key=lambda layer: layer.self_attn.layer_idx)


def keep_compiled_code() -> None:
    """Compiled code stays for the next run, in our own cache folder unless the user names another one."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))


class GraphStep:
    """A step and an eviction as CUDA graphs: one launch each in place of a thousand.

    One is captured for each prefix of the slots that is read, an eviction also for each number of tokens that
    leave. Not tried without a GPU but for what capturing relies on: a run in which no lane writes and none
    evicts leaves every buffer as it was (tests/test_step.py).
    """

    def __init__(self, step: Step, cache: ScopeCache, tell: Tell) -> None:
        self.step, self.cache, self._tell = step, cache, tell
        lanes = cache.shape.lanes
        self._ids = torch.zeros(lanes, 1, dtype=torch.int64, device=cache.device)
        self._facts = torch.zeros(5, lanes, 1, 1, dtype=torch.int64, device=cache.device)
        self._steps: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._evictions: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}
        self._works = True
        self._pool = torch.cuda.graph_pool_handle()
        self._forget = cache.forget
        cache.forget = self.forget  # type: ignore[method-assign]

    def __call__(self, ids: Tensor) -> Tensor:
        reads = tuple(layer.read_slots for layer in self.cache.layers)
        if self._works and reads not in self._steps:
            with self.cache.at_rest():
                captured = self._capture(lambda: self.step(self._ids))
            if captured is not None:
                self._steps[reads] = captured
        if reads not in self._steps:
            return self.step(ids)
        graph, logits = self._steps[reads]
        self._ids.copy_(ids)
        graph.replay()
        return logits

    def forget(self, facts: Tensor, most: int) -> None:
        """The cache's own `forget`, replayed."""
        key = (most, *(layer.read_slots for layer in self.cache.layers))
        if self._works and key not in self._evictions and len(self._evictions) < MOST_GRAPHS:
            self._facts.zero_()
            captured = self._capture(lambda: self._forget(self._facts, most))
            if captured is not None:
                self._evictions[key] = captured[0]
        if key not in self._evictions:
            self._forget(facts, most)
            return
        self._facts.copy_(facts)
        self._evictions[key].replay()

    def _capture(self, run: Callable[[], Tensor | None]) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
        """Warm up beside the current stream, then record; None, for good, where that cannot be done."""
        try:
            side = torch.cuda.Stream(self.cache.device)
            side.wait_stream(torch.cuda.current_stream(self.cache.device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    run()
            torch.cuda.current_stream(self.cache.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                out = run()
        except RuntimeError as error:
            self._works = False
            self._tell(f"warning: no CUDA graph can be made, going on without: {first_line(error)}")
            return None
        return graph, out if out is not None else self._facts
