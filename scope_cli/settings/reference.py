"""The profile's fields in, one line of documentation for each key out."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from scope_cli.settings.schema import Profile
from scope_cli.settings.values import Plugin, is_section


def key_reference() -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, meaning) of every key, for docs/reference/profiles.md."""
    for section, known in Profile.model_fields.items():
        if not is_section(known.annotation):
            yield section, _type_text(known.annotation), _default_text(known.default), known.description or ""
            continue
        for key, inner in known.annotation.model_fields.items():
            default = _default_text(inner.default)
            yield f"{section}.{key}", _type_text(inner.annotation), default, inner.description or ""


def _default_text(default: Any) -> str:
    """A default as it would be written in YAML."""
    plain = default.name if isinstance(default, Plugin) else default
    shown = yaml.safe_dump(list(plain) if isinstance(plain, tuple) else plain, default_flow_style=True)
    return str(shown).splitlines()[0]


def _type_text(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return ", ".join(_type_text(member) for member in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _type_text(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return "mapping"
    if get_origin(annotation) is tuple:
        member = get_args(annotation)[0]
        if member is Plugin:
            return "list of names, {name, options}"
        return f"list of {' or '.join(f'{kind}s' for kind in _type_text(member).split(', '))}"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}.get(
        annotation.__name__, "name, {name, options}"
    )
