"""The newest ids in, the next logits out: one forward of the model over a cache's fixed slots.

Plain; or every decoder layer through one compiled graph; or, on a GPU, that captured as a CUDA graph. A step
and an eviction read and write the cache's buffers alone, whose shapes and addresses never change.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.policy_layer import PolicyLayer
from scope_cli.files import cache_folder
from scope_cli.models.attention import decoder_layers
from scope_cli.models.lean import PreTrainedModel
from scope_cli.policies.view import LaneFacts

Wish = Literal["auto", "on", "off"]
PAYS_AFTER = {"cpu": 1000, "cuda": 500}  # steps, measured on a CPU (docs/performance.md), a guess on a GPU
MOST_GRAPHS = 64  # per function; torch gives up after 8, which layers of several sizes exceed
BITSANDBYTES = ("8bit", "4bit")
FEW = 4  # tokens that leave at once, up to which an eviction is compiled
WARM_UPS = 3  # runs before a capture, as CUDA graphs want them

Tell = Callable[[str], None]
Run = Callable[[], None]  # what is recorded
Replay = Callable[[], None]
Recorder = Callable[[Run], Replay]
Layer = Callable[..., Any]  # a decoder layer, or the graph of one


class Step(Protocol):
    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [lanes, 1]; returns logits, [lanes, vocab]"""


def compiles(wish: Wish, device: torch.device, steps: int, load_in: str | None) -> bool:
    """Whether compiling pays for itself in a run of so many steps."""
    if device.type == "cpu" and load_in in BITSANDBYTES:
        return False  # the process dies in it (torch 2.13, bitsandbytes 0.50)
    if wish == "auto":
        return steps >= PAYS_AFTER.get(device.type, steps + 1)
    return wish == "on"


def new_step(model: PreTrainedModel, cache: ScopeCache, compiled: bool, tell: Tell) -> Step:
    if not compiled:
        return EagerStep(model, cache)
    step = CompiledStep(model, cache, tell)
    if cache.device.type == "cuda":
        return GraphStep(step, cache, tell)
    CompiledForget(step, cache, tell)
    return step


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

    Dynamo's checks and wrappers took a fifth of the embedded model's step (docs/performance.md), and are left
    out from the third step on.
    """

    def __init__(self, model: PreTrainedModel, cache: ScopeCache, tell: Tell) -> None:
        self.model, self.cache, self._tell = model, cache, tell
        self._plain = EagerStep(model, cache)
        self.works = True
        self.layers = decoder_layers(model)
        keep_compiled_code()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        self._shortcuts = Shortcuts(
            [
                torch.compile(layer._call_impl, backend=noting_inductor, fullgraph=True, dynamic=False)
                for layer in self.layers
            ]
        )
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
            self._tell(f"warning: the step cannot be compiled, going on without: {first_line(error)}")
            return self._plain(ids)  # writes again what the other has written

    def _run(self, ids: Tensor) -> Tensor:
        layers = self._shortcuts.layers(self.cache)
        for layer, compiled in zip(self.layers, layers, strict=True):
            layer.self_attn.scope_slots = self.cache.layers[layer.self_attn.layer_idx]
            layer._compiled_call_impl = compiled
        try:
            position_ids = self.cache.next_position.unsqueeze(1)
            return self.model(input_ids=ids, position_ids=position_ids, use_cache=False).logits[:, -1]
        finally:
            for layer in self.layers:
                layer._compiled_call_impl = None
                del layer.self_attn.scope_slots


class CompiledForget:
    """An eviction of a few tokens, every layer's through one compiled graph, in the place of `cache.forget`.

    Who evicts that few evicts at every step or so, as the `slide` of the paper. An eviction of many tokens
    comes seldom: it stays as it is, and need not be compiled for every number of tokens.
    """

    def __init__(self, step: CompiledStep, cache: ScopeCache, tell: Tell) -> None:
        self.step, self.cache, self._tell = step, cache, tell
        self._works = True
        self._forget = cache.forget
        compiled = torch.compile(PolicyLayer.forget, backend=noting_inductor, fullgraph=True, dynamic=False)
        self._shortcuts = Shortcuts([compiled] * len(cache.policy_layers))
        cache.evict = self

    def __call__(self, facts: LaneFacts, most: int) -> None:
        if not (self._works and self.step.works) or most > FEW:
            self._forget(facts, most)
            return
        layers = self.cache.policy_layers
        for number, compiled in enumerate(self._shortcuts.layers(self.cache, most)):
            try:
                compiled(layers[number], facts, most)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._works = False
                self._tell(f"warning: evictions cannot be compiled, going on without: {first_line(error)}")
                for layer in layers[number:]:
                    layer.forget(facts, most)
                break
        self.cache.count_gone(facts)


class Shortcuts:
    """Compiled functions; each calls its graph without dynamo, once two calls have shown that it may.

    Dynamo finds the graph of a function and the tensors that it reads. A tensor that was the same in two
    calls is the same in all later ones: the buffers of weights and cache stay in their places, until a prompt
    needs layers of other sizes (`ScopeCache.fit_prompt`), and then all is found out again.
    """

    def __init__(self, compiled: Sequence[Layer]) -> None:
        self._compiled = compiled
        self._noted: dict[tuple[int, ...], list[list[GraphCall]]] = {}
        self._known: dict[tuple[int, ...], list[Layer]] = {}
        self._fitted = 0

    def layers(self, cache: ScopeCache, *numbers: int) -> list[Layer]:
        """What to call, each of them once; `numbers`: what makes another graph, as the slots read do."""
        if cache.fitted != self._fitted:
            self._noted.clear()
            self._known.clear()
            self._fitted = cache.fitted
        key = (*numbers, *(layer.read_slots for layer in cache.layers))
        if (known := self._known.get(key)) is not None:
            return known
        rounds = self._noted.setdefault(key, [])
        if len(rounds) < 2:
            rounds.append([])
            return [noting(compiled, rounds[-1]) for compiled in self._compiled]
        del self._noted[key]
        self._known[key] = [
            without_dynamo(first, second) or compiled
            for first, second, compiled in zip(*rounds, self._compiled, strict=True)
        ]
        return self._known[key]


Place = tuple[int, int | str, int | None]  # in args (0) or kwargs (1), under which key, which of a tuple's


@dataclass
class GraphCall:
    """A compiled layer's call, and what it made of it: the call of a graph."""

    graph: Layer
    inputs: list[Any]  # of the graph; None for those that the layer was called with
    told: dict[int, Place]  # where those come from, by their number among the inputs
    is_all: bool  # the layer returns the one thing that its graph returns, or nothing as it does


