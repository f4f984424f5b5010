"""A model's files in; what transformers can load out, made of a GGUF file when it is needed. No torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from scope_cli.machine.setup import hushed
from scope_cli.models.folder import stored_shapes
from scope_cli.models.making import Say, alone, making

if TYPE_CHECKING:
    from scope_cli.models.gguf.convert import GgufModel

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that transformers can load: config, tokenizer, safetensors weights."""

    name: str
    path: Path
    source: str  # in words: "local folder", "Hugging Face hub, revision 1a2b3c4"
    quantised: str | None = None  # the type that the layers' matrices had in a GGUF file: "Q4_1"
    random: bool = False  # no weights: they are drawn when the model is loaded
    gguf_file: Path | None = (
        None  # where its weights come from; the folder has them in the forms that were used
    )
    pending: "Pending | None" = field(default=None, compare=False)  # `path` is where it will be
    say: Say = field(default=lambda line: None, compare=False)

    def prepared(self) -> "ModelFolder":
        """The same once config and tokenizer are in it."""
        return self.pending.convert() if self.pending else self

    def ready(self) -> "ModelFolder":
        """The same once plain weights are in it as well; converts them if need be."""
        folder = self.prepared()
        if not folder.has_plain:
            _convert(folder)
        return folder

    @property
    def has_plain(self) -> bool:
        """Whether its weights are there as transformers reads them."""
        return self.gguf_file is None or (self.path / WEIGHTS).is_file()

    @cached_property
    def gguf(self) -> "GgufModel":
        """The file that its weights come from, its header read."""
        from scope_cli.models.gguf.convert import open_gguf

        assert self.gguf_file is not None
        return self.pending.gguf if self.pending else open_gguf(self.gguf_file)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all weights, by name, from headers."""
        return dict(stored_shapes(self.path)) if self.has_plain and not self.pending else self.gguf.shapes


@dataclass(frozen=True)
class Pending:
    """A GGUF file that nobody has converted yet: its header says all but the weights."""

    gguf: "GgufModel"
    convert: Callable[[], ModelFolder]


def _convert(folder: ModelFolder) -> None:
    """The weights of a GGUF file as transformers reads them, for who does not pack them."""
    from scope_cli.models.gguf.packing import write_plain

    gguf = folder.gguf
    with alone(folder.path, folder.say):
        if folder.has_plain:
            return
        with (
            making(gguf.disk_bytes, f"converting {gguf.header.name} to safetensors", folder.say) as show,
            hushed(),
        ):
            write_plain(gguf, folder.path / WEIGHTS, lambda written, total: show(written))
