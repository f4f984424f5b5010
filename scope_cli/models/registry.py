"""Model names in, files on disk out: hub cache, package index, conversion.

A name is an embedded one, a folder, a GGUF file or a hub name (org/name). A GGUF file is found by its header
alone; its weights are converted when they are loaded (`ModelFolder.ready`).
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from scope_cli.errors import ModelError
from scope_cli.machine.setup import go_offline
from scope_cli.models.catalogue import KNOWN, hub_name
from scope_cli.models.embedded import EMBEDDED, from_package_index
from scope_cli.models.folder import is_complete, refuse_adapters, refuse_pickles, weight_files
from scope_cli.models.hub import HUB, HUB_NAME, from_hub, hub_cached, hub_source
from scope_cli.models.kept import CONVERSION, all_made, disk_bytes, is_old, kept, make_once, models_folder
from scope_cli.models.making import Say
from scope_cli.models.model_folder import ModelFolder, Pending
from scope_cli.models.random_weights import PREFIX, random_folder
from scope_cli.names import did_you_mean


@dataclass(frozen=True)
class ListedModel:
    """A row of `scope models list`."""

    name: str
    ready: bool  # else it has to be fetched, or converted again
    disk_bytes: int
    source: str
    description: str = ""


def find(name: str, offline: bool = False, say: Say = lambda line: None) -> ModelFolder:
    """The folder of a model, fetched and converted if need be; `say` is told what takes long.

    Raises ModelError with everything that was tried.
    """
    if offline:
        go_offline()
    path = Path(name).expanduser()
    if name.startswith(PREFIX):
        return ModelFolder(name, random_folder(name, models_folder()), "random weights", random=True)
    if name in EMBEDDED:
        tried = [f"{name} in {models_folder()}: not there"]
        found = kept(models_folder() / name, name, say=say) or from_hub(
            name, EMBEDDED[name].hub, offline, say, tried, EMBEDDED[name]
        )
        found = found or from_package_index(name, offline, say, tried)
        if not found and (found := kept(models_folder() / name, name, also_old=True)):
            say(f"{name} was converted by an older scope and cannot be fetched again: {tried[-1]}")
    elif path.is_dir():
        return _from_folder(name, path, say)
    elif path.is_file():
        return _from_file(name, path, say)
    else:
        tried = [
            f"embedded models: {', '.join(EMBEDDED)}",
            f"short names: {', '.join(KNOWN)}",
            f"a folder or a GGUF file of that path: {path} is not there",
        ]
        found = None
        if HUB_NAME.fullmatch(hub_name(name)):
            found = from_hub(name, hub_name(name), offline, say, tried)
        else:
            tried.append(f"{HUB}: not asked, its names have the form org/name")
    if found:
        return found
    lines = [f"cannot find the model {name!r}; tried, in this order:", *tried]
    hint = (
        "allow the network for the first start"
        if offline
        else "models are kept for later starts without a network"
    )
    raise ModelError(
        "\n  ".join(lines),
        hint if name in EMBEDDED else did_you_mean(name, {**EMBEDDED, **KNOWN}).removeprefix("; "),
    )


def from_anywhere(name: str) -> str:
    """What a model is called from every folder: a path becomes a whole one, other names stay."""
    path = Path(name).expanduser()
    is_path = not name.startswith(PREFIX) and name not in EMBEDDED and path.exists()
    return str(path.absolute()) if is_path else name


def listed() -> list[ListedModel]:
    """The embedded models, then what was converted here, then what the local hub cache can run."""
    rows = {}
    for folder, made in all_made():
        ready = not is_old(made)
        if ready or made["name"] not in rows:
            rows[made["name"]] = ListedModel(made["name"], ready, disk_bytes(folder), made["source"])
    for name, path, size in hub_cached():
        rows.setdefault(name, ListedModel(name, True, size, hub_source(path)))
    embedded = []
    for name, model in EMBEDDED.items():
        hub_row = rows.pop(model.hub, None)
        row = (
            rows.pop(name, None)
            or hub_row
            or ListedModel(name, False, 0, f"{HUB} or package index, {model.licence}")
        )
        embedded.append(ListedModel(name, row.ready, row.disk_bytes, row.source, model.description))
    return embedded + list(rows.values())


def _from_folder(name: str, path: Path, say: Say) -> ModelFolder:
    ggufs = sorted(path.glob("*.gguf"))
    if is_complete(path):
        return ModelFolder(name, path, "local folder")
    if ggufs and _belong_together(ggufs):
        return _from_file(name, ggufs[0], say)
    if ggufs:
        raise ModelError(f"{path} holds {len(ggufs)} GGUF files", f"name one of them, for example {ggufs[0]}")
    refuse_pickles(str(path), [file.name for file in path.iterdir()])
    refuse_adapters(path, name)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} holds no model: config.json not there",
            "a model is a folder as save_pretrained writes it",
        )
    weight_files(path)  # says what is wrong with them
    raise AssertionError("a folder with config and weights is complete")


def _from_file(name: str, path: Path, say: Say) -> ModelFolder:
    """A GGUF file, converted once; known again by path, size and time, as hashing 40 GB takes minutes."""
    from scope_cli.models.gguf.convert import open_gguf
    from scope_cli.models.gguf.header import parts_of

    refuse_pickles(str(path.parent), [path.name])
    files = [part.resolve() for part in parts_of(path)]
    seen = [(file, file.stat()) for file in files]
    told = "\0".join(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}" for file, stat in seen)
    folder = models_folder() / f"gguf-{sha256(told.encode()).hexdigest()[:16]}"
    if found := kept(folder, name, say=say):
        return found
    gguf = open_gguf(path)
    source = f"GGUF file {path.name}"

    def make(new: Path, temporary: Path) -> dict[str, Any]:
        gguf.write_about(new)
        named = {"name": str(files[0]), "files": [str(file) for file in files], "gguf": str(files[0])}
        return named | {"source": source, "quantised": gguf.header.quantised, "conversion": CONVERSION}

    pending = Pending(gguf, lambda: make_once(folder, name, make, say))
    return ModelFolder(
        name, folder, source, gguf.header.quantised, gguf_file=files[0], pending=pending, say=say
    )


def _belong_together(ggufs: list[Path]) -> bool:
    from scope_cli.models.gguf.header import parts_of

    return set(ggufs) <= set(parts_of(ggufs[0]))
