"""A name on the Hugging Face hub in, its snapshot in the local hub cache out, checked. No torch."""

import re
from collections.abc import Iterator
from pathlib import Path

from scope_cli.errors import ModelError, first_line
from scope_cli.files import sha256_of
from scope_cli.models.embedded import Embedded
from scope_cli.models.folder import is_complete, refuse_pickles, weight_files
from scope_cli.models.making import Say
from scope_cli.models.model_folder import ModelFolder
from scope_cli.units import as_bytes

HUB = "Hugging Face hub"
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_TIMEOUT_S = 5.0  # a network without a hub answers at once or never
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
HUB_DUPLICATES = ["*/*", "consolidated*"]  # other formats of the same weights


def from_hub(
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
        if is_complete(path):
            _check_pinned(path, pinned)
            return ModelFolder(name, path, hub_source(path))
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
        refuse_pickles(hub_name, files)
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
            f"{hub_name} is gated on the {HUB}: its terms have to be accepted first",
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
    if not is_complete(path):
        raise ModelError(f"{hub_name} holds no model: its config.json or some of its weights are missing")
    _check_fetched(path, say)
    _check_pinned(path, pinned)
    return ModelFolder(name, path, hub_source(path))


def _check_pinned(snapshot: Path, pinned: Embedded | None) -> None:
    """Raises ModelError where a file of the embedded model is another one than the one that was tried."""
    for name, expected in pinned.hub_sha256.items() if pinned else ():
        file = snapshot / name
        found = sha256_of(file) if file.is_file() else "none: it is not there"
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
        if (found := sha256_of(blob)) != blob.name:
            blob.unlink()
            raise ModelError(
                f"weights of {snapshot} arrived damaged: SHA-256 {found}, expected {blob.name}",
                "the damaged file was removed; the same command fetches it again",
            )


def hub_source(snapshot: Path) -> str:
    return f"{HUB}, revision {snapshot.name[:7]}"


def hub_cached() -> Iterator[tuple[str, Path, int]]:
    """(name, newest snapshot, bytes) of the models in the local hub cache that can be loaded."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda revision: -revision.last_modified)[:1]:
            if is_complete(revision.snapshot_path):
                yield repo.repo_id, revision.snapshot_path, repo.size_on_disk
