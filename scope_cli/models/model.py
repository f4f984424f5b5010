"""A profile's model section in, LoadedModel out: weights (quantised if asked), tokenizer, Geometry.

`open_model` reads what is small: configuration, tokenizer, the headers of the weights. That is enough to
plan a run. `OpenedModel.load` then reads the weights.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from scope_cli.errors import ModelError, first_line
from scope_cli.geometry import Geometry
from scope_cli.machine.device import resolve_device
from scope_cli.machine.setup import hushed, quieten_bitsandbytes, set_threads
from scope_cli.models.architecture import auto_class, geometry_of, inner_width, refuse_class, stored_dtype
from scope_cli.models.chat import Chat
from scope_cli.models.choices import dtype_of, load_in_of
from scope_cli.models.ends import named_ends
from scope_cli.models.folder import check_folder, read_json
from scope_cli.models.formats import BITS, Bits
from scope_cli.models.lean import PreTrainedModel, without_compiler
from scope_cli.models.making import Say
from scope_cli.models.model_folder import ModelFolder
from scope_cli.models.packed import pack
from scope_cli.models.packed_file import PackedFile
from scope_cli.models.packing import entries_of, make_packed, packed_file
from scope_cli.models.random_weights import random_model, random_packed_model
from scope_cli.models.reading import reading, refuse_report, stdout_kept
from scope_cli.models.registry import find
from scope_cli.models.sampling import sampling_of
from scope_cli.models.shapes import ModelShape
from scope_cli.models.skeleton import skeleton, weight_bytes
from scope_cli.models.stops import Stops, stops_of
from scope_cli.models.target import Target
from scope_cli.native.library import why_not
from scope_cli.policies.rope import fix_length
from scope_cli.settings.schema import ModelSettings, PromptSettings, SamplingSettings

if TYPE_CHECKING:
    from scope_cli.models.selftest import SelfTest

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
                with stdout_kept():
                    tokenizer = AutoTokenizer.from_pretrained(folder.path, **local)
            tokenizer.decode(tokenizer(PROBE)["input_ids"])  # a broken one is known now
        load_in = load_in_of(settings, str(device), folder.quantised)
        dtype = getattr(
            torch,
            dtype_of(settings.dtype, str(device), stored_dtype(config), load_in, lanes, folder.quantised),
        )
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
            raise ModelError(f"{file} is not a JSON object", "remove it, or fetch the model again")
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
            if bits is None:
                model = random_model(self.config, self.dtype, self.device, str(attention))
            else:
                model = random_packed_model(self.config, self.dtype, str(attention), bits)
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
        refuse_report(self.name, report)
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

    def _quantisation(self) -> BitsAndBytesConfig:
        quieten_bitsandbytes()
        try:
            import bitsandbytes  # noqa: F401
        except Exception as error:  # not there, or its library does not fit this machine
            raise ModelError(
                f"load_in {self.load_in} needs bitsandbytes: {first_line(error)}", "omit model.load_in"
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
        if self.folder.random:  # there are no files
            drawn = skeleton(self.config, self.dtype).named_parameters()
            weights = {name: tuple(weight.shape) for name, weight in drawn}
        else:
            weights = self.folder.shapes
        shape = ModelShape(self.name, self.config.model_type, self.geometry, inner, dtype, weights)
        return Target(
            shape, self.device.type, dtype, self.load_in, self.weight_bytes, self.loading_bytes,
            threads=torch.get_num_threads(),
        )  # fmt: skip

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

    @property
    def native(self) -> bool:
        """Whether its step may be the native one, and the reading of a prompt, where there is a library."""
        return self.why_not_native is None

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
