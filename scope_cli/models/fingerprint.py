"""A model's files in, a short name for what they hold out: another model has another one."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from scope_cli.models.folder import weight_files
from scope_cli.models.gguf.header import parts_of
from scope_cli.models.model_folder import ModelFolder

PLACES, PIECE = 16, 2**16  # of each file of weights so many pieces are looked at, so many bytes each
WHOLE = ("config.json", "tokenizer.json", "tokenizer.model")


def fingerprint(folder: ModelFolder) -> str:
    """32 hexadecimal digits; reads a few megabytes, however large the model is, and converts no weight."""
    folder = folder.prepared()
    return _of(folder.path, _weights(folder))


def _weights(folder: ModelFolder) -> Iterable[Path]:
    """The files that the weights come from."""
    if folder.random:
        return []
    if folder.gguf_file is not None and folder.gguf_file.is_file():
        return parts_of(folder.gguf_file)
    return weight_files(folder.path)


def _of(path: Path, weights: Iterable[Path]) -> str:
    said = sha256()
    for name in WHOLE:
        if (path / name).is_file():
            said.update(name.encode() + (path / name).read_bytes())
    for file in weights:
        _add_pieces(said.update, file)
    return said.hexdigest()[:32]


def _add_pieces(add: Callable[[bytes], None], file: Path) -> None:
    size = file.stat().st_size
    add(f"{file.name} {size}".encode())
    with file.open("rb") as content:
        for place in range(PLACES):
            content.seek(max(0, size - PIECE) * place // (PLACES - 1))
            add(content.read(PIECE))
