"""The sections of a profile: every setting's name, type, default and meaning, and what fits together."""

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from scope_cli.formats.base import SlotFormat
from scope_cli.policies import plugins
from scope_cli.policies.schedule import Strategy
from scope_cli.settings.values import (
    MOST,
    Plugin,
    Settings,
    as_list,
    none_is_null,
    on_or_off,
    tokens_or_share,
    zero_is_off,
)

MOST_THREADS = 64  # or four for each CPU, where that is more: libraries die of thousands
KV = {
    "plain": ("plain", "plain"),
    "int8": ("int8", "int8"),
    "k8v4": ("int8", "int4"),
    "auto": ("auto", "auto"),
}
EXACT = 64  # tokens that stay as they are beside slots in 4 bits
FOUR_BIT_KEYS = (
    "keys in 4 bits change the text ten times as much as values in 4 bits: int8 is the least for keys"
)
COLDEST = 1e-6  # a lower temperature but 0: logits divided by it may leave float32


class ModelSettings(Settings):
    name: str = Field(
        "smollm2-135m", description="name from `scope models list`, folder, GGUF file or hub name"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto", description="type of weights and cache; auto: float32 on a CPU, the checkpoint's own on a GPU"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="where to run: auto (the first GPU, else the CPU), cpu, mps, cuda or cuda:N",
    )
    load_in: Annotated[
        Literal["auto", "int8", "int4", "8bit", "4bit"] | None, BeforeValidator(none_is_null)
    ] = Field(
        "auto",
        description="quantised weights: int8, int4 (on a CPU), 8bit, 4bit (bitsandbytes); null: plain; "
        "auto: on a CPU, with dtype auto, int4 for a GGUF file in 4 bits (Q4_0, Q4_1, Q4_K), int8 for one in "
        "other or several quantised types; else plain",
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(on_or_off)] = Field(
        "auto",
        description="on a GPU, compile the decode step; auto: where the planned output is long enough",
    )
    context: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="most tokens of prompt and output together; null: what the model was made for, with "
        "scaled RoPE",
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="CPU threads; auto: OMP_NUM_THREADS, else the cores that this process may use"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        cpus = os.cpu_count() or 1
        most = max(MOST_THREADS, 4 * cpus)
        if self.threads != "auto" and self.threads > most:
            yield (
                "threads",
                f"is {self.threads:,}; this machine has {cpus:,} CPUs, and {most:,} is the most it may be",
            )


class PromptSettings(Settings):
    system: str | None = Field(None, description="system message, if the chat template takes one")
    raw: bool = Field(False, description="feed the prompt as it is, without the chat template")
    template_args: dict[str, JsonValue] = Field(
        {}, description="arguments of the chat template, such as {enable_thinking: false}"
    )
    continue_text: str | None = Field(
        None, description="beginning of the answer, which the model continues; it is not written again"
    )
    allow_control_tokens: bool = Field(
        False, description="read <|im_end|> and the like in prompts as tokens, not as text"
    )


