"""A profile's model section in, LoadedModel out: weights (quantised if asked), tokenizer, Geometry.

`open_model` reads what is small: configuration, tokenizer, the headers of the weights. That is enough to
plan a run. `OpenedModel.load` then reads the weights.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import get_layer_types_and_kwargs

from scope_cli.errors import ModelError, ScopeError, first_line
from scope_cli.geometry import Geometry, LayerGeometry, context_of, with_context
from scope_cli.machine.setup import hushed, quieten_bitsandbytes, set_threads
from scope_cli.models.chat import Chat
from scope_cli.models.choices import dtype_of, load_in_of
from scope_cli.models.ends import named_ends
from scope_cli.models.folder import check_folder, read_json
from scope_cli.models.formats import BITS, Bits, plain_bytes
from scope_cli.models.lean import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    without_compiler,
)
from scope_cli.models.making import Say
from scope_cli.models.model_folder import ModelFolder
from scope_cli.models.packed import pack, packed_bytes
from scope_cli.models.packed_file import PackedFile
from scope_cli.models.packing import entries_of, make_packed, packed_file
from scope_cli.models.random_weights import random_model
from scope_cli.models.registry import find
from scope_cli.models.sampling import sampling_of
from scope_cli.models.shapes import ModelShape
from scope_cli.models.stops import Stops, stops_of
from scope_cli.models.target import Target
from scope_cli.native.library import why_not
from scope_cli.policies.rope import fix_length
from scope_cli.settings.schema import ModelSettings, PromptSettings, SamplingSettings

if TYPE_CHECKING:
    from scope_cli.models.selftest import SelfTest

FAMILIES = "Llama, Qwen2, Qwen3, Mistral, Gemma 3 and what is built like them"
SINKS = ("gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash", "hy_v4", "flint", "deepseek_v4")
PROBE = "a \u00e9\u4e2d 0\n\U0001f600"  # letters that a vocabulary has, and some that it has not


def open_model(
    settings: ModelSettings, offline: bool = False, say: Say = lambda line: None, lanes: int = 1
) -> "OpenedModel":
    """Everything about a model but its weights; `lanes` will decode together.

    Raises ModelError where it cannot be found, or is none that we can run.
    """
    device = resolve_device(settings.device)
    folder = find(settings.name, offline, say)
    local = {"local_files_only": True, "trust_remote_code": False}
    with reading(folder):
        if not folder.random and not folder.pending and folder.has_plain:
            check_folder(folder.path, settings.name)
        with hushed():
            if folder.pending:
                config = folder.gguf.transformers_config()
            else:
                config = AutoConfig.from_pretrained(folder.path, **local)
            geometry = geometry_of(config, settings.context, settings.name)
            refuse_class(config)
            if folder.pending:
                tokenizer = folder.gguf.transformers_tokenizer
            else:
                with _stdout_kept():
                    tokenizer = AutoTokenizer.from_pretrained(folder.path, **local)
            tokenizer.decode(tokenizer(PROBE)["input_ids"])  # a broken one is known now
        load_in = load_in_of(settings, str(device), folder.quantised)
        dtype = getattr(torch, dtype_of(settings.dtype, str(device), stored_dtype(config), load_in, lanes))
        if device.type == "cpu":
            set_threads(settings.threads)
        there, loading = None, 0
        if load_in in BITS and not folder.random:
            if not folder.pending:
                there = packed_file(folder, BITS[load_in], dtype).weight_bytes
            if not there and entries_of(folder, skeleton(config, dtype), BITS[load_in]) is None:
                loading = weight_bytes(folder, config, dtype)
        opened = OpenedModel(
            name=settings.name,
            folder=folder,
            config=config,
            tokenizer=tokenizer,
            geometry=geometry,
            device=device,
            dtype=dtype,
            weight_bytes=there or weight_bytes(folder, config, dtype, load_in),
            load_in=load_in,
            loading_bytes=loading,
            say=say,
        )
        if not folder.pending:
            assert isinstance(opened.configured_ends, list)  # read now, while that is a ModelError
    return opened


def resolve_device(name: str) -> torch.device:
    """auto: the first GPU, else the CPU."""
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    device = torch.device(name)
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if not there:
            raise ModelError(
                f"no GPU for --device {name}: PyTorch {torch.__version__} finds none", "try --device cpu"
            )
        if (device.index or 0) >= there:
            raise ModelError(
                f"no GPU {name}: there are {there}, cuda:0 to cuda:{there - 1}", "try --device cuda:0"
            )
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("no GPU for --device mps: PyTorch finds none", "try --device cpu")
    return device


def stored_dtype(config: PreTrainedConfig) -> str | None:
    """The checkpoint's own, where its config says it."""
    dtype = config.get_text_config().dtype or config.dtype
    return str(dtype).removeprefix("torch.") if dtype else None


