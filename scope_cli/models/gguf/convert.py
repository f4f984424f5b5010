"""A GGUF file in, a model that can be planned at once, and a folder for transformers when it is wanted."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.errors import ModelError
from scope_cli.models.gguf import architectures, decoder, header, tokenizer, weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast


@dataclass(frozen=True)
class GgufModel:
    """A model whose file was read up to its weights, and found to be whole."""

    header: header.Header
    described: decoder.Described

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Every id that ends a text is an EOS."""
        return self.described.config | {"eos_token_id": _one_or_all(tokenizer.end_ids(self.header))}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's shape, as a converted file has them."""
        return {weight.name: weight.shape for weight in self.described.weights}

    @property
    def disk_bytes(self) -> int:
        """What the weights take on disk where they are not packed."""
        return weights.file_bytes(self.header, self.described)

    def transformers_config(self) -> "PreTrainedConfig":
        from transformers import AutoConfig

        try:
            return AutoConfig.for_model(**self.config)
        except Exception as error:  # each configuration checks itself, and raises what it likes
            why = " ".join(str(error).split())
            raise ModelError(f"{self.header.name} says what transformers rejects: {why}") from error

    @cached_property
    def transformers_tokenizer(self) -> "PreTrainedTokenizerFast":
        """Made once: a vocabulary of 128,000 takes seconds."""
        return tokenizer.tokenizer_of(self.header)

    def write_about(self, folder: Path) -> None:
        """Config and tokenizer, as save_pretrained would write them."""
        ids = {key: self.config[key] for key in decoder.IDS if self.config[key] is not None}
        for name, said in (("config.json", self.config), ("generation_config.json", ids)):
            (folder / name).write_text(json.dumps(said, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        self.transformers_tokenizer.save_pretrained(folder)


def open_gguf(path: Path) -> GgufModel:
    """Raises ModelError for whatever cannot be run or is not whole; reads no weight and writes nothing."""
    head = header.read(path)
    described = architectures.describe(head)
    tokenizer.check(head, described.config["vocab_size"])
    return GgufModel(head, described)


def _one_or_all(ids: list[int]) -> int | list[int] | None:
    return (ids if len(ids) > 1 else ids[0]) if ids else None