class PrefillSettings(Settings):
    method: Plugin = Field(
        Plugin(name="full"), description="how the prompt is compressed; see `scope prefills`"
    )
    budget: Annotated[int | str | None, BeforeValidator(tokens_or_share)] = Field(
        None,
        description='prompt tokens that each KV head keeps on average: a number, or a share such as "25%"; '
        "a prompt that fits is kept whole",
    )
    window: int = Field(
        32, ge=1, le=MOST, description="last prompt tokens, always kept; their queries rank the others"
    )
    wrap: tuple[Plugin, ...] = Field(
        (),
        description="wrappers around the method: adakv, mass, think; see `scope prefills`",
    )
    chunk: int = Field(
        2048,
        ge=1,
        le=MOST,
        description="prompt tokens read at once; at most 512 on a CPU, so that Ctrl-C is answered",
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Plug-ins are asked only where something other than the default is set: they import torch."""
        plain = self.method.name == "full" and not self.wrap
        pairs = [("prefills", self.method), *(("wrappers", wrapper) for wrapper in self.wrap)]
        if plain or any(any(plugin.problems(kind)) for kind, plugin in pairs):
            return
        method, *wrappers = (plugins.build(kind, plugin.name, plugin.options) for kind, plugin in pairs)
        names = [wrapper.name for wrapper in self.wrap]
        if len(set(names)) < len(names):
            yield "wrap", f"names {', '.join(names)}; each wrapper goes once"
        if not method.compresses:
            for name, wrapper in zip(names, wrappers, strict=True):
                if wrapper.divides_heads or wrapper.divides_layers:
                    yield (
                        "wrap",
                        f"{name} divides a budget; {self.method.name} keeps everything: set prefill.method",
                    )
            return
        dividing = [
            plugin.name
            for (_, plugin), one in zip(pairs, [method, *wrappers], strict=True)
            if one.divides_layers
        ]
        if len(dividing) > 1:
            yield "wrap", f"{' and '.join(dividing)} both divide the budget between the layers: choose one"
        finds_budget = any(wrapper.finds_budget for wrapper in wrappers)
        if self.budget is None and not finds_budget:
            yield (
                "budget",
                f"is null; {self.method.name} needs to know how many prompt tokens stay: a number, "
                "or a share such as 25%",
            )
        if self.budget is not None and finds_budget:
            yield "budget", f"is {self.budget}; with tau, mass finds its own: take one of the two away"
        if isinstance(self.budget, int) and self.window > self.budget:
            yield "window", f"is {self.window}; it is part of the budget ({self.budget}) and cannot be larger"

    def uneven(self) -> str | None:
        """The plug-in, if any, that makes heads or layers keep different numbers of prompt tokens."""
        plugged = [] if self.method.name == "full" else [("prefills", self.method)]
        for kind, plugin in [*plugged, *(("wrappers", wrapper) for wrapper in self.wrap)]:
            if plugin.name in plugins.names(kind):
                cls = plugins.plugin_class(kind, plugin.name)
                if cls.divides_layers or getattr(cls, "divides_heads", False):
                    return plugin.name
        return None


class DecodeSettings(Settings):
    strategy: Strategy = Field("slide", description="when generated tokens are evicted; full: never")
    scorer: Plugin = Field(
        Plugin(name="attention"), description="how generated tokens are ranked; see `scope scorers`"
    )
    budget: int = Field(2048, ge=1, le=MOST, description="generated tokens that each KV head may hold")
    recent: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST)] = Field(
        "auto",
        description="newest generated tokens, never evicted; auto: half the budget (or the total budget "
        "without the sinks, if that is less), at most 256",
    )
    interval: Literal["auto", "discontinuous"] | Annotated[int, Field(ge=1, le=MOST)] = Field(
        "auto",
        description="tokens between evictions; auto: half of budget - recent, at most 64; "
        "discontinuous: (length - recent) / heavy hitters",
    )
    ratio: int = Field(
        4, ge=1, le=MOST, description="for rpc only: keep one token in `ratio`, whatever the budget says"
    )
    protect_prompt: bool = Field(
        True, description="keep the whole prompt; false: its tokens may be evicted too (the unified baseline)"
    )
    sinks: int = Field(
        0,
        ge=0,
        le=MOST,
        description="first prompt tokens, kept even if the prompt is not protected",
    )
    total_budget: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        None, description="prompt and generated tokens held together, if the prompt is not protected"
    )

    share: Literal["kv_head", "layer"] = Field(
        "kv_head", description="layer: all KV heads of a layer keep the same tokens, by their mean score"
    )
    weigh: Literal["criticalkv"] | None = Field(
        None, description="criticalkv: scores times the norm of what a value adds to the output"
    )
    reserve_values: float = Field(
        0.0, ge=0, le=1, description="share of the heavy hitters that goes to the largest value ranges"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.strategy != "full" and self.recent_tokens > self.budget:
            yield "recent", f"is {self.recent}; it is part of the budget ({self.budget}) and cannot be larger"
        if "discontinuous" in (self.strategy, self.interval):
            if self.recent_tokens == self.budget:
                yield (
                    "recent",
                    f"is the whole budget ({self.budget}); discontinuous needs room for heavy hitters",
                )
            if self.interval not in ("auto", "discontinuous"):
                yield (
                    "interval",
                    f"is {self.interval}; discontinuous computes its own: --interval auto",
                )
        if self.protect_prompt:
            if self.total_budget is not None:
                yield (
                    "total_budget",
                    "needs protect_prompt: false; with a protected prompt the limit is `budget`",
                )
            if self.sinks:
                yield "sinks", "needs protect_prompt: false; a protected prompt is kept whole"
        elif self.total_budget is not None and self.sinks + self.recent_tokens > self.total_budget:
            least = self.sinks + self.recent_tokens
            yield "total_budget", f"is {self.total_budget}; sinks and recent alone are {least}"

    @property
    def recent_tokens(self) -> int:
        if self.recent != "auto":
            return self.recent
        total = self.budget if self.total_budget is None else self.total_budget - self.sinks
        return max(1, min(256, self.budget // 2, total // 2))


def _no_four_bit_keys(value: Any) -> Any:
    if value == "int4":
        raise PydanticCustomError("four_bits", FOUR_BIT_KEYS)
    return value


class CacheSettings(Settings):
    kv: Literal["plain", "int8", "k8v4", "auto"] = Field(
        "plain",
        description="how keys and values lie in their slots: plain, as the model computes them; int8, a "
        "quarter of float32's bytes for next to no change; k8v4, keys in 8 bits and values in 4; auto: int8, "
        "unless a passage read both ways shows that it moves this model by a KL of more than 0.005",
    )
    keys: Annotated[Literal["auto", "plain", "int8"], BeforeValidator(_no_four_bit_keys)] | None = Field(
        None, description="the keys alone; null: what `kv` says"
    )
    values: Literal["auto", "plain", "int8", "int4"] | None = Field(
        None, description="the values alone; null: what `kv` says"
    )
    exact: Literal["auto"] | Annotated[int, Field(ge=0, le=MOST)] = Field(
        "auto",
        description="newest generated tokens, at most `decode.recent`, that are also kept and used as they "
        "are; auto: 64 where values lie in 4 bits, else none",
    )

    @property
    def sides(self) -> tuple[str, str]:
        """Of keys and values: plain, int8, int4 or auto."""
        keys, values = KV[self.kv]
        return self.keys or keys, self.values or values

    @property
    def form(self) -> SlotFormat:
        """The formats; `auto` is int8."""
        return SlotFormat(*("int8" if side == "auto" else side for side in self.sides))

    @property
    def plain_form(self) -> SlotFormat:
        """The formats where int8 moves the model too far: `auto` is plain."""
        return SlotFormat(*("plain" if side == "auto" else side for side in self.sides))

    @property
    def exact_tokens(self) -> int:
        if self.exact == "auto":
            return EXACT if "int4" in self.sides else 0
        return self.exact if self.form.packs else 0


class SamplingSettings(Settings):
    temperature: float = Field(0.0, ge=0, description="randomness; 0: always the most probable token")
    top_k: Annotated[Annotated[int, Field(ge=1, le=MOST)] | None, BeforeValidator(zero_is_off)] = Field(
        None, description="sample among the k most probable; null, or 0: among all"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the most probable that together reach p")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="sample among tokens at least min_p times as probable as the best"
    )
    repetition_penalty: float = Field(
        1.0, ge=1e-3, description="above 1: penalise tokens already written; the prompt does not count"
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of all sampling: same seed, settings and machine, same text"
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        4096, description="planned length of the output; null: until the model stops or its context ends"
    )
    min_new_tokens: int = Field(0, ge=0, le=MOST, description="tokens before which the model may not end")
    ignore_eos: bool = Field(False, description="never let the model end by itself")
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(as_list)] = Field(
        (), description="text that ends the output, or a list of them; special tokens too; not written"
    )
    stop_tokens: Annotated[
        tuple[Annotated[int, Field(strict=True)] | Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(as_list),
    ] = Field((), description="token that ends the output, by id or text, or a list of them; not written")
    stop_on_loop: bool = Field(
        False, description="end when the output repeats itself (period 1-128, 4 copies, 64 tokens)"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if 0 < self.temperature < COLDEST:
            yield (
                "temperature",
                f"is {self.temperature:g}, and has to be 0 (the most probable token) or at least {COLDEST:g}",
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            yield (
                "min_new_tokens",
                f"is {self.min_new_tokens}, more than max_new_tokens ({self.max_new_tokens})",
            )


class Profile(Settings):
    """Everything that decides a run's text and memory, besides the prompt."""

    description: str = Field("", description="one line for `scope profiles list`")
    model: ModelSettings = ModelSettings()
    prompt: PromptSettings = PromptSettings()
    prefill: PrefillSettings = PrefillSettings()
    decode: DecodeSettings = DecodeSettings()
    cache: CacheSettings = CacheSettings()
    sampling: SamplingSettings = SamplingSettings()

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("model", "prompt", "prefill", "decode", "cache", "sampling"):
            for inner, text in getattr(self, key).problems():
                yield f"{key}.{inner}", text
        for key, plugin, kind in (
            ("prefill.method", self.prefill.method, "prefills"),
            *(("prefill.wrap", wrapper, "wrappers") for wrapper in self.prefill.wrap),
            ("decode.scorer", self.decode.scorer, "scorers"),
        ):
            for option, text in plugin.problems(kind):
                yield f"{key}.{option}".rstrip("."), text
        if not self.decode.protect_prompt and (uneven := self.prefill.uneven()):
            yield (
                "decode.protect_prompt",
                f"is false; then every head keeps equally many prompt tokens, and {uneven} divides them",
            )
        planned = "discontinuous" in (self.decode.strategy, self.decode.interval)
        planned = planned or self.decode.strategy == "adaptive"
        if planned and self.sampling.max_new_tokens is None:
            yield "sampling.max_new_tokens", "is null; this strategy and interval need a planned length"

    def as_dict(self) -> dict[str, Any]:
        """The complete profile, as it would be written in YAML."""
        return self.model_dump(mode="json")


def section_of(name: str) -> type[Settings]:
    """The class of a section of the profile."""
    section = Profile.model_fields[name].annotation
    assert isinstance(section, type) and issubclass(section, Settings)
    return section
