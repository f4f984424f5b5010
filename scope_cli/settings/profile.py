"""YAML file and options in, frozen Profile out; every problem is gathered first.

Found by path, then by name in ./profiles, then among those shipped. What `--set` and the short options
say is laid over the file, and the result is checked as a whole.
"""

import os
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from typing_extensions import TypeIs

import scope_cli
from scope_cli import utf8
from scope_cli.errors import ProfileError
from scope_cli.names import did_you_mean
from scope_cli.policies import plugins
from scope_cli.policies.schedule import Strategy
from scope_cli.settings.problems import about_value

DEFAULT_PROFILE = "default"
DRAWING = {"random", "vase", "mix"}  # scorers and methods that draw by the seed
MOST_BYTES = 2**20  # of a profile
MOST = 10**9  # of anything that is counted: beyond it PyTorch's own counters overflow
SYNONYMS = {  # what other tools call it
    **dict.fromkeys(["fp16", "f16", "half"], "float16"),
    **dict.fromkeys(["bf16", "brain"], "bfloat16"),
    **dict.fromkeys(["fp32", "f32", "float", "single"], "float32"),
    **dict.fromkeys(["fp64", "f64", "double"], "float64"),
    **dict.fromkeys(["q4", "4", "int-4", "q4_0"], "int4"),
    **dict.fromkeys(["q8", "8", "int-8", "q8_0"], "int8"),
    **dict.fromkeys(["4-bit", "nf4", "bnb"], "4bit"),
    **dict.fromkeys(["8-bit"], "8bit"),
    **dict.fromkeys(["true", "yes"], "on"),
    **dict.fromkeys(["false", "no"], "off"),
}
MOST_THREADS = 64  # or four for each CPU, where that is more: libraries die of thousands
COLDEST = 1e-6  # a lower temperature but 0: logits divided by it may leave float32


class Settings(BaseModel):
    """One section of a profile."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_yes(cls, value: Any, info: ValidationInfo) -> Any:
        known = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and known.annotation is not bool and _on_or_off not in _before(known):
            raise plugins.yes_or_no(value)
        return value

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong) for settings that are fine alone and not together."""
        yield from ()


class Plugin(BaseModel):
    """A plug-in by name, with options: `attention`, or `{name: window, window: 32}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer
    def _shortest(self) -> Any:
        return {"name": self.name, **self.options} if self.options else self.name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def problems(self, kind: str) -> Iterator[tuple[str, str]]:
        known = plugins.names(kind)
        if self.name not in known:
            yield "", f"there is no {self.name!r}{did_you_mean(self.name, known)}"
        elif self.options:  # a bare name needs no import of the plug-in to be right
            defaults = plugins.defaults(plugins.plugin_class(kind, self.name))
            for option, error in plugins.option_problems(kind, self.name, self.options):
                default = f" (default {defaults[option]})" if option in defaults else ""
                yield option, _in_words(error, list(defaults)) + default


def _before(known: FieldInfo) -> list[Any]:
    """What looks at a field's value before pydantic does."""
    return [one.func for one in known.metadata if isinstance(one, BeforeValidator)]


def _none_is_null(value: Any) -> Any:
    """`--load-in none` on a command line is null in YAML."""
    return None if value == "none" else value


def _zero_is_off(value: Any) -> Any:
    """`--top-k 0` is how others say: all of them."""
    return None if value == 0 and not isinstance(value, bool) else value


