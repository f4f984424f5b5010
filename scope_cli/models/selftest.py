"""A model that was just loaded in, a refusal out where scope's attention would not write that model's text.

Some tokens are read in two chunks, and some more one by one, through scope's attention and cache; and all of
them at once through transformers' own attention of the same weights. The logits have to agree. What is found
once is remembered for a model of that kind and these versions.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from scope_cli import __version__
from scope_cli.cache import cache
from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import CacheShape
from scope_cli.console.safe import as_json
from scope_cli.errors import ModelError, first_line
from scope_cli.files import cache_folder
from scope_cli.geometry import Geometry
from scope_cli.models import attention
from scope_cli.models.attention import attention_of
from scope_cli.models.folder import stored_shapes
from scope_cli.models.lean import AttentionInterface, PreTrainedModel
from scope_cli.policies import plugins
from scope_cli.policies.policy import Policy
from scope_cli.settings.policy import DecodeSettings
from scope_cli.settings.schedules import schedule_of

CHUNKS = (13, 7)
STEPS = 3
TOKENS = sum(CHUNKS) + STEPS
WINDOW = 8  # of sliding-window layers, while they are tested
CHECKED = "scope-checked"
# How far apart attention may be for the same input, as a share of its size: some 10 times what rounding does.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
PACKED_TOLERANCE = 0.1  # products of packed weights round by how many rows there are


@dataclass(frozen=True)
class SelfTest:
    """What the test of a model cost, or that it was remembered."""

    elapsed_s: float | None

    def __str__(self) -> str:
        if self.elapsed_s is None:
            return "self-test: passed before"
        return f"self-test: passed, {TOKENS} tokens both ways in {self.elapsed_s * 1000:,.0f} ms"


def self_test(
    model: PreTrainedModel, geometry: Geometry, dtype: torch.dtype, folder: Path, load_in: str | None = None
) -> SelfTest:
    """Raises ModelError with the layer that differs."""
    note = _note_of(model, folder, dtype, load_in)
    if note.is_file():
        return SelfTest(None)
    began = perf_counter()
    tolerance = PACKED_TOLERANCE if load_in else TOLERANCE.get(dtype, PACKED_TOLERANCE)
    try:
        _compare(model, geometry, dtype, tolerance)
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the model's own code, called as no other program calls it
        raise _cannot_run(model, f"a text ends with {type(error).__name__}: {first_line(error)}") from error
    elapsed_s = perf_counter() - began
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(as_json({"model_type": model.config.model_type, "elapsed_s": elapsed_s}))
    except OSError:  # a cache folder that cannot be written: the next start tests again
        pass
    return SelfTest(elapsed_s)


def _note_of(model: PreTrainedModel, folder: Path, dtype: torch.dtype, load_in: str | None) -> Path:
    """Where the result is remembered: by all that attention could depend on but the weights' values."""
    seen = sha256()
    ours = [Path(module.__file__ or "") for module in (attention, cache)] + [Path(__file__)]
    for file in [*ours, folder / "config.json"]:
        seen.update(file.read_bytes() if file.is_file() else b"")
    weights = list(stored_shapes(folder))
    facts = (
        str(torch.__version__),
        transformers.__version__,
        __version__,
        str(dtype),
        load_in,
        model.device.type,
    )
    seen.update(as_json([facts, weights]).encode())
    return cache_folder() / "self-tests" / f"{seen.hexdigest()[:32]}.json"


