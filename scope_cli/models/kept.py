"""The folders that scope has made in its own cache: found, made once, listed, removed.

One is made in a temporary folder beside its place, and moved there whole: a killed pull leaves no model.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scope_cli import __version__
from scope_cli.errors import ModelError
from scope_cli.files import cache_folder
from scope_cli.models.making import ELSEWHERE, Say, alone
from scope_cli.models.model_folder import ModelFolder

CONVERSION = 3  # of GGUF files; what an older one made is made again
SOURCE_FILE = "scope-source.json"  # written last: a folder that has one is complete

Make = Callable[[Path, Path], dict[str, Any]]  # fills the first folder; the second is for what is in the way


def models_folder() -> Path:
    return cache_folder() / "models"


def kept(folder: Path, name: str, also_old: bool = False, say: Say = lambda line: None) -> ModelFolder | None:
    """A folder that we made, if it is there: it was moved into place whole."""
    made = _said_of(folder)
    if made is None or (is_old(made) and not also_old):
        return None
    return _folder_of(name, folder, made, say)


def make_once(folder: Path, name: str, make: Make, say: Say) -> ModelFolder:
    """`folder`, made unless it is there; `make(new, temporary)` fills it and says what SOURCE_FILE holds."""
    if found := kept(folder, name, say=say):
        return found
    prefix = f".{folder.name}.tmp-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder, say):
            for left in folder.parent.glob(f"{prefix}*"):  # the lock is ours: a killed process left them
                shutil.rmtree(left, ignore_errors=True)  # its pip may still be writing
            if found := kept(folder, name, say=say):
                return found
            with TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
                new = Path(temporary) / "model"
                new.mkdir()
                made = make(new, Path(temporary)) | {"made_by": f"scope {__version__}"}
                (new / SOURCE_FILE).write_text(json.dumps(made, indent=2, allow_nan=False), encoding="utf-8")
                if folder.exists():
                    shutil.rmtree(folder)  # not of our making: it has no SOURCE_FILE
                new.replace(folder)
    except OSError as error:
        if error.errno is None:
            raise
        raise ModelError(f"cannot write {error.filename or folder}: {error.strerror}", ELSEWHERE) from error
    return _folder_of(name, folder, made, say)


def _folder_of(name: str, folder: Path, made: dict[str, Any], say: Say) -> ModelFolder:
    file = folder / made["gguf"] if "gguf" in made else None  # a whole path stays one
    return ModelFolder(name, folder, made["source"], made.get("quantised"), gguf_file=file, say=say)


def _said_of(folder: Path) -> dict[str, Any] | None:
    """SOURCE_FILE of a folder, None where there is none that can be read."""
    try:
        made = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) and {"name", "source"} <= made.keys() else None


def all_made() -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(models_folder().glob(f"*/{SOURCE_FILE}")):
        if not file.parent.name.startswith(".") and (made := _said_of(file.parent)):
            yield file.parent, made


def is_old(made: dict[str, Any]) -> bool:
    """Whether an older scope converted it, which lost some of what GGUF files say."""
    return made.get("conversion") != CONVERSION


def kept_copies(name: str) -> dict[Path, int]:
    """The folders that scope made for a model, and their bytes on disk."""
    path = str(Path(name).expanduser().resolve())
    return {
        folder: disk_bytes(folder)
        for folder, made in all_made()
        if made["name"] in (name, path) or path in made.get("files", [])
    }


def remove(folder: Path, say: Say = lambda line: None) -> None:
    """Forget a folder that scope made, at once as far as others can see."""
    try:
        with (
            alone(folder, say),
            TemporaryDirectory(
                prefix=f".{folder.name}.tmp-", dir=folder.parent, ignore_cleanup_errors=True
            ) as away,
        ):
            folder.replace(Path(away) / "model")
    except OSError as error:
        raise ModelError(f"cannot remove {folder}: {error.strerror}") from error


def disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
