"""A profile's name and overrides in, a frozen Profile out; every problem is gathered first.

What `--set` and the short options say is laid over the file, and the result is checked as a whole.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from scope_cli.errors import ProfileError
from scope_cli.settings.find import find_profile, parse_yaml, read_yaml, shipped_folder
from scope_cli.settings.idle import idle
from scope_cli.settings.policy import DecodeSettings, PrefillSettings
from scope_cli.settings.problems import choices_in, in_words
from scope_cli.settings.schema import Profile
from scope_cli.settings.values import is_section

DEFAULT_PROFILE = "default"


@dataclass(frozen=True)
class LoadedProfile:
    profile: Profile
    source: str  # the file it came from
    typed: frozenset[str]  # dotted keys that were given on the command line
    names: Mapping[str, str] = field(default_factory=dict)  # what was typed for them: "--budget"
    said: frozenset[str] = frozenset()  # dotted keys of sampling that the user's profile has

    def with_model_sampling(self, values: Mapping[str, Any]) -> tuple["LoadedProfile", dict[str, Any]]:
        """With what the model's own files say of sampling where nobody said anything; and what of it is
        looked at: top-k is not where the temperature is 0."""
        decided = self.typed | self.said
        if "sampling" in decided:
            return self, {}
        taken = {key: value for key, value in values.items() if f"sampling.{key}" not in decided}
        sampling = self.profile.sampling.model_copy(update=taken)
        profile = self.profile.model_copy(update={"sampling": sampling})
        unseen = {key for key, _ in idle(profile)}
        return replace(self, profile=profile), {
            key: value for key, value in taken.items() if f"sampling.{key}" not in unseen
        }

    @property
    def open_slots(self) -> bool:
        """Whether `cache` says `auto`, which nobody has settled yet."""
        return "auto" in self.profile.cache.sides

    def with_slots(self, auto: Literal["plain", "int8"]) -> "LoadedProfile":
        """With what `auto` of `cache` comes to."""
        cache = self.profile.cache.settled(auto)
        return replace(self, profile=self.profile.model_copy(update={"cache": cache}))

    def idle(self) -> Iterator[str]:
        """What was typed and has no effect, each with the reason."""
        for key, why in idle(self.profile):
            if key in self.typed:
                yield f"{self.names.get(key, key)} has no effect: {why}"


class Typed(dict[str, Any]):
    """What was given on the command line, by dotted key, and as what: {"decode.budget": "--budget"}."""

    def __init__(self, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
        super().__init__(values)
        self.names = dict(names)

    def over(self, values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> "Typed":
        """Other values laid over these; names: what was typed for those."""
        kept = {key: name for key, name in self.names.items() if key not in values}
        return Typed({**self, **values}, {**kept, **(names or {})})


def load_profile(name: str = DEFAULT_PROFILE, overrides: Mapping[str, Any] | None = None) -> LoadedProfile:
    """Read a profile and lay `overrides` (dotted keys) over it.

    Raises ProfileError with every problem of the result, one a line.
    """
    path = find_profile(name)
    settings = overlaid(read_yaml(path), str(path), overrides)
    if path.resolve() == (shipped_folder() / f"{DEFAULT_PROFILE}.yaml").resolve():
        return replace(settings, said=frozenset())  # it is for models that say nothing
    return settings


def overlaid(tree: dict[str, Any], source: str, overrides: Mapping[str, Any] | None = None) -> LoadedProfile:
    """A profile's plain values with `overrides` laid over them, checked as a whole."""
    sampling = tree.get("sampling")
    said = frozenset(f"sampling.{key}" for key in sampling) if isinstance(sampling, dict) else frozenset()
    names = overrides.names if isinstance(overrides, Typed) else {}
    overrides = dict(overrides or {})
    for key in sorted(overrides, key=lambda key: key.count(".")):  # a plug-in before its options
        _lay_over(tree, key, overrides[key])
    profile = check(tree, source, {key: names.get(key, key) for key in overrides})
    return LoadedProfile(profile, source, frozenset(overrides), names, said)