@torch.no_grad()
def _compare(model: PreTrainedModel, geometry: Geometry, dtype: torch.dtype, tolerance: float) -> None:
    if geometry.context < TOKENS:
        return  # no such text can be written
    first = 0  # of the positions
    if geometry.switch is not None:  # across the length at which factors would change
        first = max(0, geometry.switch - CHUNKS[0])
    ids = (torch.arange(TOKENS, device=model.device) * 31 + 7) % geometry.vocab
    positions = torch.arange(first, first + TOKENS, device=model.device)
    ids, positions = ids.unsqueeze(0), positions.unsqueeze(0)
    heard = Hearing(model)
    with short_windows(model, geometry) as windowed:
        with _attending(model, "sdpa" if model._supports_sdpa else "eager"), heard.noting():
            expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        with heard.comparing():
            got, calls = _through_scope(model, windowed, dtype, ids, positions)
    _check_calls(model, geometry, calls)
    for layer, module in enumerate(calls[0]):
        if heard.distance.get(module, 0.0) > tolerance:
            raise _cannot_run(model, f"through scope's cache layer {layer} attends to something else")
    if tolerance > TOLERANCE[torch.float32]:
        return  # experts are chosen by a hair: where attention agrees, coarse rounding explains the rest
    if _distance(got, expected[list(_ends())]) > tolerance:
        raise _cannot_run(model, "something beside their attention depends on how a text is read")


@contextmanager
def short_windows(model: PreTrainedModel, geometry: Geometry) -> Iterator[Geometry]:
    """Sliding windows that these few tokens outgrow: a window that config.json speaks of may not be one.

    Where windows are not in a configuration's `sliding_window` they stay as they are.
    """
    wide = {layer.window for layer in geometry.layers if layer.window > WINDOW}
    configs = [one for one in _configs(model) if vars(one).get("sliding_window") in wide]
    before = [config.sliding_window for config in configs]
    if len(wide) != 1 or not configs:
        yield geometry
        return
    for config in configs:
        config.sliding_window = WINDOW
    try:
        yield replace(
            geometry,
            layers=tuple(
                replace(layer, window=min(layer.window, WINDOW)) if layer.window else layer
                for layer in geometry.layers
            ),
        )
    finally:
        for config, window in zip(configs, before, strict=True):
            config.sliding_window = window


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every configuration that a module of the model looks at."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return [config for config in found.values() if hasattr(config, "_attn_implementation_internal")]


def _ends() -> Iterator[int]:
    """The tokens whose logits are compared: the last of each chunk, and each one after them."""
    end = -1
    for tokens in (*CHUNKS, *[1] * STEPS):
        end += tokens
        yield end


def _distance(got: Tensor, expected: Tensor) -> float:
    """How far apart the rows are, [rows, width], the worst of them as a share of how large they are."""
    expected = expected.double()
    apart = (got.double() - expected).masked_fill(~(got.isfinite() | expected.isfinite()), 0)
    if not apart.isfinite().all():  # a number here, none there
        return float("inf")
    size = expected.nan_to_num(0, 0, 0).pow(2).mean().sqrt().clamp(min=1e-30)
    return float(apart.pow(2).mean(-1).sqrt().max() / size)


class Hearing:
    """What the attention modules of a model make of all tokens at once; then, of the same input, bit by bit.

    So no layer is blamed for what came before it, and the rounding of many layers does not add up.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        numbered = [
            module
            for module in model.modules()
            if isinstance(_number(module), int) and "attention" in type(module).__name__.lower()
        ]
        self.modules = [
            module
            for module in numbered
            if all(_number(inner) is None for inner in module.modules() if inner is not module)
        ]
        self.distance: dict[nn.Module, float] = {}
        self._went_in: dict[nn.Module, Tensor] = {}  # [1, tokens, hidden]
        self._came_out: dict[nn.Module, Tensor] = {}
        self._seen: dict[nn.Module, int] = {}  # tokens, so far

    @contextmanager
    def noting(self) -> Iterator[None]:
        def note(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            self._went_in[module], self._came_out[module] = _hidden(args, kwargs), _first(out)

        with _hooks(module.register_forward_hook(note, with_kwargs=True) for module in self.modules):
            yield

    @contextmanager
    def comparing(self) -> Iterator[None]:
        def give(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            start = self._seen.get(module, 0)
            same = self._went_in[module][:, start : start + _hidden(args, kwargs).shape[1]]
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": same}
            return (same, *args[1:]), kwargs

        def compare(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            start = self._seen.get(module, 0)
            end = self._seen[module] = start + _first(out).shape[1]
            apart = _distance(_first(out)[0], self._came_out[module][0, start:end])
            self.distance[module] = max(apart, self.distance.get(module, 0.0))

        hooks = [module.register_forward_pre_hook(give, with_kwargs=True) for module in self._went_in]
        hooks += [module.register_forward_hook(compare, with_kwargs=True) for module in self._went_in]
        with _hooks(hooks):
            yield


def _number(module: nn.Module) -> Any:
    return getattr(module, "layer_idx", None)


def _hidden(args: Any, kwargs: Any) -> Tensor:
    """What an attention module is called with, [1, tokens, hidden]."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def _hooks(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    held = list(hooks)
    try:
        yield
    finally:
        for hook in held:
            hook.remove()