def _on_or_off(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _as_list(value: Any) -> Any:
    """One text or number may stand without its list."""
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


class ModelSettings(Settings):
    name: str = Field(
        "smollm2-135m", description="a name from `scope models list`, a folder, a GGUF file, or a hub name"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto", description="of weights and cache; auto: float32 on a CPU, the checkpoint's own on a GPU"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto (the first GPU, else the CPU), cpu, mps, cuda or cuda:N",
    )
    load_in: Annotated[
        Literal["auto", "int8", "int4", "8bit", "4bit"] | None, BeforeValidator(_none_is_null)
    ] = Field(
        "auto",
        description="quantised weights: int8, int4 (on a CPU), 8bit, 4bit (bitsandbytes); null: plain; "
        "auto: on a CPU, with dtype auto, int4 for a GGUF file in 4 bits (Q4_0, Q4_1, Q4_K), int8 for one in "
        "other or several quantised types; else plain",
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        "auto",
        description="compile the decode step; auto: where the planned output is long enough to pay for it",
    )
    context: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="prompt and output tokens at most; null: as many as the model was made for, scaled RoPE "
        "included",
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
    system: str | None = Field(None, description="system message, where the chat template takes one")
    raw: bool = Field(False, description="feed the prompt as it is, without the model's chat template")
    template_args: dict[str, JsonValue] = Field(
        {}, description="what the chat template takes besides messages, e.g. {enable_thinking: false}"
    )
    continue_text: str | None = Field(
        None, description="how the answer begins; the model goes on behind it, and it is not written again"
    )
    allow_control_tokens: bool = Field(
        False, description="true: the names of control tokens in prompts are the tokens, not text"
    )


def _tokens_or_share(value: Any) -> Any:
    """A budget of prompt tokens as it stands in YAML."""
    if value is None or (type(value) is int and 1 <= value <= MOST):
        return value
    if isinstance(value, str) and value.isdecimal() and 1 <= int(value) <= MOST:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value) and 0 < float(value[:-1]) <= 100:
        return value
    raise PydanticCustomError(
        "budget", 'a budget is a number of tokens, or a share of the prompt such as "25%"'
    )


