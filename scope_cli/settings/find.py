"""A profile's name in, its file and the plain values in it out.

Found by path, then by name in ./profiles, then among those shipped.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

import scope_cli
from scope_cli import utf8
from scope_cli.errors import ProfileError
from scope_cli.names import did_you_mean

MOST_BYTES = 2**20  # of a profile


def find_profile(name: str) -> Path:
    """By path, then by name in ./profiles, then among those shipped."""
    as_path = Path(name).expanduser()
    if as_path.is_file():
        return as_path
    folders = [Path("profiles"), shipped_folder()]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = [profile_name for folder in folders for profile_name in profile_names(folder)]
    raise ProfileError(
        f"there is no profile {name!r}{did_you_mean(name, dict.fromkeys(known))}",
        "looked for a file of that path, then in ./profiles, then among those shipped: `scope profiles list`",
    )


def profile_names(folder: Path) -> list[str]:
    """'slide', 'baselines/tova', ...: what `--profile` takes for the files below a folder."""
    return sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))


def shipped_folder() -> Path:
    """In a wheel the profiles lie inside the package, in a checkout beside it."""
    package = Path(scope_cli.__file__).parent
    installed = package / "shipped_profiles"
    return installed if installed.is_dir() else package.parent / "profiles"


def in_place_of_shipped(name: str, source: str) -> str:
    """'' or, for a file of ./profiles that is taken in the place of a shipped one of its name, a note."""
    own = Path(source).resolve()
    shipped = shipped_folder().resolve()
    if Path(name).expanduser().is_file() or own.is_relative_to(shipped):
        return ""
    there = (shipped / f"{name}.yaml").is_file()
    return f"the profile is {source}, in the place of the shipped {name}" if there else ""


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ProfileError(f"{path} has {size:,} bytes, and a profile at most {MOST_BYTES:,}")
        tree = parse_yaml(utf8.decode(path.read_bytes()))
    except OSError as error:
        raise ProfileError(
            f"cannot read {path}: {error.strerror}", "`scope profiles list` names those that are there"
        ) from error
    except utf8.NotText as error:
        raise ProfileError(f"{path} {error}", error.hint(str(path))) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ProfileError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ProfileError(f"{path}: a profile is a mapping of sections, this is a {type(tree).__name__}")
    return tree


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError, whatever is wrong with it."""
    try:
        return yaml.load(text, _Strict)
    except RecursionError:
        raise yaml.YAMLError("brackets are nested too deep") from None
    except (ValueError, OverflowError) as error:  # a date that is none
        raise yaml.YAMLError(str(error)) from error


class _Strict(yaml.SafeLoader):
    """Plain values alone, each key once. No aliases: a few lines of them can stand for terabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key} stands here twice", problem_mark=key_node.start_mark
                )
            seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)
