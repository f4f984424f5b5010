"""A plug-in's name and options in, a checked instance out. To register one, add its file.

Scorers live in `scorers/`, prefill methods in `prefills/`, what wraps them in `wrappers/`: one file each,
named as the plug-in is; `base.py` and files starting with `_` are not plug-ins. Listing names imports
nothing.
"""

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

_registered: dict[tuple[str, str], type] = {}


def names(kind: str) -> list[str]:
    """The plug-ins of a kind ("scorers", "prefills", "wrappers"), by the files in its folder."""
    files = (Path(__file__).parent / kind).glob("*.py")
    return sorted(file.stem for file in files if file.stem != "base" and not file.stem.startswith("_"))


def register(kind: str, name: str) -> Callable[[type], type]:
    """The decorator behind `@scorer(...)` and `@prefill(...)`: a frozen dataclass becomes a plug-in."""

    def keep(cls: type) -> type:
        cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
        _registered[kind, name] = cls
        return cls

    return keep


def plugin_class(kind: str, name: str) -> Any:
    """Import the file `name` of a kind and return the class it registers under its own name."""
    import_module(f"scope_cli.policies.{kind}.{name}")
    return _registered[kind, name]


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
        "yes_or_no", "is {value}, which is no value here", {"value": str(value).lower()}
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