class PrefillSettings(Settings):
    method: Plugin = Field(
        Plugin(name="full"), description="what is done once to the prompt's cache; see `scope prefills`"
    )
    budget: Annotated[int | str | None, BeforeValidator(_tokens_or_share)] = Field(
        None,
        description='prompt tokens that each KV head keeps on average: a number, or a share such as "25%"; '
        "a prompt that fits is kept whole",
    )
    window: int = Field(
        32, ge=1, le=MOST, description="the last prompt tokens, always kept; their queries rank the others"
    )
    wrap: tuple[Plugin, ...] = Field(
        (),
        description="what goes around the method: adakv, mass, think; see `scope prefills`",
    )
    chunk: int = Field(
        2048,
        ge=1,
        le=MOST,
        description="prompt tokens read at once; on a CPU at most 512, so that Ctrl-C is heard",
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
        Plugin(name="attention"), description="which generated tokens are kept; see `scope scorers`"
    )
    budget: int = Field(
        2048, ge=1, le=MOST, description="generated tokens that each KV head of a layer may hold"
    )
    recent: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST)] = Field(
        "auto",
        description="the newest of them, never evicted; auto: half the budget (or the total budget without "
        "the sinks, where that is less), at most 256",
    )
    interval: Literal["auto", "discontinuous"] | Annotated[int, Field(ge=1, le=MOST)] = Field(
        "auto",
        description="tokens between evictions; auto: half of budget - recent, at most 64; "
        "discontinuous: (length - recent) / heavy hitters",
    )
    ratio: int = Field(
        4, ge=1, le=MOST, description="rpc alone: one token in `ratio` is kept, whatever the budget says"
    )
    protect_prompt: bool = Field(
        True, description="false: prompt tokens may be evicted too (the unified baseline)"
    )
    sinks: int = Field(
        0,
        ge=0,
        le=MOST,
        description="first prompt tokens that stay all the same when the prompt is not protected",
    )
    total_budget: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        None, description="prompt and generated tokens held together, when the prompt is not protected"
    )

    share: Literal["kv_head", "layer"] = Field(
        "kv_head", description="layer: the KV heads of a layer keep the same tokens, by their mean score"
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


class SamplingSettings(Settings):
    temperature: float = Field(0.0, ge=0, description="0: always the most probable token")
    top_k: Annotated[Annotated[int, Field(ge=1, le=MOST)] | None, BeforeValidator(_zero_is_off)] = Field(
        None, description="sample among the k most probable; null, or 0: among all"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the most probable that together reach p")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="sample among those at least min_p times as probable as the best"
    )
    repetition_penalty: float = Field(
        1.0, ge=1e-3, description="above 1: tokens written before lose; the prompt's do not"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="same seed, same settings, same machine: same text")
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        4096, description="planned length; null: until the model stops or its context ends"
    )
    min_new_tokens: int = Field(0, ge=0, le=MOST, description="the model may not end before that many")
    ignore_eos: bool = Field(False, description="the model may never end by itself")
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_list)] = Field(
        (), description="texts that end the output, or one of them; not written; special tokens too"
    )
    stop_tokens: Annotated[
        tuple[Annotated[int, Field(strict=True)] | Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(_as_list),
    ] = Field((), description="tokens that end the output, or one of them, by id or text; not written")
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
    sampling: SamplingSettings = SamplingSettings()

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("model", "prompt", "prefill", "decode", "sampling"):
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


@dataclass(frozen=True)
class LoadedProfile:
    profile: Profile
    source: str  # the file it came from
    typed: frozenset[str]  # dotted keys that were given on the command line
    names: Mapping[str, str] = field(default_factory=dict)  # what was typed for them: "--budget"

    def idle(self) -> Iterator[str]:
        """What was typed and has no effect, each with the reason."""
        for key, why in _idle(self.profile):
            if key in self.typed:
                yield f"{self.names.get(key, key)} has no effect: {why}"


class Typed(dict[str, Any]):
    """What was given on the command line, by dotted key, and as what: {"decode.budget": "--budget"}."""

    def __init__(self, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
        super().__init__(values)
        self.names = dict(names)


def load_profile(name: str = DEFAULT_PROFILE, overrides: Mapping[str, Any] | None = None) -> LoadedProfile:
    """Read a profile and lay `overrides` (dotted keys) over it.

    Raises ProfileError with every problem of the result, one a line.
    """
    path = find_profile(name)
    tree = read_yaml(path)
    names = overrides.names if isinstance(overrides, Typed) else {}
    overrides = dict(overrides or {})
    for key in sorted(overrides, key=lambda key: key.count(".")):  # a plug-in before its options
        _lay_over(tree, key, overrides[key])
    profile = check(tree, str(path), {key: names.get(key, key) for key in overrides})
    return LoadedProfile(profile, str(path), frozenset(overrides), names)


def _idle(profile: Profile) -> Iterator[tuple[str, str]]:
    """(key, why) for what this profile does not look at."""
    decode, sampling, prefill = profile.decode, profile.sampling, profile.prefill
    if decode.strategy == "full":
        for key in DecodeSettings.model_fields:
            if key != "strategy":
                yield f"decode.{key}", "strategy full evicts nothing"
    if decode.strategy == "rpc":
        yield "decode.budget", f"rpc allows one token in {decode.ratio}, whatever the budget says"
    else:
        yield "decode.ratio", f"it belongs to rpc, and the strategy is {decode.strategy}"
    if sampling.temperature == 0:
        greedy = "temperature 0 takes the most probable token each time"
        yield from ((f"sampling.{key}", greedy) for key in ("top_k", "top_p", "min_p"))
        if not {decode.scorer.name, prefill.method.name} & DRAWING:
            yield "sampling.seed", greedy
    if sampling.ignore_eos:
        yield "sampling.min_new_tokens", "the model may never end by itself"
    if prefill.method.name == "full" and not prefill.wrap:
        yield "prefill.window", "full keeps the whole prompt"
    if profile.model.device.startswith(("cuda", "mps")):
        yield "model.threads", f"the model runs on {profile.model.device}"


def in_place_of_shipped(name: str, source: str) -> str:
    """'' or, for a file of ./profiles that is taken in the place of a shipped one of its name, a note."""
    own = Path(source).resolve()
    shipped = shipped_folder().resolve()
    if Path(name).expanduser().is_file() or own.is_relative_to(shipped):
        return ""
    there = (shipped / f"{name}.yaml").is_file()
    return f"the profile is {source}, in the place of the shipped {name}" if there else ""


def find_profile(name: str) -> Path:
    """By path, then by name in ./profiles, then among those shipped."""
    as_path = Path(name).expanduser()
    if as_path.is_file():
        return as_path
    folders = [Path("profiles"), shipped_folder()]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = [profile_name for folder in folders for profile_name in profile_names(folder)]
    raise ProfileError(
        f"there is no profile {name!r}{did_you_mean(name, dict.fromkeys(known))}",
        "looked for a file of that path, then in ./profiles, then among those shipped: `scope profiles list`",
    )


def profile_names(folder: Path) -> list[str]:
    """'slide', 'baselines/tova', ...: what `--profile` takes for the files below a folder."""
    return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))


