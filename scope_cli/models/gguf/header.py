"""A GGUF file in, its Header out: metadata and where each tensor lies, nothing of the weights read.

The layout is that of ggml's gguf.md. Every length is checked against the bytes that are there before anything
is made of it, so a file that is cut off or flipped ends in a sentence. Files of several parts,
`NAME-00001-of-00003.gguf`, are read together, whichever part is named.
"""

import mmap
import re
import struct
from dataclasses import dataclass
from functools import cache
from math import isfinite, prod
from pathlib import Path
from typing import Any

from scope_cli.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
PART = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf")
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LEAST_FIELD, LEAST_TENSOR = 13, 32  # bytes that one of them takes at least
READABLE = {
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
}
READABLE |= {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"}
READABLE |= {"TQ1_0", "TQ2_0", "MXFP4"}
MOST_WEIGHTS = 1 << 40  # of one tensor; the product of flipped dimensions is refused before it is used
BROKEN = "the file is damaged or was cut off: fetch it again"


@dataclass(frozen=True)
class Kind:
    """How a type of ggml stores weights: so many in a block of so many bytes."""

    name: str
    weights: int
    bytes: int


@dataclass(frozen=True)
class Tensor:
    """One tensor, where it lies and in which form."""

    name: str
    shape: tuple[int, ...]  # as torch says it: the last one varies fastest
    kind: Kind
    file: Path
    offset: int  # from the start of the file

    @property
    def bytes(self) -> int:
        return prod(self.shape) // self.kind.weights * self.kind.bytes


@dataclass(frozen=True)
class Header:
    """What a GGUF file, or all parts of one, says of itself."""

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def quantised(self) -> str:
        """The types of the matrices of the layers: "Q4_1", "Q4_K, Q6_K"."""
        matrices = [
            one for one in self.tensors.values() if one.name.startswith("blk.") and len(one.shape) == 2
        ]
        return ", ".join(sorted({one.kind.name for one in matrices}))


def parts_of(path: Path) -> tuple[Path, ...]:
    """The files that belong together, by their names; raises ModelError for a part that is not there."""
    named = PART.fullmatch(path.name)
    if not named or not 1 <= int(named["no"]) <= int(named["count"]):
        return (path,)
    count = int(named["count"])
    files = [path.with_name(f"{named['stem']}-{no:05}-of-{count:05}.gguf") for no in range(1, count + 1)]
    lacking = [file.name for file in files if not file.is_file()]
    if lacking:
        more = f", and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise ModelError(
            f"{path.name} is part {int(named['no'])} of {count}, and {lacking[0]}{more} is not there",
            f"all {count} parts of a model lie in one folder",
        )
    return tuple(files)


