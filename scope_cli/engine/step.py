"""The newest ids in, the next logits out: one forward of the model over a cache's fixed slots.

Plain; or every decoder layer through one compiled graph; or, on a GPU, that captured as a CUDA graph. A step
and an eviction read and write the cache's buffers alone, whose shapes and addresses never change.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from scope_cli import errors
from scope_cli.cache.cache import ScopeCache
from scope_cli.machine.setup import allow_graphs, keep_compiled_code
from scope_cli.models.attention import decoder_layers
from scope_cli.models.decoders import NotInTable
from scope_cli.models.lean import PreTrainedModel
from scope_cli.models.native_step import NativeStep
from scope_cli.native.library import library
from scope_cli.policies.view import LaneFacts

MOST_GRAPHS = 64  # per function
WARM_UPS = 3  # runs before a capture, as CUDA graphs want them

Tell = Callable[[str], None]
Run = Callable[[], None]  # what is recorded
Replay = Callable[[], None]
Recorder = Callable[[Run], Replay]
Layer = Callable[..., Any]  # a decoder layer, or the graph of one


class Step(Protocol):
    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [lanes, 1]; returns logits, [lanes, vocab]"""


def new_step(
    model: PreTrainedModel, cache: ScopeCache, compiled: bool, tell: Tell, native: bool = False
) -> Step:
    """native: the model has passed the native step's self-test (models/step_test.py)"""
    if compiled:
        step = CompiledStep(model, cache, tell)
        return GraphStep(step, cache, tell) if cache.device.type == "cuda" else step
    if native and (known := library()) is not None:
        with suppress(NotInTable):  # why not has been told, by whoever loaded the model
            return NativeStep(model, cache, known)
    return EagerStep(model, cache)


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
        self.works = True
        self.layers = decoder_layers(model)
        keep_compiled_code()
        allow_graphs(MOST_GRAPHS)
        self._compiled = [
            torch.compile(layer._call_impl, backend=telling_inductor, fullgraph=True, dynamic=False)
            for layer in self.layers
        ]
        cache.fixed_reads = True

    def __call__(self, ids: Tensor) -> Tensor:
        if not self.works:
            return self._plain(ids)
        try:
            return self._run(ids)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler may say
            self.works = False
            self._tell(f"warning: the step cannot be compiled, going on without: {cause_of(error)}")
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


_compiling: Tell | None = None  # who is told that a graph is compiled


def telling_inductor(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Layer:
    """torch.compile's own backend, which says when it begins.

    One function for all steps: with another backend dynamo would compile anew.
    """
    if _compiling is not None:
        _compiling("compiling the step")

    from torch._inductor.compile_fx import compile_fx  # takes 1.5 s, which a plain run need not wait for

    return cast(Layer, compile_fx(module, inputs, config_patches={"size_asserts": False}))


@contextmanager
def told_of_compiling(busy: Tell) -> Iterator[None]:
    """`busy` is told whenever a graph is about to be compiled, which takes seconds."""
    global _compiling
    before, _compiling = _compiling, busy
    try:
        yield
    finally:
        _compiling = before


def cause_of(error: Exception) -> str:
    """What went wrong, in a line; of what a compiler's backend raised, not of the wrapping."""
    while isinstance(inner := getattr(error, "inner_exception", None), Exception):
        error = inner
    return errors.first_line(error)


class GraphStep:
    """A step and an eviction as CUDA graphs: one launch each in place of a thousand.

    One is recorded for each prefix of the slots that is read, an eviction also for each number of tokens that
    leave. Recording runs what is recorded: a run in which no lane writes and none evicts leaves every buffer
    as it was (tests/engine/test_step.py).
    """

    def __init__(
        self, step: Step, cache: ScopeCache, tell: Tell, recorder: Callable[[], Recorder] | None = None
    ) -> None:
        """recorder: makes what records graphs that share their memory; CUDA's where there is none"""
        self.step, self.cache, self._tell = step, cache, tell
        lanes = cache.shape.lanes
        self._ids = torch.zeros(lanes, 1, dtype=torch.int64, device=cache.device)
        self._facts = torch.zeros(5, lanes, 1, 1, dtype=torch.int64, device=cache.device)
        self._logits: Tensor | None = (
            None  # [lanes, vocab], of every graph: a recorder's memory keeps nothing
        )
        self._new_recorder = recorder or (lambda: CudaRecorder(cache.device))
        self._works = True
        self._forget = cache.forget
        cache.evict = self.forget
        self._begin()

    def _begin(self) -> None:
        """Without a graph. The memory of graphs that are gone is gone as well: it takes a new recorder."""
        self._steps: dict[tuple[int, ...], Replay] = {}
        self._evictions: dict[tuple[int, ...], Replay] = {}
        self._fitted = self.cache.fitted
        self._record = self._new_recorder()

    def _drop_what_is_gone(self) -> None:
        """Graphs of layers that a prompt of another size has replaced hold their buffers."""
        if self._fitted != self.cache.fitted:
            self._begin()

    def __call__(self, ids: Tensor) -> Tensor:
        self._drop_what_is_gone()
        reads = tuple(layer.read_slots for layer in self.cache.layers)
        if self._works and reads not in self._steps:
            with self.cache.at_rest():
                if self._logits is None:
                    self._logits = torch.empty_like(self.step(self._ids))
                self._keep(self._steps, reads, self._step_into_logits)
        if (replay := self._steps.get(reads)) is None or self._logits is None:
            return self.step(ids)
        self._ids.copy_(ids)
        replay()
        return self._logits

    def _step_into_logits(self) -> None:
        assert self._logits is not None
        self._logits.copy_(self.step(self._ids))

    def forget(self, facts: LaneFacts, most: int) -> None:
        """The cache's own `forget`, replayed."""
        self._drop_what_is_gone()
        key = (most, *(layer.read_slots for layer in self.cache.layers))
        if self._works and key not in self._evictions and len(self._evictions) < MOST_GRAPHS:
            self._facts.zero_()
            self._keep(self._evictions, key, lambda: self._forget(LaneFacts.of(self._facts), most))
        if (replay := self._evictions.get(key)) is None:
            self._forget(facts, most)
            return
        self._facts.copy_(torch.stack(facts))
        replay()

    def _keep(self, graphs: dict[tuple[int, ...], Replay], key: tuple[int, ...], run: Run) -> None:
        """Record `run`; where that cannot be done, nothing is recorded any more."""
        try:
            graphs[key] = self._record(run)
        except RuntimeError as error:
            self._works = False
            self._tell(f"warning: no CUDA graph can be made, going on without: {cause_of(error)}")


class CudaRecorder:  # pragma: no cover  needs a card
    """Records CUDA graphs into one pool of memory, which they share because they run one after the other.

    Nothing made while one is recorded outlives its replay: the next may write there. (An eviction recorded
    before the step once wrote over the step's logits.)
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Replay:
        """Warm up beside the current stream, then record."""
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        replay: Replay = graph.replay
        return replay