def shipped_folder() -> Path:
    """In a wheel the profiles lie inside the package, in a checkout beside it."""
    package = Path(scope_cli.__file__).parent
    installed = package / "shipped_profiles"
    return installed if installed.is_dir() else package.parent / "profiles"


class _Strict(yaml.SafeLoader):
    """Plain values alone, each key once. No aliases: a few lines of them can stand for terabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key} stands here twice", problem_mark=key_node.start_mark
                )
            seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError, whatever is wrong with it."""
    try:
        return yaml.load(text, _Strict)
    except RecursionError:
        raise yaml.YAMLError("too many brackets inside each other") from None
    except (ValueError, OverflowError) as error:  # a date that is none
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ProfileError(f"{path} has {size:,} bytes, and a profile at most {MOST_BYTES:,}")
        tree = parse_yaml(utf8.decode(path.read_bytes()))
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}") from error
    except utf8.NotText as error:
        raise ProfileError(f"{path} {error}", error.hint(str(path))) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ProfileError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ProfileError(f"{path}: a profile is a mapping of sections, this is a {type(tree).__name__}")
    return tree


def check(tree: dict[str, Any], source: str, typed: Mapping[str, str] | None = None) -> Profile:
    """A tree of plain values in, a Profile out, or one ProfileError with everything that is wrong.

    typed: keys that came from the command line, and what was typed: then the profile's file is not to blame
    """
    typed = typed or {}
    found: dict[str, str] = {}
    choices: dict[str, str] = {}  # of a union, beside a number: ", or auto"
    try:
        profile = Profile.model_validate(tree)
    except ValidationError as error:
        for one in error.errors():  # a union complains once for each of its members; the last says most
            key = _yaml_key(one["loc"])
            found[key] = _in_words(dict(one), _known_keys(key)) + choices.get(key, "")
            if one["type"] == "literal_error":
                choices[key] = f", or {' or '.join(_listed(one['ctx']['expected']))}"
        profile = _without(tree, list(found))
    for key, text in profile.problems():
        found.setdefault(key, text)
    if found:
        names = {key: _name_of(key, typed) for key in found}
        lines = [f"{names[key] or key}: {text}" for key, text in found.items()]
        where = "" if all(names.values()) else f"the profile is {source}; "
        raise ProfileError(
            lines[0] if len(lines) == 1 else "\n  ".join([f"the profile has {len(lines)} problems:", *lines]),
            f"{where}--help says what each option takes, `scope profiles show` prints every key",
        )
    return profile


def _name_of(key: str, typed: Mapping[str, str]) -> str:
    """What was typed for a key: its option, or --set with the key; '' where nothing was."""
    for one, name in typed.items():
        if one == f"{key}.name":  # of a plug-in, which is told as a whole
            return name
        if f"{key}.".startswith(f"{one}."):
            return name if key == one or name == key else f"{name} ({key})"
    return ""


def parse_set(items: list[str]) -> dict[str, Any]:
    """['decode.recent=128', ...] -> {'decode.recent': 128, ...}; values are YAML."""
    overrides: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ProfileError(f"--set {item!r} is not KEY=VALUE", "for example --set decode.recent=128")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise ProfileError(
                f"--set {key}: {text!r} is not a YAML value", "quote texts: --set 'key=\"a: b\"'"
            ) from error
        if overrides.setdefault(key.strip(), value) != value:
            raise ProfileError(f"--set {key} was given twice: {overrides[key.strip()]!r} and {value!r}")
    return overrides