def read(path: Path) -> Header:
    """Raises ModelError for what is no GGUF file, or a broken one, or not all of one."""
    files = parts_of(path)
    read_parts = [_Part(file).read() for file in files]
    metadata: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for no, (file, (fields, found)) in enumerate(zip(files, read_parts, strict=True)):
        count = fields.pop("split.count", None) or 1
        own = fields.pop("split.no", 0)
        if (count, own) != (len(files), no):
            raise ModelError(
                f"{file.name} says that it is part {own + 1} of {count}; its name says part {no + 1} of "
                f"{len(files)}",
                "the parts of a model keep their names, NAME-00001-of-00003.gguf and so on",
            )
        for key, value in fields.items():
            if metadata.setdefault(key, value) != value and not key.startswith("general."):
                raise ModelError(f"{file.name} and {files[0].name} disagree about {key}")
        for tensor in found:
            if tensor.name in tensors:
                raise ModelError(f"{path.name} has the tensor {tensor.name} twice", BROKEN)
            tensors[tensor.name] = tensor
    expected = metadata.pop("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ModelError(f"{path.name} has {len(tensors)} tensors in all its parts, of {expected}", BROKEN)
    if not isinstance(metadata.get("general.architecture"), str):
        raise ModelError(f"{path.name} does not say which architecture it holds (general.architecture)")
    return Header(files, metadata, tensors)


class _Part:
    """One file's header, read from front to back."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.at = 0

    def read(self) -> tuple[dict[str, Any], list[Tensor]]:
        try:
            with self.file.open("rb") as file:
                if file.read(4) != MAGIC:
                    raise ModelError(
                        f"{self.file} is not a GGUF file: it does not start with GGUF",
                        "a model is a folder as save_pretrained writes it, or a GGUF file",
                    )
                self.size = self.file.stat().st_size
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self.data:
                    return self._fields_and_tensors()
        except OSError as error:
            raise ModelError(f"cannot read {self.file}: {error.strerror}") from error

    def _fields_and_tensors(self) -> tuple[dict[str, Any], list[Tensor]]:
        self.at = 4
        version = self._number("I", "its version")
        if version not in VERSIONS:
            swapped = struct.unpack(">I", struct.pack("<I", version))[0] in VERSIONS
            what = "big-endian" if swapped else f"of version {version}"
            raise ModelError(f"{self.file.name} is a GGUF file {what}; versions 2 and 3, little-endian, work")
        tensors = self._count("Q", LEAST_TENSOR, "its number of tensors")
        fields = self._count("Q", LEAST_FIELD, "its number of keys")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            key = self._string("a key")
            if key in metadata:
                raise self._broken(f"has the key {key!r} twice")
            metadata[key] = self._value(self._number("I", key), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & alignment - 1:
            raise self._broken(f"has general.alignment {alignment!r}, which is not a power of two")
        entries = [self._entry() for _ in range(tensors)]
        start = -(-self.at // alignment) * alignment
        found = [Tensor(name, shape, kind, self.file, start + at) for name, shape, kind, at in entries]
        self._check_places(found, alignment)
        return metadata, found

    def _entry(self) -> tuple[str, tuple[int, ...], Kind, int]:
        name = self._string("a tensor's name")
        what = f"tensor {name!r}"
        dimensions = self._number("I", what)
        if not 1 <= dimensions <= 4:
            raise self._broken(f"says that {what} has {dimensions} dimensions")
        shape = tuple(reversed([self._number("Q", what) for _ in range(dimensions)]))
        number = self._number("I", what)
        offset = self._number("Q", what)
        if not all(shape) or prod(shape) > MOST_WEIGHTS:
            raise self._broken(f"says that {what} has the shape {list(shape)}")
        kind = kinds().get(number)
        if kind is None:
            raise ModelError(
                f"{self.file.name}: {what} is stored as type {number} of ggml, which cannot be read",
                "a file in Q8_0, Q6_K, Q5_K_M or Q4_K_M can",
            )
        if shape[-1] % kind.weights:
            raise self._broken(f"says that {what}, {list(shape)}, is stored as {kind.name}")
        return name, shape, kind, offset

    def _check_places(self, tensors: list[Tensor], alignment: int) -> None:
        """Every tensor lies inside the file, and none inside another."""
        end, before = 0, ""
        for tensor in sorted(tensors, key=lambda one: one.offset):
            if tensor.offset + tensor.bytes > self.size:
                lacking = tensor.offset + tensor.bytes - self.size
                raise self._broken(f"is cut off: {lacking:,} bytes of {tensor.name} are not there")
            if tensor.offset < end:
                raise self._broken(f"has {tensor.name} where {before} lies")
            if tensor.offset % alignment:
                raise self._broken(f"has {tensor.name} at a place between two blocks of {alignment} bytes")
            end, before = tensor.offset + tensor.bytes, tensor.name

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._string(key)
        if kind in SCALARS:
            return self._number(SCALARS[kind], key)
        if kind != ARRAY:
            raise self._broken(f"has a value of the unknown type {kind} for {key!r}")
        inner = self._number("I", key)
        if inner == STRING:
            return [self._string(key) for _ in range(self._count("Q", 8, key))]
        if inner not in SCALARS:
            raise self._broken(f"has an array of the unknown type {inner} for {key!r}")
        letter = SCALARS[inner]
        count = self._count("Q", struct.calcsize(f"<{letter}"), key)
        return list(self._numbers(f"<{count}{letter}", key))

    def _count(self, letter: str, least_bytes: int, what: str) -> int:
        """A number of things that take at least so many bytes each: no more than there is room for."""
        count = self._number(letter, what)
        if count * least_bytes > self.size - self.at:
            raise self._broken(f"says {count:,} for {what}, and holds fewer")
        return count

    def _string(self, what: str) -> str:
        length = self._number("Q", what)
        if length > self.size - self.at:
            raise self._broken(f"is cut off in {what}")
        data = self.data[self.at : self.at + length]
        self.at += length
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken(f"has a text that is not UTF-8 in {what}") from error

    def _number(self, letter: str, what: str) -> Any:
        (value,) = self._numbers(f"<{letter}", what)
        if isinstance(value, float) and not isfinite(value):
            raise self._broken(f"has {value} for {what}")
        return value

    def _numbers(self, layout: str, what: str) -> tuple[Any, ...]:
        length = struct.calcsize(layout)
        if length > self.size - self.at:
            raise self._broken(f"is cut off in {what}")
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += length
        return values

    def _broken(self, why: str) -> ModelError:
        return ModelError(f"{self.file.name} {why}", BROKEN)


@cache
def kinds() -> dict[int, Kind]:
    """ggml's number of a type, for the types that can be read."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return {
        kind.value: Kind(kind.name, *GGML_QUANT_SIZES[kind])
        for kind in GGMLQuantizationType
        if kind.name in READABLE
    }
