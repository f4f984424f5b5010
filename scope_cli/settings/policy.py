"""The sections of a profile that say what the cache holds: prefill, decode, cache."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from scope_cli.formats.base import SlotFormat
from scope_cli.policies import plugins
from scope_cli.policies.schedule import Strategy
from scope_cli.settings.values import MOST, Plugin, Settings, tokens_or_share

KV = {
    "plain": ("plain", "plain"),
    "int8": ("int8", "int8"),
    "k8v4": ("int8", "int4"),
    "auto": ("auto", "auto"),
}
EXACT = 64  # tokens that stay as they are beside slots in 4 bits
FOUR_BIT_KEYS = (
    "keys in 4 bits cost a KL of 0.006 on the embedded model, seven times what values in 4 bits cost: "
    "int8 is the least for keys"
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
        description="most prompt tokens read at once; on a CPU never more than 512, so that Ctrl-C is heard",
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
            yield "budget", f"is {self.budget}; with tau, mass finds its own: drop one of the two"
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
        "auto",
        description="how keys and values lie in their slots: plain, as the model computes them; int8, a "
        "quarter of float32's bytes for next to no change; k8v4, keys in 8 bits and values in 4; auto: int8, "
        "unless a text read both ways shows that it moves this model by a KL of more than 0.005, or a step "
        "with it would be slower",
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
        """The formats; `auto` counts as int8 until it is settled."""
        return SlotFormat(*("int8" if side == "auto" else side for side in self.sides))

    def settled(self, auto: Literal["plain", "int8"]) -> "CacheSettings":
        """With what `auto` comes to in its place."""
        open_keys = [key for key in ("kv", "keys", "values") if getattr(self, key) == "auto"]
        return self.model_copy(update=dict.fromkeys(open_keys, auto))

    @property
    def exact_tokens(self) -> int:
        if self.exact == "auto":
            return EXACT if "int4" in self.sides else 0
        return self.exact if self.form.packs else 0