def _lay_over(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one dotted key; a plug-in's bare name makes way for its options."""
    *parents, last = dotted.split(".")
    for depth, parent in enumerate(parents):
        below = tree.get(parent)
        if isinstance(below, str) and ".".join(parents[: depth + 1]) in ("decode.scorer", "prefill.method"):
            below = {"name": below}
        if not isinstance(below, dict):
            default = _default_plugin(".".join(parents[: depth + 1]))
            below = {"name": default} if default else {}
        tree[parent] = dict(below)
        tree = tree[parent]
    tree[last] = value


def _default_plugin(dotted: str) -> str | None:
    return {
        "decode.scorer": DecodeSettings().scorer.name,
        "prefill.method": PrefillSettings().method.name,
    }.get(dotted)


def _without(tree: dict[str, Any], bad_keys: list[str]) -> Profile:
    """The profile with defaults where `tree` is wrong, so that the rest can be checked together."""
    kept: dict[str, Any] = {}
    for section, values in tree.items():
        if section not in Profile.model_fields or section in bad_keys:
            continue
        kept[section] = values
        if isinstance(values, dict):
            bad = {key.partition(".")[2] for key in bad_keys if key.startswith(f"{section}.")}
            kept[section] = {key: value for key, value in values.items() if str(key) not in bad}
    return Profile.model_validate(kept)


def _yaml_key(loc: tuple[Any, ...]) -> str:
    """pydantic's path to a value, without the names it gives to the members of a union."""
    parts = [str(part) for part in loc]
    return ".".join(parts[:2]) if len(parts) > 1 and parts[0] in Profile.model_fields else parts[0]


def _known_keys(key: str) -> list[str]:
    """The keys that stand beside `key`."""
    section = Profile.model_fields.get(key.split(".")[0])
    if "." in key and section is not None and _is_section(section.annotation):
        return list(section.annotation.model_fields)
    return list(Profile.model_fields)


def _is_section(annotation: Any) -> TypeIs[type[Settings]]:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _in_words(error: dict[str, Any], known: list[str]) -> str:
    """One pydantic error as a person would say it."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    name = str(error["loc"][-1])
    if kind == "yes_or_no":
        return str(error["msg"])
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"no such key{did_you_mean(name, known)}"
    if kind == "literal_error":
        choices = _listed(context["expected"])
        meant = SYNONYMS.get(str(value).lower())
        nearest = f"; did you mean {meant}?" if meant in choices else did_you_mean(str(value), choices)
        return f"there is no {value!r}{nearest}"
    if kind == "string_pattern_mismatch":
        meant = "; did you mean cuda?" if str(value).lower() in ("gpu", "nvidia", "cuda:") else ""
        return f"is {value!r}; a device is auto, cpu, mps, cuda or cuda:N{meant}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"is {value!r}, and has to be a mapping of keys"
    if words := about_value(kind, value, context):
        return words + _advice(name, value)
    return f"is {value!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _listed(expected: str) -> list[str]:
    """pydantic's "'auto' or 'discontinuous'" -> ['auto', 'discontinuous']"""
    return [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]


def _advice(name: str, value: Any) -> str:
    """Conventions of other tools."""
    if name == "seed" and value == -1:
        return "; for another text each time, give another number each time: --seed $RANDOM"
    if name == "top_k" and value == -1:
        return ", or 0: among all tokens"
    return ""


def key_reference() -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, meaning) of every key, for docs/profiles.md."""
    for section, known in Profile.model_fields.items():
        if not _is_section(known.annotation):
            yield section, _type_text(known.annotation), _default_text(known.default), known.description or ""
            continue
        for key, inner in known.annotation.model_fields.items():
            default = _default_text(inner.default)
            yield f"{section}.{key}", _type_text(inner.annotation), default, inner.description or ""


def _default_text(default: Any) -> str:
    """A default as it would be written in YAML."""
    plain = default.name if isinstance(default, Plugin) else default
    shown = yaml.safe_dump(list(plain) if isinstance(plain, tuple) else plain, default_flow_style=True)
    return str(shown).splitlines()[0]


def _type_text(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return ", ".join(_type_text(member) for member in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _type_text(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return "mapping"
    if get_origin(annotation) is tuple:
        member = get_args(annotation)[0]
        if member is Plugin:
            return "list of names, {name, options}"
        return f"list of {' or '.join(f'{kind}s' for kind in _type_text(member).split(', '))}"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}.get(
        annotation.__name__, "name, {name, options}"
    )
