"""What the sections of a profile are made of: a strict base, plug-ins by name, values as YAML writes them."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from typing_extensions import TypeIs

from scope_cli.names import did_you_mean
from scope_cli.policies import plugins
from scope_cli.settings.problems import in_words

MOST = 10**9  # of anything that is counted: beyond it PyTorch's own counters overflow


class Settings(BaseModel):
    """One section of a profile."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_yes(cls, value: Any, info: ValidationInfo) -> Any:
        known = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and known.annotation is not bool and on_or_off not in _before(known):
            raise plugins.yes_or_no(value)
        return value

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong) for settings that are fine alone and not together."""
        yield from ()


class Plugin(BaseModel):
    """A plug-in by name, with options: `attention`, or `{name: window, window: 32}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer
    def _shortest(self) -> Any:
        return {"name": self.name, **self.options} if self.options else self.name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def problems(self, kind: str) -> Iterator[tuple[str, str]]:
        known = plugins.names(kind)
        if self.name not in known:
            yield "", f"there is no {self.name!r}{did_you_mean(self.name, known)}"
        elif self.options or not plugins.is_ours(kind, self.name):  # ours are right without an import
            defaults = plugins.defaults(plugins.plugin_class(kind, self.name))
            for option, error in plugins.option_problems(kind, self.name, self.options):
                default = f" (default {defaults[option]})" if option in defaults else ""
                yield option, in_words(error, list(defaults)) + default


def _before(known: FieldInfo) -> list[Any]:
    """What looks at a field's value before pydantic does."""
    return [one.func for one in known.metadata if isinstance(one, BeforeValidator)]


def none_is_null(value: Any) -> Any:
    """`--load-in none` on a command line is null in YAML."""
    return None if value == "none" else value


def zero_is_off(value: Any) -> Any:
    """`--top-k 0` is how others say: all of them."""
    return None if value == 0 and not isinstance(value, bool) else value


def on_or_off(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def as_list(value: Any) -> Any:
    """One text or number may stand without its list."""
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


def tokens_or_share(value: Any) -> Any:
    """A budget of prompt tokens as it stands in YAML."""
    if value is None or (type(value) is int and 1 <= value <= MOST):
        return value
    if isinstance(value, str) and value.isdecimal() and 1 <= int(value) <= MOST:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value) and 0 < float(value[:-1]) <= 100:
        return value
    raise PydanticCustomError(
        "budget", 'a budget is a number of tokens, or a share of the prompt such as "25%"'
    )


def is_section(annotation: Any) -> TypeIs[type[Settings]]:
    return isinstance(annotation, type) and issubclass(annotation, Settings)
