"""A packed model in, a file of its weights out, which the next start maps into memory.

The file lies beside a model that we converted, else in our cache folder. It is written whole or not at all.
With whatever is wrong with it (cut off, changed, of other weights, of another version or kind of CPU) it is
as if it were not there.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scope_cli.files import cache_folder, replacing_by_name, sweep
from scope_cli.models.formats import Bits
from scope_cli.models.lean import PreTrainedModel
from scope_cli.models.packed import kernel_order, pack
from scope_cli.models.registry import SOURCE_FILE

VERSION = 1  # of what is written here, and of what packed.py makes of a weight


@dataclass(frozen=True)
class PackedFile:
    """Where the packed form of a model lies, or would lie."""

    path: Path
    bits: Bits
    key: str  # of everything that the content depends on

    @classmethod
    def of(cls, folder: Path, bits: Bits, dtype: torch.dtype) -> "PackedFile":
        own = folder
        if not (folder / SOURCE_FILE).is_file():  # not of our making: nothing is put there
            own = cache_folder() / "packed" / sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        return cls(own / f"packed-int{bits}-{order_name()}.safetensors", bits, _key(folder, bits, dtype))

    @property
    def weight_bytes(self) -> int | None:
        """Of all weights; None where there is no file that fits."""
        header = self._header()
        if header is None:
            return None
        return sum(end - start for start, end in (entry["data_offsets"] for entry in header.values()))

    @property
    def loss(self) -> float | None:
        """What packing changed in the weights, as `pack` measured it."""
        header = self._header(metadata=True)
        return None if header is None else float(header["__metadata__"]["loss"])

    def load_into(self, model: PreTrainedModel) -> bool:
        """Give a model on the meta device the weights of the file; False where that cannot be."""
        if self._header() is None:
            return False
        try:
            with safe_open(self.path, "pt") as file:
                said = file.metadata()["sha256"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        except (OSError, SafetensorError, KeyError, TypeError):
            return False
        pack(model, self.bits)
        wanted = dict(_weights(model))
        if _kinds(wanted) != _kinds(tensors) or _digest(tensors) != said:
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
        tensors = {name: weight.detach().contiguous() for name, weight in _weights(model)}
        with suppress(OSError, SafetensorError, Timeout):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # whoever finds another process at it leaves it to that one
            with FileLock(self.path.with_name(".packed.lock"), timeout=0):
                sweep(self.path.parent)
                with replacing_by_name(self.path) as partial:
                    save_file(tensors, partial, self._about(tensors, loss))

    def _about(self, tensors: dict[str, Tensor], loss: float) -> dict[str, str]:
        return {"key": self.key, "loss": repr(loss), "sha256": _digest(tensors)}

    def _header(self, metadata: bool = False) -> dict[str, Any] | None:
        """What the file holds by its own words, if it is whole and was made of these weights."""
        try:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                size = self.path.stat().st_size
                if length > size:
                    return None
                header = json.loads(file.read(length))
            about = header.pop("__metadata__")
            if about["key"] != self.key or not float(about["loss"]) >= 0:
                return None
            end = max(entry["data_offsets"][1] for entry in header.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if 8 + length + end != size:
            return None
        return header | {"__metadata__": about} if metadata else header


def order_name() -> str:
    """Of the kinds of CPU that share a file."""
    order = kernel_order()
    if order is None:
        return "unknown"
    return f"{order.rows}-neighbours" if order.neighbours else str(order.rows)


def _key(folder: Path, bits: Bits, dtype: torch.dtype) -> str:
    """Weights are known again by name, size and time: to read them all is what the file is there to avoid."""
    weights = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.glob("*.safetensors*"))
        if not path.name.startswith("packed-")
    ]
    config = sha256((folder / "config.json").read_bytes()).hexdigest()
    parts = [
        VERSION,
        bits,
        str(dtype),
        kernel_order(),
        torch.__version__,
        transformers.__version__,
        config,
        weights,
    ]
    return sha256(repr(parts).encode()).hexdigest()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, tied ones once, and what packed layers hold."""
    yield from model.named_parameters()
    persistent = set(model.state_dict(keep_vars=True))
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _digest(tensors: dict[str, Tensor]) -> str:
    """Of all bytes, in the order of the names."""
    digest = sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
