"""A profile's model section in, LoadedModel out: weights (quantised if asked), tokenizer, Geometry.

`open_model` reads what is small: configuration, tokenizer, the headers of the weights. That is enough to
plan a run. `OpenedModel.load` then reads the weights.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import get_layer_types_and_kwargs

from scope_cli.chat import Chat, Message
from scope_cli.ends import named_ends
from scope_cli.errors import ModelError
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.packed import BITS, Bits, bfloat16_is_fast, pack, packed_bytes
from scope_cli.profile import ModelSettings, PromptSettings
from scope_cli.random_weights import random_model
from scope_cli.registry import ModelFolder, Say, find, first_line, hushed
from scope_cli.shapes import bytes_of, stored_shapes
from scope_cli.threads import set_threads

FAMILIES = "Llama, Qwen2, Qwen3, Mistral, Gemma 3 and what is built like them"
MANY_LANES = 8
FOUR_BIT_FILES = ("Q4_0", "Q4_1")  # whose weights int4 holds without loss


def open_model(
    settings: ModelSettings, offline: bool = False, say: Say = lambda line: None, lanes: int = 1
) -> "OpenedModel":
    """Everything about a model but its weights; `lanes` will decode together.

    Raises ModelError where it cannot be found, or is none that we can run.
    """
    device = resolve_device(settings.device)
    folder = find(settings.name, offline, say)
    local = {"local_files_only": True, "trust_remote_code": False}
    with _reading(folder), hushed():
        if folder.pending:
            config = folder.pending.gguf.transformers_config()
            tokenizer = folder.pending.gguf.transformers_tokenizer()
        else:
            config = AutoConfig.from_pretrained(folder.path, **local)
            tokenizer = AutoTokenizer.from_pretrained(folder.path, **local)
    load_in = resolve_load_in(settings, folder, device)
    # packed weights compute in bfloat16 anyway; the dtype is that of the cache and of what lies between
    dtype = resolve_dtype(settings.dtype, config, device, 1 if load_in in BITS else lanes)
    if device.type == "cpu":
        set_threads(settings.threads)
    return OpenedModel(
        name=settings.name,
        folder=folder,
        config=config,
        tokenizer=tokenizer,
        geometry=geometry_of(config),
        device=device,
        dtype=dtype,
        weight_bytes=weight_bytes(folder, config, dtype, load_in),
        load_in=load_in,
        loading_bytes=weight_bytes(folder, config, dtype) if load_in in BITS else 0,
    )


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


def resolve_dtype(name: str, config: PreTrainedConfig, device: torch.device, lanes: int = 1) -> torch.dtype:
    """auto: the checkpoint's own on a GPU; on a CPU float32, with AMX bfloat16 from eight lanes on."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        return torch.bfloat16 if lanes >= MANY_LANES and bfloat16_is_fast() else torch.float32
    return config.get_text_config().dtype or config.dtype or torch.bfloat16


def resolve_load_in(settings: ModelSettings, folder: ModelFolder, device: torch.device) -> str | None:
    """auto: int4 on a CPU where the weights come from a 4-bit GGUF file and no dtype was asked for."""
    if settings.load_in in BITS and device.type != "cpu":
        raise ModelError(
            f"load_in {settings.load_in} is for a CPU, not for {device}", "try --load-in 4bit (bitsandbytes)"
        )
    if settings.load_in != "auto":
        return settings.load_in
    plain = device.type != "cpu" or settings.dtype != "auto" or folder.quantised not in FOUR_BIT_FILES
    return None if plain else "int4"


def geometry_of(config: PreTrainedConfig) -> Geometry:
    """Raises ModelError for a model whose attention we cannot bound."""
    text = config.get_text_config(decoder=True)
    if refusal := _refusal(config, text):
        raise ModelError(f"{config.model_type} models cannot be run: {refusal}", f"what works: {FAMILIES}")
    types, options = get_layer_types_and_kwargs(text)
    layers = []
    for kind, option, layer in zip(types, options, text.per_layer_config, strict=True):
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"{config.model_type} models cannot be run: they have {kind} layers",
                f"full_attention and sliding_attention work: {FAMILIES}",
            )
        heads = layer.num_attention_heads
        layers.append(
            LayerGeometry(
                kind="full" if kind == "full_attention" else "window",
                heads=heads,
                kv_heads=getattr(layer, "num_key_value_heads", None) or heads,
                head_dim=getattr(layer, "head_dim", None) or layer.hidden_size // heads,
                window=option.get("sliding_window", 0),
            )
        )
    return Geometry(tuple(layers), text.max_position_embeddings, text.hidden_size, text.vocab_size)