def _through_scope(
    model: PreTrainedModel, geometry: Geometry, dtype: torch.dtype, ids: Tensor, positions: Tensor
) -> tuple[Tensor, list[list[nn.Module]]]:
    """Logits at the ends, [ends, vocab]; and the modules that attended, in order, call by call."""
    slots = CacheShape(
        lanes=1, prompt_slots=(sum(CHUNKS),) * len(geometry.layers), evictable=STEPS, context=TOKENS
    )
    policy = Policy(plugins.build("scorers", "recency", {}))
    told = attention_of(model, geometry, weighs=False)
    held = ScopeCache(geometry, slots, policy, attention=told, dtype=dtype, device=model.device)
    held.start_prompt(0, schedule_of(DecodeSettings(strategy="full"), STEPS, kept_prompt=sum(CHUNKS)))
    logits, calls, start = [], [], 0
    with _attending(model, CHECKED) as attended:
        for tokens in (*CHUNKS, *[1] * STEPS):
            now = slice(start, start + tokens)
            if tokens > 1:
                held.start_chunk(0, tokens)
            attended.clear()
            try:
                out = model(
                    input_ids=ids[:, now],
                    position_ids=positions[:, now],
                    use_cache=False,
                    logits_to_keep=1,
                    scope_cache=held,
                ).logits[0, -1]
            except _NotHandedOn as error:
                raise _cannot_run(
                    model, "their layers do not hand on to attention what a call says"
                ) from error
            logits.append(out)
            calls.append(list(attended))
            start += tokens
            if tokens == 1:
                held.end_step()
                continue
            held.end_chunk()
            if start == sum(CHUNKS):
                held.start_decode(0)
    return torch.stack(logits), calls


class _NotHandedOn(Exception):
    """Attention was called without the cache."""


@contextmanager
def _attending(model: PreTrainedModel, name: str) -> Iterator[list[nn.Module]]:
    """The model with another attention; the modules that call ours, as they do."""
    attended: list[nn.Module] = []

    def checked(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("scope_cache") is None:
            raise _NotHandedOn
        attended.append(module)
        return attention.attend(module, *args, **kwargs)

    AttentionInterface.register(CHECKED, checked)
    configs = _configs(model)
    before = [config._attn_implementation_internal for config in configs]
    for config in configs:
        config._attn_implementation_internal = name
    try:
        yield attended
    finally:
        for config, was in zip(configs, before, strict=True):
            config._attn_implementation_internal = was


def _check_calls(model: PreTrainedModel, geometry: Geometry, calls: list[list[nn.Module]]) -> None:
    """Every layer attends once in a call of the model."""
    for modules in calls:
        numbers = [getattr(module, "layer_idx", None) for module in modules]
        if not numbers:
            raise _cannot_run(model, "none of their layers calls scope's attention")
        for layer in range(len(geometry.layers)):
            times = numbers.count(layer)
            if times != 1:
                how = "does not call scope's attention" if not times else f"calls attention {times} times"
                raise _cannot_run(model, f"layer {layer} {how}")
        if len(numbers) != len(geometry.layers):
            raise _cannot_run(model, f"{len(numbers)} calls of attention for {len(geometry.layers)} layers")


def _cannot_run(model: PreTrainedModel, why: str) -> ModelError:
    return ModelError(
        f"{model.config.model_type} models of transformers {transformers.__version__} cannot be run: {why}",
        "found by scope's self-test when a model is loaded; what works: docs/reference/models.md",
    )