def check(tree: dict[str, Any], source: str, typed: Mapping[str, str] | None = None) -> Profile:
    """A tree of plain values in, a Profile out, or one ProfileError with everything that is wrong.

    typed: keys that came from the command line, and what was typed: then the profile's file is not to blame
    """
    typed = typed or {}
    found: dict[str, str] = {}
    choices: dict[str, str] = {}  # of a union, beside a number: ", or auto"
    try:
        profile = Profile.model_validate(tree)
    except ValidationError as error:
        for one in error.errors():  # a union complains once for each of its members; the last says most
            key = _yaml_key(one["loc"])
            found[key] = in_words(dict(one), _known_keys(key)) + choices.get(key, "")
            if one["type"] == "literal_error":
                choices[key] = f", or {' or '.join(choices_in(one['ctx']['expected']))}"
        profile = _without(tree, list(found))
    for key, text in profile.problems():
        found.setdefault(key, text)
    if found:
        names = {key: _name_of(key, typed) for key in found}
        lines = [f"{names[key] or key}: {text}" for key, text in found.items()]
        where = "" if all(names.values()) else f"the profile is {source}; "
        raise ProfileError(
            lines[0] if len(lines) == 1 else "\n  ".join([f"the profile has {len(lines)} problems:", *lines]),
            f"{where}--help says what each option takes, `scope profiles show` prints every key",
        )
    return profile


def _name_of(key: str, typed: Mapping[str, str]) -> str:
    """What was typed for a key: its option, or --set with the key; '' where nothing was."""
    for one, name in typed.items():
        if one == f"{key}.name":  # of a plug-in, which is told as a whole
            return name
        if f"{key}.".startswith(f"{one}."):
            return name if key == one or name == key else f"{name} ({key})"
    return ""


def parse_set(items: list[str]) -> dict[str, Any]:
    """['decode.recent=128', ...] -> {'decode.recent': 128, ...}; values are YAML."""
    overrides: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ProfileError(f"--set {item!r} is not KEY=VALUE", "for example --set decode.recent=128")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise ProfileError(
                f"--set {key}: {text!r} is not a YAML value", "quote texts: --set 'key=\"a: b\"'"
            ) from error
        if overrides.setdefault(key.strip(), value) != value:
            raise ProfileError(f"--set {key} was given twice: {overrides[key.strip()]!r} and {value!r}")
    return overrides


def _lay_over(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one dotted key; a plug-in's bare name makes way for its options."""
    *parents, last = dotted.split(".")
    for depth, parent in enumerate(parents):
        below = tree.get(parent)
        if isinstance(below, str) and ".".join(parents[: depth + 1]) in ("decode.scorer", "prefill.method"):
            below = {"name": below}
        if not isinstance(below, dict):
            default = _default_plugin(".".join(parents[: depth + 1]))
            below = {"name": default} if default else {}
        tree[parent] = dict(below)
        tree = tree[parent]
    tree[last] = value


def _default_plugin(dotted: str) -> str | None:
    return {
        "decode.scorer": DecodeSettings().scorer.name,
        "prefill.method": PrefillSettings().method.name,
    }.get(dotted)


def _without(tree: dict[str, Any], bad_keys: list[str]) -> Profile:
    """The profile with defaults where `tree` is wrong, so that the rest can be checked together."""
    kept: dict[str, Any] = {}
    for section, values in tree.items():
        if section not in Profile.model_fields or section in bad_keys:
            continue
        kept[section] = values
        if isinstance(values, dict):
            bad = {key.partition(".")[2] for key in bad_keys if key.startswith(f"{section}.")}
            kept[section] = {key: value for key, value in values.items() if str(key) not in bad}
    return Profile.model_validate(kept)


def _yaml_key(loc: tuple[Any, ...]) -> str:
    """pydantic's path to a value, without the names it gives to the members of a union."""
    parts = [str(part) for part in loc]
    return ".".join(parts[:2]) if len(parts) > 1 and parts[0] in Profile.model_fields else parts[0]


def _known_keys(key: str) -> list[str]:
    """The keys that stand beside `key`."""
    section = Profile.model_fields.get(key.split(".")[0])
    if "." in key and section is not None and is_section(section.annotation):
        return list(section.annotation.model_fields)
    return list(Profile.model_fields)