def rope_frequencies(model: PreTrainedModel) -> torch.Tensor | None:
    """Inverse frequencies of the policy layers' rotary embedding, [rotated / 2]; None where there is none."""
    for module in model.modules():
        for name in ("full_attention_inv_freq", "inv_freq"):  # Gemma 3 has one for each kind of layer
            if (found := getattr(module, name, None)) is not None:
                return found
    return None


def _refusal(config: PreTrainedConfig, text: PreTrainedConfig) -> str:
    if config.is_encoder_decoder:
        return "an encoder reads the prompt, there is no prompt in the decoder's cache"
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return "attention logits are capped (attn_logit_softcapping)"
    if text.model_type == "gpt_oss":
        return "attention has learned sinks"
    if getattr(text, "kv_lora_rank", None) is not None:
        return "keys and values are compressed together (kv_lora_rank)"
    if getattr(text, "max_position_embeddings", None) is None:
        return "config.json does not say how long a text may be (max_position_embeddings)"
    return ""


def weight_bytes(
    folder: ModelFolder, config: PreTrainedConfig, dtype: torch.dtype, load_in: str | None = None
) -> int:
    """Bytes of the weights once loaded, from the headers of their files.

    Exact, but for bitsandbytes: there it takes every matrix outside embedding and lm_head for quantised.
    """
    if load_in in BITS:
        return packed_bytes(_skeleton(config, dtype), BITS[load_in])
    if folder.random:
        return sum(weight.nbytes for weight in _skeleton(config, dtype).parameters())
    shapes = folder.pending.gguf.shapes.items() if folder.pending else stored_shapes(folder.path)
    return bytes_of(shapes, dtype.itemsize, load_in)


def _skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model without its weights: modules and shapes."""
    with torch.device("meta"), hushed():
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


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

    @cached_property
    def chat(self) -> Chat:
        return Chat(self.tokenizer, self.name)

    def encode(self, prompt: str, settings: PromptSettings) -> list[int]:
        """Token ids of a prompt, in the model's chat template where it has one."""
        return self.chat.prompt(prompt, settings).ids

    def encode_messages(
        self,
        messages: Sequence[Message],
        settings: PromptSettings | None = None,
        continue_final: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, up to where the model answers or goes on with the last message."""
        return self.chat.conversation(messages, settings or PromptSettings(), continue_final).ids

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end an output: generation_config.json's, else config.json's, the tokenizer's, the one
        with which the chat template ends the assistant's turns, and those whose name says so."""
        file = self.folder.path / "generation_config.json"
        generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        named = generation.get("eos_token_id", self.config.get_text_config().eos_token_id)
        ids = [*(named if isinstance(named, list) else [named]), self.tokenizer.eos_token_id]
        ids += [*self.chat.turn_ends, *named_ends(self.tokenizer.added_tokens_encoder)]
        return tuple(dict.fromkeys(one for one in ids if one is not None))

    def load(self, attention: str | None = None) -> "LoadedModel":
        """Read the weights. `attention` is transformers' attn_implementation, ours where none is given."""
        if attention is None:
            from scope_cli.attention import ATTENTION as attention  # importing it registers it
        bits: Bits | None = BITS.get(self.load_in or "")
        if self.folder.random:
            return self._ready(random_model(self.config, self.dtype, self.device, str(attention)), bits)
        options: dict[str, Any] = {}
        if self.load_in and bits is None:
            options["quantization_config"] = self._quantisation()
        folder = self.folder.ready()
        with _reading(self.folder), hushed():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder.path,
                dtype=self.dtype,
                device_map={"": self.device},
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        if lacking := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
            raise ModelError(
                f"the weights of {self.name} are incomplete: {len(lacking)} lack, {lacking[0]} first"
            )
        return self._ready(model, bits)

    def _ready(self, model: PreTrainedModel, bits: Bits | None) -> "LoadedModel":
        if not model.is_backend_compatible():
            raise ModelError(
                f"{self.config.model_type} models compute their attention by themselves",
                f"what works: {FAMILIES}",
            )
        model.eval().requires_grad_(False)
        if bits is not None:
            pack(model, bits)
        return LoadedModel(model, self)

    def _quantisation(self) -> BitsAndBytesConfig:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # 8bit warns in every layer of every step
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

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, from the headers of the files; of random weights, from the modules."""
        if not self.folder.random:
            return dict(stored_shapes(self.folder.path))
        return {
            name: tuple(weight.shape)
            for name, weight in _skeleton(self.config, self.dtype).named_parameters()
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


@contextmanager
def _reading(folder: ModelFolder) -> Iterator[None]:
    """transformers' complaint about a model becomes ours; where memory ends, so does the run."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{folder.name} does not fit: {first_line(error)}", "try --set model.load_in=4bit"
        ) from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        hint = "scope runs no code that comes with a model" if "trust_remote_code" in str(error) else ""
        raise ModelError(f"cannot read {folder.name} ({folder.path}): {first_line(error)}", hint) from error