def geometry_of(config: PreTrainedConfig, context: int | None = None, name: str = "the model") -> Geometry:
    """`context`: what was asked for. Raises ModelError for a model whose attention we cannot bound."""
    text = config.get_text_config(decoder=True)
    if refusal := _refusal(config, text):
        raise _cannot_run(config, refusal)
    types, options = get_layer_types_and_kwargs(text)
    if "dummy" in types:
        raise _cannot_run(config, "some of their layers attend over another layer's keys, or over nothing")
    layers = []
    for kind, option, layer in zip(types, options, text.per_layer_config, strict=True):
        if kind not in ("full_attention", "sliding_attention"):
            raise _cannot_run(
                config, f"they have {kind} layers", f"full_attention and sliding_attention work: {FAMILIES}"
            )
        heads = layer.num_attention_heads
        window = option.get("sliding_window", 0)
        if kind == "sliding_attention" and not (type(window) is int and window > 0):
            raise _cannot_run(config, f"a layer has the sliding window {window}")
        layers.append(
            LayerGeometry(
                kind="full" if kind == "full_attention" else "window",
                heads=heads,
                kv_heads=getattr(layer, "num_key_value_heads", None) or heads,
                head_dim=getattr(layer, "head_dim", None) or layer.hidden_size // heads,
                window=window,
            )
        )
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise _cannot_run(config, "config.json does not say how long a text may be (max_position_embeddings)")
    geometry = Geometry(tuple(layers), positions, text.hidden_size, text.vocab_size)
    rope = getattr(text, "rope_parameters", None)
    return with_context(geometry, context_of(positions, rope), context, name)


def _cannot_run(config: PreTrainedConfig, why: str, hint: str = f"what works: {FAMILIES}") -> ModelError:
    return ModelError(f"{config.model_type} models cannot be run: {why}", hint)


def refuse_class(config: PreTrainedConfig) -> None:
    """Raises ModelError where no class of transformers writes text, or none whose attention can be ours."""
    auto = auto_class(config)
    if auto is None:
        raise _cannot_run(config, f"transformers {transformers.__version__} writes no text with them")
    if not auto._model_mapping[type(config)].is_backend_compatible():
        raise _cannot_run(config, "they compute their attention by themselves")


def auto_class(config: PreTrainedConfig) -> Any:
    """What loads a model: its class for text; else, for its text half, the one for pictures and text."""
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    return None


def rope_frequencies(model: PreTrainedModel) -> torch.Tensor | None:
    """Inverse frequencies of the policy layers' rotary embedding, [rotated / 2]; None where there is none."""
    for module in model.modules():
        for name in ("full_attention_inv_freq", "inv_freq"):  # Gemma 3 has one for each kind of layer
            if (found := getattr(module, name, None)) is not None:
                return found
    return None


def _refusal(config: PreTrainedConfig, text: PreTrainedConfig) -> str:
    if config.is_encoder_decoder or getattr(text, "is_encoder_decoder", False):
        return "an encoder reads the prompt, there is no prompt in the decoder's cache"
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return "attention logits are capped (attn_logit_softcapping)"
    if not getattr(text, "num_attention_heads", None):
        return "they have no attention: there is no cache of keys and values to bound"
    if text.model_type in SINKS:
        return "attention has learned sinks"
    if getattr(text, "kv_lora_rank", None) is not None:
        return "keys and values are compressed together (kv_lora_rank)"
    return ""


def weight_bytes(
    folder: ModelFolder, config: PreTrainedConfig, dtype: torch.dtype, load_in: str | None = None
) -> int:
    """Bytes of the weights once loaded, from the headers of their files.

    Exact, but for bitsandbytes: there it takes every matrix outside embedding and lm_head for quantised.
    """
    if load_in in BITS:
        return packed_bytes(skeleton(config, dtype), BITS[load_in])
    if folder.random:
        return sum(weight.nbytes for weight in skeleton(config, dtype).parameters())
    return plain_bytes(folder.shapes.items(), dtype.itemsize, load_in)


def inner_width(text: PreTrainedConfig) -> int:
    """Of the feed-forward layers, by whatever name a family calls it."""
    for name in ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"):
        width = getattr(text, name, None)
        if isinstance(width, list | tuple):
            width = max(width, default=None)
        if type(width) is int and width:
            return width
    return 4 * text.hidden_size


