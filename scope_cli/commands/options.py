"""Option types that the commands share, and how they become overrides of a profile. No torch."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from scope_cli import utf8
from scope_cli.commands import completion
from scope_cli.errors import UsageError
from scope_cli.names import did_you_mean

if TYPE_CHECKING:
    from scope_cli.settings.load import LoadedProfile, Typed
    from scope_cli.sinks.base import Sink
    from scope_cli.sinks.thinking import Shown

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

VALUES = {  # of options, by their name; what is not here is named by its type
    "model": "NAME", "profile": "NAME", "strategy": "NAME", "scorer": "NAME", "prefill": "NAME",
    "dtype": "TYPE", "device": "DEVICE", "load_in": "FORM", "compile": "WHEN",
    "thinking": "WHERE", "interval": "N", "threads": "N", "lanes": "N", "prefill_budget": "N",
    "metrics_address": "ADDRESS", "metrics_port": "PORT", "glob": "PATTERN", "memory": "SIZE",
    "output_dir": "FOLDER",
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


MODEL, POLICY, SAMPLING = "Model", "Cache policy", "Length and sampling"


def option(*names: str, panel: str, help: str, **more: Any) -> Any:
    """A short option whose value, where given, overrides a key of the profile."""
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **more)


Model = Annotated[
    str | None,
    option(
        "--model",
        "-m",
        autocompletion=completion.models,
        panel=MODEL,
        help="Name, folder, GGUF file or hub name.",
    ),
]
Dtype = Annotated[
    str | None,
    option(
        "--dtype",
        autocompletion=completion.among(completion.DTYPES),
        panel=MODEL,
        help="auto, float32, bfloat16, float16, float64.",
    ),
]
Device = Annotated[
    str | None,
    option(
        "--device",
        autocompletion=completion.among(completion.DEVICES),
        panel=MODEL,
        help="auto, cpu, cuda, cuda:N, mps.",
    ),
]
LoadIn = Annotated[
    str | None,
    option(
        "--load-in",
        autocompletion=completion.among(completion.FORMS),
        panel=MODEL,
        help="auto, none, int8, int4 (on a CPU), 8bit, 4bit (bitsandbytes).",
    ),
]
Compile = Annotated[
    str | None,
    option(
        "--compile",
        autocompletion=completion.among(completion.WHEN),
        panel=MODEL,
        help="auto, on or off: compile the decode step on a GPU.",
    ),
]
Threads = Annotated[
    str | None, option("--threads", panel=MODEL, help="CPU threads (auto: the cores it may use).")
]

Context = Annotated[
    int | None,
    option("--context", panel=MODEL, min=1, help="Prompt and output tokens at most (what the model says)."),
]

TemplateArg = Annotated[
    list[str],
    option(
        "--template-arg",
        metavar="NAME=VALUE",
        panel=MODEL,
        help="What the chat template takes, e.g. enable_thinking=false. Repeatable.",
    ),
]
AllowControlTokens = Annotated[
    bool,
    option(
        "--allow-control-tokens",
        panel=MODEL,
        help="Take <|im_end|> and the like in prompts as tokens, not as text.",
    ),
]
Raw = Annotated[bool, option("--raw", panel=MODEL, help="Prompts as they are, without the chat template.")]

Strategy = Annotated[
    str | None,
    option(
        "--strategy",
        autocompletion=completion.among(completion.STRATEGIES),
        panel=POLICY,
        help="full, slide (default), adaptive, discontinuous, rpc.",
    ),
]
Prefill = Annotated[
    str | None,
    option(
        "--prefill",
        autocompletion=completion.plugins_of("prefills"),
        panel=POLICY,
        help="What is kept of the prompt (all): `scope prefills`.",
    ),
]
PrefillBudget = Annotated[
    str | None,
    option("--prefill-budget", panel=POLICY, help="Prompt tokens each KV head keeps: a number, or 25%."),
]
Scorer = Annotated[
    str | None,
    option(
        "--scorer",
        autocompletion=completion.plugins_of("scorers"),
        panel=POLICY,
        help="Which stay (attention): `scope scorers`.",
    ),
]
Budget = Annotated[
    int | None, option("--budget", panel=POLICY, help="Generated tokens each KV head may hold (2048).")
]
Recent = Annotated[
    int | None,
    option("--recent", panel=POLICY, help="The newest of them, never evicted (half, at most 256)."),
]
Interval = Annotated[
    str | None, option("--interval", panel=POLICY, help="Tokens between two evictions (auto: at most 64).")
]

MaxNewTokens = Annotated[
    int | None,
    option("--max-new-tokens", panel=SAMPLING, help="Planned length of the output, in tokens (4096)."),
]
MinNewTokens = Annotated[
    int | None, option("--min-new-tokens", panel=SAMPLING, help="The model may not end before that many.")
]
IgnoreEos = Annotated[bool, option("--ignore-eos", panel=SAMPLING, help="The model may never end by itself.")]
Stop = Annotated[
    list[str],
    option(
        "--stop",
        panel=SAMPLING,
        help="End before this text, or at this special token; \\n, \\t and \\\\ are understood. Repeatable.",
    ),
]
StopToken = Annotated[
    list[str],
    option("--stop-token", metavar="ID|TEXT", panel=SAMPLING, help="End at this token. Repeatable."),
]
StopOnLoop = Annotated[
    bool, option("--stop-on-loop", panel=SAMPLING, help="End when the output only repeats itself.")
]
Seed = Annotated[int | None, option("--seed", panel=SAMPLING, help="Same seed and settings, same text (0).")]
Temperature = Annotated[
    float | None, option("--temperature", panel=SAMPLING, help="0: the most probable token (0.7).")
]
TopP = Annotated[
    float | None, option("--top-p", panel=SAMPLING, help="Among the best that reach p together (0.95).")
]
TopK = Annotated[int | None, option("--top-k", panel=SAMPLING, help="Among the k best; 0: among all (50).")]
MinP = Annotated[
    float | None, option("--min-p", panel=SAMPLING, help="At least min-p times the best's probability.")
]
RepetitionPenalty = Annotated[
    float | None, option("--repetition-penalty", panel=SAMPLING, help="Above 1: words written before lose.")
]

Thinking = Annotated[
    str,
    option(
        "--thinking",
        autocompletion=completion.among(completion.THINKING),
        panel="Output",
        help="Where what the model thinks before it answers goes: show, stderr or hide (show).",
    ),
]

ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}

LIVE = "Live readings"
StatsFile = Annotated[
    Path | None,
    option(
        "--stats-file", metavar="FILE", panel=LIVE, help="One reading a second into a file, as JSON lines."
    ),
]
MetricsPort = Annotated[
    int | None,
    option("--metrics-port", panel=LIVE, min=0, max=65535, help="Prometheus metrics on this port; 0: any."),
]
MetricsAddress = Annotated[
    str | None,
    option("--metrics-address", panel=LIVE, help="Where it listens (127.0.0.1: this machine alone)."),
]

KEYS = {
    "model": "model.name",
    "dtype": "model.dtype",
    "device": "model.device",
    "load_in": "model.load_in",
    "compile": "model.compile",
    "threads": "model.threads",
    "context": "model.context",
    "strategy": "decode.strategy",
    "prefill": "prefill.method",
    "prefill_budget": "prefill.budget",
    "scorer": "decode.scorer",
    "budget": "decode.budget",
    "recent": "decode.recent",
    "interval": "decode.interval",
    "max_new_tokens": "sampling.max_new_tokens",
    "min_new_tokens": "sampling.min_new_tokens",
    "ignore_eos": "sampling.ignore_eos",
    "stop": "sampling.stop",
    "stop_token": "sampling.stop_tokens",
    "stop_on_loop": "sampling.stop_on_loop",
    "seed": "sampling.seed",
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
    "top_k": "sampling.top_k",
    "min_p": "sampling.min_p",
    "repetition_penalty": "sampling.repetition_penalty",
    "system": "prompt.system",
    "raw": "prompt.raw",
    "continue_text": "prompt.continue_text",
    "allow_control_tokens": "prompt.allow_control_tokens",
}


def text_argument(text: str, name: str) -> str:
    """What was typed, where it is UTF-8; a shell passes on any bytes."""
    try:
        return utf8.decode(os.fsencode(text))
    except utf8.NotText as error:
        raise UsageError(f"{name} {error}", "is the terminal set to another encoding?") from error


def overrides(set_: list[str], template_arg: Sequence[str] = (), **typed: Any) -> "Typed":
    """`--set` and every short option that was given, as {dotted key: value}, each key once."""
    from scope_cli.settings.load import Typed, parse_set

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
        key, option_name = KEYS[name], f"--{name.replace('_', '-')}"
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and name != "model":  # a path may be any bytes
                text_argument(text, option_name)
        if name in ("interval", "threads") and re.fullmatch(r"-?\d{1,18}", str(value)):
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


def notes_on(profile: str, settings: "LoadedProfile") -> list[str]:
    """What is to be known of the settings in force, `profile` being what was asked for."""
    from scope_cli.settings.find import in_place_of_shipped

    own = in_place_of_shipped(profile, settings.source)
    return [*([own] if own else []), *told_idle(settings)]


def told_idle(settings: "LoadedProfile") -> list[str]:
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
    import json

    import yaml

    from scope_cli.settings.find import parse_yaml

    try:
        value = parse_yaml(text)
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, TypeError, ValueError):
        return text
    return value


def live_sinks(
    stats_file: Path | None, metrics_port: int | None, metrics_address: str | None
) -> "list[Sink]":
    """The sinks behind `--stats-file` and `--metrics-port`; none unless asked for."""
    if metrics_address is not None and metrics_port is None:
        raise UsageError("--metrics-address needs --metrics-port", "for example --metrics-port 9464")
    sinks: list[Sink] = []
    if stats_file is not None:
        from scope_cli.sinks.statsfile import StatsFile

        sinks.append(StatsFile(stats_file.expanduser()))
    if metrics_port is not None:
        import sys

        from scope_cli.sinks.metrics import LOOPBACK, Metrics

        address = metrics_address or LOOPBACK
        metrics = Metrics(metrics_port, address)
        print(f"metrics on http://{address}:{metrics.port}/metrics", file=sys.stderr)
        sinks.append(metrics)
    return sinks


def thinking(where: str) -> "Shown":
    """Of `--thinking`. Raises UsageError."""
    from scope_cli.sinks.thinking import SHOWN

    for known in SHOWN:
        if where == known:
            return known
    raise UsageError(f"--thinking: there is no {where!r}{did_you_mean(where, SHOWN)}", "show, stderr or hide")
