"""Options that the commands share; those of settings come from the profile's fields. No torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperOption
from typer.models import OptionInfo

from scope_cli.commands import completion
from scope_cli.errors import UsageError
from scope_cli.names import did_you_mean
from scope_cli.settings.load import load_profile
from scope_cli.settings.schema import section_of
from scope_cli.sinks.thinking import SHOWN, Shown

Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        autocompletion=completion.profiles,
        help="A profile's name or file; `scope profiles list` names them.",
    ),
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any key of the profile, e.g. decode.recent=128. Repeatable."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]

CheckpointEvery = Annotated[
    float | None,
    typer.Option(
        "--checkpoint-every",
        metavar="SECONDS",
        min=0,
        rich_help_panel="Output",
        show_default=False,
        help="Save the run's state (FILE.state) this often; by default as often as 1% of the time allows.",
    ),
]
KeepCheckpoint = Annotated[
    bool,
    typer.Option(
        "--keep-checkpoint",
        rich_help_panel="Output",
        help="Keep the state of a finished text: `scope resume --max-new-tokens` makes it longer.",
    ),
]

VALUES = {  # of options, by their name; what is not here is named by its type
    "model": "NAME", "profile": "NAME", "strategy": "NAME", "scorer": "NAME", "prefill": "NAME",
    "dtype": "TYPE", "device": "DEVICE", "load_in": "FORM", "compile": "WHEN",
    "thinking": "WHERE", "kv": "FORM", "recent": "N", "interval": "N", "threads": "N", "lanes": "N",
    "prefill_budget": "N", "output_dir": "FOLDER", "metrics_address": "ADDRESS",
    "metrics_port": "PORT", "glob": "PATTERN", "memory": "SIZE",
}  # fmt: skip


def value_word(name: str, annotation: Any) -> str:
    """What stands behind an option in the help: a word in capitals, nothing behind a switch."""
    kind = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    if kind is bool:
        return ""
    if name in VALUES:
        return VALUES[name]
    if kind is int:
        return "N"
    if kind is float:
        return "X"
    return "FILE" if kind is Path or name.endswith(("file", "template")) else "TEXT"


MODEL, PROMPT, POLICY, SAMPLING = "Model", "Prompt", "Cache policy", "Length and sampling"


def option(panel: str, help: str, *flags: str, **more: Any) -> Any:
    """An option without a default of its own; `with_settings` names it after its parameter."""
    return typer.Option(*flags, rich_help_panel=panel, help=help, show_default=False, **more)


def named(one: Parameter) -> Parameter:
    """An option without a long name gets its parameter's."""
    for info in getattr(one.annotation, "__metadata__", ()):
        if isinstance(info, OptionInfo):
            flags = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
            if not any(flag.startswith("--") for flag in flags):
                info.default, info.param_decls = ..., (f"--{one.name.replace('_', '-')}", *flags)
    return one.replace(kind=Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Setting:
    """The short option of a key of the profile: its type, its help and its default are the field's."""

    key: str
    panel: str
    flag: str = ""  # a one-letter name
    metavar: str | None = None
    complete: completion.Complete | None = None  # else the field's own choices
    more: str = ""  # what only the option can do

    @property
    def field(self) -> FieldInfo:
        section, name = self.key.split(".")
        return section_of(section).model_fields[name]

    @property
    def takes_int(self) -> bool:
        return int in _members(self.field.annotation)

    @property
    def help(self) -> str:
        text = self.field.description or ""
        return f"{text[0].upper()}{text[1:]}.{' ' if self.more else ''}{self.more}"

    def parameter(self, name: str) -> Parameter:
        """What a command's signature says of it."""
        members = list(_members(self.field.annotation))
        choices = ["none" if one is None else one for one in members if one is None or isinstance(one, str)]
        complete = self.complete or (completion.among(choices) if len(choices) > 1 else None)
        kind, default = _kind(members)
        flags = [self.flag] if self.flag else []
        info = option(self.panel, self.help, *flags, metavar=self.metavar, autocompletion=complete)
        return named(
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])
        )


