"""Writes the generated pages, cli.md and profiles.md of docs/reference; `--check` exits 1 for a stale one."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from typer.cli import get_docs_for_click

from scope_cli.cli import command
from scope_cli.commands.menu import whole
from scope_cli.settings.find import profile_names, read_yaml, shipped_folder
from scope_cli.settings.schema import Profile
from scope_cli.settings.values import Plugin, is_section

DOCS = Path(__file__).parent
MARK = "<!-- Written by docs/build.py: change the code it describes, then run `make docs`. -->"
EXIT_CODES = {
    0: "It worked.",
    1: "It broke off (full disk, no memory, a bug), or prompts of a batch failed. What was written is kept.",
    2: "Bad input: an option, prompt, file or profile; a model that is not found or does not fit in memory.",
    3: "Another process works on the same output file, or folder (`scope batch`; `--join` helps it).",
    4: "It does not fit: `scope profile --plan` or `--fit` found that it needs more memory than is free.",
    5: "The audit failed: the cache did not do what the profile promised. A bug in scope; please report it.",
    129: "SIGHUP: the terminal was closed. Otherwise like Ctrl-C; under `nohup` the run goes on.",
    130: "Ctrl-C. The run ended after the current token and its text is kept. A second Ctrl-C ends at once. "
    "Where a script has put the run into the background (`&`), Ctrl-C is not meant for it and not heard.",
    141: "The reader of a pipe went away, as in `scope generate ... | head`.",
    143: "SIGTERM, as from `kill` or a job scheduler. Otherwise like Ctrl-C, also while it measures.",
}
CLI = """# The command line

Generated text goes to stdout, everything else to stderr. The commands below are what `--help` says of them.

## Exit codes

{codes}

An error is one line on stderr that begins with `error:`, mostly with a `hint:` below it. What is a bug in scope says so
and names a file in the cache folder with Python's traceback; please report it with that. The environment variable
`SCOPE_TRACEBACK=1` prints the traceback of every error.

{commands}"""  # noqa: E501
PROFILES = """# Profiles

A profile is a YAML file of settings. Every key has a default, so a profile says only what it changes:

    description: shorter texts, a smaller cache
    decode: {{budget: 512, recent: 64}}
    sampling: {{temperature: 0.7, max_new_tokens: 1024}}

## Every key

{keys}

## Shipped profiles

`scope profiles show NAME` prints one in full, every default written out: YAML to save and change.

{shipped}

## How a profile is found and overridden

`--profile NAME` takes the first that is there: a file of that path, `profiles/NAME.yaml` below the current
folder, a shipped profile. Without `--profile` the name is `default`.

What is typed lies over the file: first `--set KEY=VALUE`, with any key of the table above and a value in YAML,
then the short options such as `--budget`. The result is checked as a whole and every problem is shown together;
an unknown key is a problem, and the message names the nearest known one. `scope profiles check NAME` does only that.
With `--output FILE` the complete profile in force is saved in `FILE.run.json`.
"""  # noqa: E501


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    keys = ((f"`{key}`", kind, f"`{default}`", text) for key, kind, default, text in key_reference())
    files = {name: shipped_folder() / f"{name}.yaml" for name in profile_names(shipped_folder())}
    shipped = ((f"`{name}`", read_yaml(file)["description"]) for name, file in files.items())
    cli = CLI.format(codes=table(("code", "meaning"), EXIT_CODES.items()), commands=commands())
    all_keys = table(("key", "values", "default", "meaning"), keys)
    profiles = PROFILES.format(keys=all_keys, shipped=table(("profile", "what for"), shipped))
    return {
        "reference/cli.md": f"{MARK}\n\n{cli.rstrip()}\n",
        "reference/profiles.md": f"{MARK}\n\n{profiles.rstrip()}\n",
    }


def table(columns: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def commands() -> str:
    """typer's own documentation of every command, below second-level headings; it wraps nothing."""
    scope = whole(command())
    for group in (scope, *scope.commands.values()):
        for one in getattr(group, "commands", {}).values():  # their list would cut a purpose short
            one.short_help = one.help.partition("\n")[0]
    ctx = typer.Context(scope, info_name="scope", **scope.context_settings)
    return get_docs_for_click(obj=scope, ctx=ctx, name="scope", indent=1)


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


if __name__ == "__main__":
    for name, text in pages().items():
        if text != (DOCS / name).read_text(encoding="utf-8"):
            if "--check" in sys.argv:
                sys.exit(f"docs/{name} is stale: run `make docs`")
            (DOCS / name).write_text(text, encoding="utf-8", newline="\n")
