"""Around whatever reads a model's folder: what goes wrong is the folder's fault, and stdout stays clean."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from scope_cli.errors import ModelError, ScopeError, first_line
from scope_cli.models.model_folder import ModelFolder


@contextmanager
def reading(folder: ModelFolder) -> Iterator[None]:
    """Around everything that reads a model's folder: whatever goes wrong in here is wrong with the folder."""
    try:
        yield
    except ScopeError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _no_room(folder, error) from error
    except Exception as error:
        if "allocate memory" in str(error):
            raise _no_room(folder, error) from error
        hint = "is it complete? fetch or copy the model again"
        if "trust_remote_code" in str(error):
            hint = "scope runs no code that comes with a model"
        said = first_line(error)
        if isinstance(error, (KeyError, AttributeError, TypeError, IndexError)):
            said = f"{type(error).__name__}: {said}"
        raise ModelError(f"cannot read {folder.name} ({folder.path}): {said}", hint) from error


def _no_room(folder: ModelFolder, error: BaseException) -> ModelError:
    return ModelError(f"{folder.name} does not fit: {first_line(error)}", "try --set model.load_in=4bit")


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Generated text is all that goes to stdout; tokenizers would write there what it ignores."""
    try:
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # stdout is closed
        yield
        return
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def refuse_report(name: str, report: dict[str, Any]) -> None:
    """Raises ModelError where the weights lack, or have, what the model class does not."""
    hint = "config.json and weights are not of one model, or it needs another version of transformers"
    for key, what in (
        ("mismatched_keys", "do not fit config.json: {} have another shape"),
        ("missing_keys", "are incomplete: {} lack"),
        (
            "unexpected_keys",
            "are more than the model uses, which would be another one: {} belong nowhere",
        ),
    ):
        if found := sorted(map(_in_words, report[key])):
            said = what.format(len(found))
            raise ModelError(f"the weights of {name} {said}, {found[0]} first", hint)


def _in_words(key: Any) -> str:
    """A key of a loading report: a name, or a name and two shapes."""
    if isinstance(key, str):
        return key
    name, stored, wanted = key
    return f"{name} ({list(stored)} in the file, {list(wanted)} expected)"
