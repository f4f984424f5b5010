"""A packed model's weights in, a file out that the next start maps into memory: it reads pages and no more.

The file lies beside a model that we converted, else in our cache folder, and a note beside it says of what
it was made and how it looked when it was whole. A file that does not fit its note is as if it were not there;
one that was copied or touched is read and compared once.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scope_cli.files import cache_folder, replace_file, sweep
from scope_cli.models.formats import Bits
from scope_cli.models.kept import SOURCE_FILE
from scope_cli.models.lean import PreTrainedModel
from scope_cli.models.packed import pack
from scope_cli.models.tensor_file import Entry, ShowBytes, write

VERSION = 2  # of what is written here, and of what packing makes of a weight


@dataclass(frozen=True)
class PackedFile:
    """Where the packed form of a model lies, or would lie."""

    path: Path
    bits: Bits
    key: str  # of everything that the content depends on

    @classmethod
    def of(
        cls, folder: Path, bits: Bits, dtype: torch.dtype, sources: Sequence[Path] | None = None
    ) -> "PackedFile":
        """`sources`: the GGUF files that the weights come from; else they lie in the folder."""
        own = folder
        if not (folder / SOURCE_FILE).is_file():  # not of our making: nothing is put there
            own = cache_folder() / "packed" / sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        if sources is None:
            sources = [file for file in folder.glob("*.safetensors*") if not file.name.startswith("packed-")]
        return cls(own / f"packed-int{bits}.safetensors", bits, _key(folder, bits, dtype, sources))

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def weight_bytes(self) -> int | None:
        """Of all weights; None where there is no file that fits."""
        said = self._said()
        return None if said is None else int(said["weight_bytes"])

    @property
    def loss(self) -> float | None:
        """What packing changed in the weights, as `pack` measured it."""
        said = self._said()
        return None if said is None else float(said["loss"])

    def load_into(self, model: PreTrainedModel) -> bool:
        """Give a model on the meta device the weights of the file; False where that cannot be.

        Then its note is gone, and the file is made anew.
        """
        if self._load_into(model):
            return True
        with suppress(OSError):
            self.note.unlink(missing_ok=True)
        return False

    def _load_into(self, model: PreTrainedModel) -> bool:
        if not self._is_whole():
            return False
        try:
            with safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        except (OSError, SafetensorError):
            return False
        pack(model, self.bits)
        wanted = dict(weights_of(model))
        if _kinds(wanted) != _kinds(tensors):
            return False
        found: dict[int, Tensor] = {
            id(weight): nn.Parameter(tensors[name], requires_grad=False)
            if isinstance(weight, nn.Parameter)
            else tensors[name]
            for name, weight in wanted.items()
        }
        for module in model.modules():  # every place of a tied weight
            for held in (module._parameters, module._buffers):
                held.update({name: found[id(one)] for name, one in held.items() if id(one) in found})
        return True

    def save(self, model: PreTrainedModel, loss: float) -> None:
        """For the next start, which packs again where nothing can be written."""
        entries = [Entry.of(name, weight.detach()) for name, weight in weights_of(model)]
        with suppress(OSError, Timeout):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # whoever finds another process at it leaves it to that one
            with FileLock(self.path.with_name(".packed.lock"), timeout=0):
                self.write(entries, loss=loss)

    def write(
        self, entries: Sequence[Entry], progress: ShowBytes | None = None, loss: float | None = None
    ) -> None:
        """File and note; the lock is the caller's. `loss`: else what the entries' packing said it was."""
        sweep(self.path.parent)
        self.note.unlink(missing_ok=True)
        change = write(self.path, entries, self.key, progress)
        weight_bytes = sum(entry.bytes for entry in entries)
        self._write_note({"weight_bytes": weight_bytes, "loss": change.loss if loss is None else loss})

    def _write_note(self, more: dict[str, Any]) -> None:
        with self.path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        said = more | {"key": self.key, "sha256": digest, **_looks(self.path)}
        replace_file(self.note, json.dumps(said, allow_nan=False))

    def _said(self) -> dict[str, Any] | None:
        """The note, if it is about this model and the file has the size that it says."""
        try:
            said = json.loads(self.note.read_text(encoding="utf-8"))
            fits = said["key"] == self.key and said["size"] == self.path.stat().st_size
            fits = fits and said["loss"] >= 0 and said["weight_bytes"] >= 0
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return said if fits else None

    def _is_whole(self) -> bool:
        """As it was left; else its content is compared, and how it looks now is noted."""
        said = self._said()
        try:
            if said is None or said["mtime_ns"] == self.path.stat().st_mtime_ns:
                return said is not None
            with self.path.open("rb") as file:
                if file_digest(file, "sha256").hexdigest() != said["sha256"]:
                    return False
        except (OSError, KeyError):
            return False
        with suppress(OSError):
            replace_file(self.note, json.dumps(said | _looks(self.path), allow_nan=False))
        return True


def _looks(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _key(folder: Path, bits: Bits, dtype: torch.dtype, sources: Sequence[Path]) -> str:
    """Weights are known again by name, size and time: to read them all is what the file is there to avoid."""
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(sources)]
    config = sha256((folder / "config.json").read_bytes()).hexdigest()
    parts = [VERSION, bits, str(dtype), transformers.__version__, config, seen]
    return sha256(repr(parts).encode()).hexdigest()


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and what packed layers hold, tied ones once."""
    yield from model.named_parameters()
    persistent = set(model.state_dict(keep_vars=True))
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
