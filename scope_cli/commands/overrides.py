"""What was typed in, the overrides of a profile out, and notes on what has no effect. No torch."""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import yaml

from scope_cli import utf8
from scope_cli.commands.options import SETTINGS
from scope_cli.errors import UsageError
from scope_cli.settings.find import in_place_of_shipped, parse_yaml
from scope_cli.settings.load import LoadedProfile, Typed, parse_set

ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def text_argument(text: str, name: str) -> str:
    """What was typed, where it is UTF-8; a shell passes on any bytes."""
    try:
        return utf8.decode(os.fsencode(text))
    except utf8.NotText as error:
        raise UsageError(f"{name} {error}", "is the terminal set to another encoding?") from error


def overrides_of(set_: list[str], template_arg: Sequence[str] = (), **typed: Any) -> Typed:
    """`--set` and every short option that was given, as {dotted key: value}, each key once."""
    for option_name, texts in (("--set", set_), ("--template-arg", template_arg)):
        for text in texts:
            text_argument(text, option_name)
    values = parse_set(set_)
    names = {key: f"--set {key}" for key in values}
    for item in template_arg:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(
                f"--template-arg {item!r} is not NAME=VALUE",
                "for example --template-arg enable_thinking=false",
            )
        values[f"prompt.template_args.{name}"] = plain_value(text)
        names[f"prompt.template_args.{name}"] = f"--template-arg {name}"
    for name, value in typed.items():
        if value is None or value is False or value == []:
            continue
        key, option_name = SETTINGS[name].key, f"--{name.replace('_', '-')}"
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and name != "model":  # a path may be any bytes
                text_argument(text, option_name)
        if isinstance(value, str) and SETTINGS[name].takes_int and re.fullmatch(r"-?\d{1,18}", value):
            value = int(value)
        elif name == "stop":
            value = [unescaped(text) for text in value]
        elif name == "stop_token":
            value = [int(token) if token.isdecimal() else unescaped(token) for token in value]
        if values.setdefault(key, value) != value:
            raise UsageError(
                f"{option_name} {value} and --set {key}={values[key]} contradict each other",
                "give one of them",
            )
        names[key] = option_name
    return Typed(values, names)


def notes_on(profile: str, settings: LoadedProfile) -> list[str]:
    """What is to be known of the settings in force, `profile` being what was asked for."""
    own = in_place_of_shipped(profile, settings.source)
    return [*([own] if own else []), *told_idle(settings)]


def told_idle(settings: LoadedProfile) -> list[str]:
    """Notes on what was typed and has no effect. What would hold more than was asked for is refused."""
    decode = settings.profile.decode
    total = decode.total_budget
    given = settings.typed & {"decode.budget", "decode.total_budget"}
    if total is not None and given == {"decode.budget"}:
        raise UsageError(
            f"{settings.names.get('decode.budget', 'decode.budget')} has no effect: the profile "
            f"({settings.source}) has a total budget, of {total:,}",
            f"--set decode.total_budget={decode.budget}, for prompt and output together",
        )
    return list(settings.idle())


def unescaped(text: str) -> str:
    """What no shell types easily: \\n, \\t, \\r and \\\\; before anything else a backslash is itself."""
    return re.sub(r"\\([ntr\\])", lambda found: ESCAPED[found[1]], text)


def plain_value(text: str) -> Any:
    """A YAML value where it is one that JSON has too, else the text: a date stays as it was written."""
    try:
        value = parse_yaml(text)
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, TypeError, ValueError):
        return text
    return value
