"""The beginning of an option's value in, the values that begin so out: for Tab. No torch."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scope_cli.models.catalogue import KNOWN
from scope_cli.models.registry import listed
from scope_cli.policies import plugins
from scope_cli.settings.find import profile_names, shipped_folder

DEVICES = ("auto", "cpu", "cuda", "mps")
THINKING = ("show", "stderr", "hide")

Complete = Callable[[str], list[str]]


def among(values: Iterable[str]) -> Complete:
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def plugins_of(kind: str) -> Complete:
    def complete(incomplete: str) -> list[str]:
        return among(plugins.names(kind))(incomplete)

    return complete


def profiles(incomplete: str) -> list[str]:
    """By name, and files."""
    names = [name for folder in (Path("profiles"), shipped_folder()) for name in profile_names(folder)]
    return [*among(dict.fromkeys(names))(incomplete), *_paths(incomplete, (".yaml", ".yml"))]


def models(incomplete: str) -> list[str]:
    """Those that `scope models list` shows, folders, and GGUF files."""
    names = [*(row.name for row in listed()), *KNOWN]
    return [*among(names)(incomplete), *_paths(incomplete, (".gguf",))]


def _paths(incomplete: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Files with such an ending, and folders."""
    before = incomplete[: incomplete.rfind("/") + 1]
    folder = Path(before or ".").expanduser()
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not file.name.startswith(".") and (before + file.name).startswith(incomplete):
            if file.is_dir():
                yield f"{before}{file.name}/"
            elif file.name.endswith(endings):
                yield before + file.name