def _members(annotation: Any) -> Iterator[Any]:
    """The types and the literal values of a union; None for null."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        yield None if annotation is type(None) else annotation


def _kind(members: list[Any]) -> tuple[Any, Any]:
    """The type of an option, and what it is where nobody gives it."""
    kinds = {one for one in members if one is not None}
    if kinds == {bool}:
        return bool, False
    if any(get_origin(one) in (tuple, dict) for one in kinds):
        return list[str], []
    return (kinds.pop() if kinds in ({int}, {float}) else str) | None, None


SETTINGS = {
    "model": Setting("model.name", MODEL, "-m", complete=completion.models),
    "dtype": Setting("model.dtype", MODEL),
    "device": Setting("model.device", MODEL, complete=completion.among(completion.DEVICES)),
    "load_in": Setting("model.load_in", MODEL),
    "compile": Setting("model.compile", MODEL),
    "threads": Setting("model.threads", MODEL),
    "context": Setting("model.context", MODEL),
    "system": Setting("prompt.system", PROMPT, "-s"),
    "continue_text": Setting("prompt.continue_text", PROMPT),
    "raw": Setting("prompt.raw", PROMPT),
    "template_arg": Setting("prompt.template_args", PROMPT, metavar="NAME=VALUE", more="Repeatable."),
    "allow_control_tokens": Setting("prompt.allow_control_tokens", PROMPT),
    "strategy": Setting("decode.strategy", POLICY),
    "prefill": Setting("prefill.method", POLICY, complete=completion.plugins_of("prefills")),
    "prefill_budget": Setting("prefill.budget", POLICY),
    "scorer": Setting("decode.scorer", POLICY, complete=completion.plugins_of("scorers")),
    "budget": Setting("decode.budget", POLICY),
    "recent": Setting("decode.recent", POLICY),
    "interval": Setting("decode.interval", POLICY),
    "kv": Setting("cache.kv", POLICY),
    "max_new_tokens": Setting("sampling.max_new_tokens", SAMPLING),
    "min_new_tokens": Setting("sampling.min_new_tokens", SAMPLING),
    "ignore_eos": Setting("sampling.ignore_eos", SAMPLING),
    "stop": Setting("sampling.stop", SAMPLING, more="\\n, \\t and \\\\ are understood. Repeatable."),
    "stop_token": Setting("sampling.stop_tokens", SAMPLING, metavar="ID|TEXT", more="Repeatable."),
    "on_loop": Setting("sampling.on_loop", SAMPLING, metavar="WHAT"),
    "seed": Setting("sampling.seed", SAMPLING),
    "temperature": Setting("sampling.temperature", SAMPLING),
    "top_p": Setting("sampling.top_p", SAMPLING),
    "top_k": Setting("sampling.top_k", SAMPLING),
    "min_p": Setting("sampling.min_p", SAMPLING),
    "repetition_penalty": Setting("sampling.repetition_penalty", SAMPLING),
}
MEASURED = ("model", "dtype", "device", "load_in")  # what every command that measures takes

Given = dict[str, Any]  # what was typed, by the name of its option


def with_settings(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command with these options and `--set`; it gets all that was typed for them as its `given`."""
    taken = [*names, "set_"]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [one for one in signature(command, eval_str=True).parameters.values() if one.name != "given"]
        own = [named(one) for one in own]
        set_ = Parameter("set_", Parameter.KEYWORD_ONLY, default=[], annotation=Set)
        options = [set_, *(SETTINGS[name].parameter(name) for name in names)]

        def run(**values: Any) -> Any:
            given = {name: values.pop(name) for name in taken}
            return command(**values, given=given)

        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__signature__ = Signature([*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*own, *options)}
        return run

    return add


def show_defaults(param: TyperOption) -> None:
    """Add to an option's help what the profile `default` says, where the option is a setting's."""
    known = SETTINGS.get(param.name or "")
    if known is None or param.help != known.help:
        return
    section, name = known.key.split(".")
    value = default_profile()[section][name]
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        param.help = f"{known.help} ({value:g})" if isinstance(value, float) else f"{known.help} ({value})"


@cache
def default_profile() -> dict[str, Any]:
    return load_profile().profile.as_dict()


Thinking = Annotated[
    str,
    option(
        "Output",
        "Where the model's thinking goes: show, stderr or hide (show).",
        autocompletion=completion.among(completion.THINKING),
    ),
]


def thinking(where: str) -> Shown:
    """Of `--thinking`. Raises UsageError."""
    for known in SHOWN:
        if where == known:
            return known
    raise UsageError(f"--thinking: there is no {where!r}{did_you_mean(where, SHOWN)}", "show, stderr or hide")