def skeleton(config: PreTrainedConfig, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
    """The model without its weights, which are on the meta device."""
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    with init_empty_weights(include_buffers=False), no_init_weights(), hushed():
        model = auto_class(config).from_config(
            deepcopy(config), dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()
    return model


@dataclass(frozen=True)
class OpenedModel:
    """A model known well enough to plan with, its weights still on disk."""

    name: str
    folder: ModelFolder
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    geometry: Geometry
    device: torch.device
    dtype: torch.dtype
    weight_bytes: int
    load_in: str | None = None
    loading_bytes: int = 0  # what the weights take before they are packed, where that is more
    loss: float | None = None  # what packing changed in the weights, once they are packed: `packed.pack`
    say: Say = field(default=lambda line: None, compare=False)  # is told what takes long

    @cached_property
    def chat(self) -> Chat:
        return Chat(self.tokenizer, self.name)

    def encode(self, prompt: str, settings: PromptSettings) -> list[int]:
        """Token ids of a prompt, in the model's chat template where it has one."""
        return self.chat.prompt(prompt, settings).ids

    def stops(self, sampling: SamplingSettings) -> Stops:
        """What ends an output besides the model itself. Raises UsageError for a stop that never comes."""
        return stops_of(self.tokenizer, self.geometry.vocab, sampling, self.eos_ids)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end an output: generation_config.json's, else config.json's, the tokenizer's, the one
        with which the chat template ends the assistant's turns, and those whose name says so."""
        ids = [*self.configured_ends, self.tokenizer.eos_token_id]
        ids += [*self.chat.turn_ends, *named_ends(self.tokenizer.added_tokens_encoder)]
        return tuple(dict.fromkeys(one for one in ids if one is not None))

    @cached_property
    def generation(self) -> dict[str, Any]:
        """generation_config.json, {} where there is none."""
        file = self.folder.path / "generation_config.json"
        found = read_json(file) if file.is_file() else {}
        if not isinstance(found, dict):
            raise ModelError(f"{file} holds no mapping of keys", "remove it, or fetch the model again")
        return found

    @property
    def sampling(self) -> dict[str, Any]:
        """What the model's publisher wants it to be sampled with, by key of a profile's `sampling`."""
        return sampling_of(self.generation, self.name)

    @cached_property
    def configured_ends(self) -> list[int | None]:
        file = self.folder.path / "generation_config.json"
        named = self.generation.get("eos_token_id", self.config.get_text_config().eos_token_id)
        ids = named if isinstance(named, list) else [named]
        if odd := [one for one in ids if one is not None and type(one) is not int]:
            raise ModelError(f"{file} has the eos_token_id {odd[0]!r}", "it is a number, or a list of them")
        return ids

    def load(self, attention: str | None = None) -> "LoadedModel":
        """Read the weights. `attention` is transformers' attn_implementation, ours where none is given."""
        bits: Bits | None = BITS.get(self.load_in or "")
        asked = attention
        if attention is None:
            from scope_cli.models.attention import ATTENTION as attention  # importing it registers it
        if self.folder.random:
            model = random_model(self.config, self.dtype, self.device, str(attention))
            if bits is not None:
                pack(model.requires_grad_(False), bits)
            return self._ready(model, asked)
        packed = self.prepare()
        for _ in range(2):  # a file that turns out to be damaged is made anew, once
            if packed is None or packed.weight_bytes is None:
                break
            model, loss = skeleton(self.config, self.dtype, attention), packed.loss
            if packed.load_into(model):
                return replace(self, loss=loss)._ready(model, asked)
            packed = self.prepare()
        folder = self.folder.ready()
        options: dict[str, Any] = {}
        if self.load_in and bits is None:
            options["quantization_config"] = self._quantisation()
        with reading(self.folder), hushed(), without_compiler():
            model, report = auto_class(self.config).from_pretrained(
                folder.path,
                dtype=self.dtype,
                device_map={"": self.device},
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report names them
                **options,
            )
        self._refuse(report)
        if packed is None:
            return self._ready(model, asked)
        self.say(f"packing the weights of {self.name} to {self.load_in}, once")
        loss = pack(model.eval().requires_grad_(False), packed.bits)
        loaded = replace(self, loss=loss)._ready(model, asked)
        packed.save(model, loss)
        return loaded

    def prepare(self) -> PackedFile | None:
        """Make on the disk what `load` reads, as far as it can be made of the model's own files.

        Returns where the packed weights are, or will be; None: plain ones are used. Raises ModelError.
        """
        bits: Bits | None = BITS.get(self.load_in or "")
        if bits is None:
            self.folder.ready()
            return None
        if reason := why_not():
            self.say(f"note: products with packed weights are slow on this machine: {reason}")
        folder = self.folder.prepared()
        packed = packed_file(folder, bits, self.dtype)
        if packed.weight_bytes is None:
            if entries := entries_of(folder, skeleton(self.config, self.dtype), bits):
                make_packed(folder, packed, entries)
            else:
                folder.ready()
        return packed

    def _ready(self, model: PreTrainedModel, asked: str | None) -> "LoadedModel":
        model.eval().requires_grad_(False)
        if asked is not None:
            return LoadedModel(model, self)
        from scope_cli.models.selftest import self_test
        from scope_cli.models.step_test import why_not_native

        fix_length(model, self.geometry.switch or self.geometry.context)
        told = model, self.geometry, self.dtype, self.folder.path, self.load_in
        test = self_test(*told)
        return LoadedModel(model, self, test, why_not_native(*told) if self.device.type == "cpu" else None)

    def _refuse(self, report: dict[str, Any]) -> None:
        """Raises ModelError where weights and model class do not fit each other, whichever has more."""
        hint = "config.json and weights are not of one model, or it needs another version of transformers"
        for key, what in (
            ("mismatched_keys", "do not fit config.json: {} have another shape"),
            ("missing_keys", "are incomplete: {} lack"),
            (
                "unexpected_keys",
                "are more than the model uses, which would be another one: {} belong nowhere",
            ),
        ):
            if found := sorted(map(_in_words, report[key])):
                said = what.format(len(found))
                raise ModelError(f"the weights of {self.name} {said}, {found[0]} first", hint)

    def _quantisation(self) -> BitsAndBytesConfig:
        quieten_bitsandbytes()
        try:
            import bitsandbytes  # noqa: F401
        except Exception as error:  # not there, or its library does not fit this machine
            raise ModelError(
                f"load_in {self.load_in} needs bitsandbytes: {first_line(error)}", "leave model.load_in away"
            ) from error
        if self.load_in == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=self.dtype
        )

    @cached_property
    def target(self) -> Target:
        """The model as planning sees it: whatever its family, its geometry is known by now."""
        dtype = str(self.dtype).removeprefix("torch.")
        inner = inner_width(self.config.get_text_config(decoder=True))
        weights = self.weight_shapes()
        shape = ModelShape(self.name, self.config.model_type, self.geometry, inner, dtype, weights)
        return Target(shape, self.device.type, dtype, self.load_in, self.weight_bytes, self.loading_bytes)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, from the headers of the files; of random weights, from the modules."""
        if not self.folder.random:
            return self.folder.shapes
        return {
            name: tuple(weight.shape) for name, weight in skeleton(self.config, self.dtype).named_parameters()
        }

    def describe(self) -> dict[str, Any]:
        """What a run's record says of its model."""
        layer = self.geometry.layers[0]
        return {
            "name": self.name,
            "source": self.folder.source,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "load_in": self.load_in,
            "packed_from": self.folder.quantised if self.load_in in BITS else None,
            "packing_loss": self.loss,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "layers": len(self.geometry.layers),
            "heads": layer.heads,
            "kv_heads": layer.kv_heads,
            "head_dim": layer.head_dim,
            "context": self.geometry.context,
            "weight_bytes": self.weight_bytes,
        }


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and everything that was known of it before."""

    model: PreTrainedModel
    opened: OpenedModel
    self_test: "SelfTest | None" = None
    why_not_native: str | None = None  # half a sentence: why its step is not the native one

    def fix_length(self, beyond: bool) -> None:
        """Take the factors of RoPE for texts beyond `geometry.switch` tokens, or for those up to it."""
        if self.geometry.switch is not None:
            fix_length(self.model, self.geometry.context if beyond else self.geometry.switch)

    @property
    def name(self) -> str:
        return self.opened.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.opened.tokenizer

    @property
    def geometry(self) -> Geometry:
        return self.opened.geometry

    @property
    def device(self) -> torch.device:
        return self.opened.device

    @property
    def dtype(self) -> torch.dtype:
        return self.opened.dtype

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self.opened.eos_ids


def _in_words(key: Any) -> str:
    """A key of a loading report: a name, or a name and two shapes."""
    if isinstance(key, str):
        return key
    name, stored, wanted = key
    return f"{name} ({list(stored)} in the file, {list(wanted)} expected)"


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Generated text is all that goes to stdout; tokenizers would write there what it ignores."""
    try:
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # stdout is closed
        yield
        return
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def reading(folder: ModelFolder) -> Iterator[None]:
    """Around everything that reads a model's folder: whatever goes wrong in here is wrong with the folder."""
    try:
        yield
    except ScopeError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _no_room(folder, error) from error
    except Exception as error:
        if "allocate memory" in str(error):
            raise _no_room(folder, error) from error
        hint = "is it complete? fetch or copy the model again"
        if "trust_remote_code" in str(error):
            hint = "scope runs no code that comes with a model"
        said = first_line(error)
        if isinstance(error, (KeyError, AttributeError, TypeError, IndexError)):
            said = f"{type(error).__name__}: {said}"
        raise ModelError(f"cannot read {folder.name} ({folder.path}): {said}", hint) from error


def _no_room(folder: ModelFolder, error: BaseException) -> ModelError:
    return ModelError(f"{folder.name} does not fit: {first_line(error)}", "try --set model.load_in=4bit")
