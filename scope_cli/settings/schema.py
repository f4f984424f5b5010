"""The sections of a profile: every setting's name, type, default and meaning, and what fits together."""

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from scope_cli.settings.policy import CacheSettings, DecodeSettings, PrefillSettings
from scope_cli.settings.values import (
    MOST,
    Settings,
    as_list,
    none_is_null,
    on_or_off,
    zero_is_off,
)

MOST_THREADS = 64  # or four for each CPU, where that is more: libraries die of thousands
COLDEST = 1e-6  # a lower temperature but 0: logits divided by it may leave float32


class ModelSettings(Settings):
    name: str = Field(
        "smollm2-135m", description="name from `scope models list`, folder, GGUF file or hub name"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto",
        description="type of weights and cache; auto: float32 on a CPU; on a GPU the checkpoint's own, and "
        "bfloat16 for a quantised GGUF file",
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


OnLoop = Literal["stop", "rollback", "ignore"]


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
    on_loop: OnLoop = Field(
        "ignore",
        description="when the output repeats itself: stop, rollback (take it back and continue) or ignore",
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if 0 < self.temperature < COLDEST:
            yield (
                "temperature",
                f"is {self.temperature:g}; it must be 0 (the most probable token) or at least {COLDEST:g}",
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
