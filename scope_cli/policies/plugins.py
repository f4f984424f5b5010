"""A plug-in's name and options in, a checked instance out. To register one, add its file, or a package.

Scorers live in `scorers/`, prefill methods in `prefills/`, what wraps them in `wrappers/`: one file each,
named as the plug-in is; `base.py` and files starting with `_` are not plug-ins. Any installed package adds
more with an entry point of the group `scope_cli.scorers`, `.prefills` or `.wrappers`: its name is the
plug-in's, its object the class. Listing names imports nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import (
    ConfigDict,
    PydanticUndefinedAnnotation,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from scope_cli.errors import PluginError, first_line

OURS = "scope"
BASES = {"scorers": "Scorer", "prefills": "Prefill", "wrappers": "Wrapper"}

_registered: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class Source:
    """Where a plug-in comes from."""

    package: str  # "scope", or the name of the package that registers it
    entry: EntryPoint | None = None  # None: a file of ours


@cache
def sources(kind: str) -> dict[str, tuple[Source, ...]]:
    """Every plug-in of a kind ("scorers", "prefills", "wrappers") and who offers it, mostly one package."""
    files = (Path(__file__).parent / kind).glob("*.py")
    names = (file.stem for file in files if file.stem != "base" and not file.stem.startswith("_"))
    found: dict[str, tuple[Source, ...]] = {name: (Source(OURS),) for name in names}
    for entry in entry_points(group=f"scope_cli.{kind}"):
        package = entry.dist.name if entry.dist else "?"
        if Source(package, entry) not in found.get(entry.name, ()):
            found[entry.name] = (*found.get(entry.name, ()), Source(package, entry))
    return dict(sorted(found.items()))


def names(kind: str) -> list[str]:
    return list(sources(kind))


def is_ours(kind: str, name: str) -> bool:
    """Is this plug-in a file of scope, and nobody else's?"""
    return sources(kind).get(name) == (Source(OURS),)


def register(kind: str, name: str) -> Callable[[type], type]:
    """The decorator behind `@scorer(...)` and `@prefill(...)`: a frozen dataclass becomes a plug-in."""

    def keep(cls: type) -> type:
        cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
        _registered[kind, name] = cls
        return cls

    return keep


def plugin_class(kind: str, name: str) -> Any:
    """Import a plug-in and return its class.

    Raises PluginError where two packages offer the name, or where theirs is not what a plug-in has to be.
    """
    offered = sources(kind)[name]
    if len(offered) > 1:
        packages = " and ".join(source.package for source in offered)
        raise PluginError(f"{kind}: {packages} both offer {name!r}", "uninstall one of the two packages")
    entry = offered[0].entry
    if entry is None:
        import_module(f"scope_cli.policies.{kind}.{name}")
    elif (kind, name) not in _registered:
        _load(kind, entry, offered[0].package)
    return _registered[kind, name]


def _load(kind: str, entry: EntryPoint, package: str) -> None:
    """Register the class behind an entry point, held to what a shipped plug-in is."""
    hint = f"update {package} or uninstall it; docs/how-to/add-a-scorer.md says what a plug-in is"
    try:
        cls = entry.load()
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise PluginError(f"{kind}: {entry.name!r} of {package} cannot be loaded: {told}", hint) from error
    base = getattr(import_module(f"scope_cli.policies.{kind}.base"), BASES[kind])
    wrong = _contract_problem(cls, base)
    if wrong:
        raise PluginError(f"{kind}: {entry.name!r} of {package} ({entry.value}) {wrong}", hint)
    try:
        TypeAdapter(cls).rebuild(force=False, raise_errors=True)
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        told = f"has an option of a type that cannot be checked: {first_line(error)}"
        raise PluginError(f"{kind}: {entry.name!r} of {package} {told}", hint) from error
    register(kind, entry.name)(cls)


def _contract_problem(cls: Any, base: type) -> str:
    """What a class lacks to be a plug-in, or ''."""
    if not (isinstance(cls, type) and issubclass(cls, base)):
        return f"is no subclass of {base.__module__}.{base.__name__}"
    if "__dataclass_params__" not in vars(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return "is no frozen dataclass"
    if (cls.__doc__ or "").startswith(f"{cls.__name__}("):  # what dataclass writes itself
        return "has no docstring"
    return ""


def build(kind: str, name: str, options: dict[str, Any]) -> Any:
    """An instance with checked options.

    Raises pydantic's ValidationError; `option_problems` says the same in words.
    """
    cls = plugin_class(kind, name)
    for option in fields(cls):
        value = options.get(option.name)
        if isinstance(value, bool) and option.type not in (bool, "bool"):
            raise ValidationError.from_exception_data(
                name, [{"type": yes_or_no(value), "loc": (option.name,), "input": value}]
            )
    return TypeAdapter(cls).validate_python(options)


def yes_or_no(value: bool) -> PydanticCustomError:
    """YAML reads yes, on and no as true and false, and pydantic true as 1."""
    return PydanticCustomError(
        "yes_or_no", "is {value}, which is not allowed here", {"value": str(value).lower()}
    )


def option_problems(kind: str, name: str, options: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(option, pydantic's error) for every option that is unknown or out of range; [] when all is well."""
    try:
        build(kind, name, options)
    except ValidationError as error:
        return [(".".join(str(part) for part in one["loc"]), dict(one)) for one in error.errors()]
    return []


def purpose(cls: type) -> str:
    """A plug-in's docstring, as one line."""
    return " ".join((cls.__doc__ or "").split())


def defaults(cls: type) -> dict[str, Any]:
    """What can be set, with the defaults."""
    return {option.name: option.default for option in fields(cls)}


def options_in_words(cls: type) -> str:
    """'window=32, pooling=max'"""
    return ", ".join(f"{option}={default}" for option, default in defaults(cls).items())