# Graph, inputs and outputs of the graphs that are called; None where nobody wants to know.
_graph_calls: list[tuple[Layer, tuple[Any, ...], Any]] | None = None
_compiling: Tell | None = None  # who is told that a graph is compiled


def noting_inductor(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Layer:
    """torch.compile's own backend, whose graphs leave a note of each call.

    One function for all steps: with another backend dynamo would compile anew. On a CPU the code that calls
    the kernels is C++ too.
    """
    if _compiling is not None:
        _compiling("compiling the step")

    from torch._inductor.compile_fx import compile_fx  # takes 1.5 s, which a plain run need not wait for

    patches = {"size_asserts": False, "cpp_wrapper": inputs[0].device.type == "cpu"}
    graph = cast(Layer, compile_fx(module, inputs, config_patches=patches))

    def call(*inputs: Any) -> Any:
        outputs = graph(*inputs)
        if _graph_calls is not None:
            _graph_calls.append((graph, inputs, outputs))
        return outputs

    return call


@contextmanager
def told_of_compiling(busy: Tell) -> Iterator[None]:
    """`busy` is told whenever a graph is about to be compiled, which takes seconds."""
    global _compiling
    before, _compiling = _compiling, busy
    try:
        yield
    finally:
        _compiling = before


def noting(compiled: Layer, calls: list[GraphCall]) -> Layer:
    """The same layer, which adds to `calls` what it calls."""

    def call(*args: Any, **kwargs: Any) -> Any:
        global _graph_calls
        noted: list[Any] = []
        _graph_calls = noted
        try:
            out = compiled(*args, **kwargs)
        finally:
            _graph_calls = None
        graph, inputs, outputs = noted[-1] if noted else (compiled, (), ())
        found = {id(tensor): place for place, tensor in tensors_of(args, kwargs)}
        told = {number: found[id(one)] for number, one in enumerate(inputs) if id(one) in found}
        kept = [None if number in told else one for number, one in enumerate(inputs)]
        is_all = len(noted) == 1 and len(outputs) < 2 and out is (outputs[0] if outputs else None)
        calls.append(GraphCall(graph, kept, told, is_all))
        return out

    return call


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Place, Tensor]]:
    """What a layer is called with."""
    for where, values in enumerate((dict(enumerate(args)), kwargs)):
        for key, value in cast(dict[int | str, Any], values).items():
            if isinstance(value, Tensor):
                yield (where, key, None), value
            elif isinstance(value, tuple):
                yield from (((where, key, nth), one) for nth, one in enumerate(value) if torch.is_tensor(one))


def without_dynamo(first: GraphCall, second: GraphCall) -> Layer | None:
    """A layer as the call of its graph; None where two calls of it differ in more than what it was told."""
    same = first.graph is second.graph and first.told == second.told and first.is_all and second.is_all
    if not same or any(one is not other for one, other in zip(first.inputs, second.inputs, strict=True)):
        return None
    graph, inputs, told = first.graph, first.inputs, list(first.told.items())

    def call(*args: Any, **kwargs: Any) -> Any:
        now = inputs.copy()
        for number, (where, key, nth) in told:
            value = kwargs[key] if where else args[key]  # type: ignore[index]
            now[number] = value if nth is None else value[nth]
        outputs = graph(*now)
        return outputs[0] if outputs else None

    return call


def first_line(error: Exception) -> str:
    """What went wrong, in a line; of what a compiler's backend raised, not of the wrapping."""
    while isinstance(inner := getattr(error, "inner_exception", None), Exception):
        error = inner
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def keep_compiled_code() -> None:
    """Compiled code stays for the next run, in our own cache folder unless the user names another one.

    A folder for each kind of CPU: code that was made for AVX-512 is taken where only AVX2 may be used, and
    gave numbers that are none (torch 2.13).
    """
    kind = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled" / kind))


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
            self._tell(f"warning: no CUDA graph can be made, going on without: {first_line(error)}")


class CudaRecorder:
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
