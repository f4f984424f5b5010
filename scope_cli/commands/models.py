"""scope models list | pull | show | rm: names in, a table or JSON on stdout."""

import json
from typing import Annotated, Any

import typer

from scope_cli.console.phases import loading
from scope_cli.console.safe import printable

app = typer.Typer(help="List, fetch, describe and remove models.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="A name from `scope models list`, a folder, a GGUF file, or a hub name.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """The embedded models, and what is on this machine."""
    from dataclasses import asdict

    from scope_cli.console import tables
    from scope_cli.models.registry import listed
    from scope_cli.units import as_bytes

    rows = listed()
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False))
        return
    tables.show_list(
        tables.Table(
            ["name", "state", "on disk", "source", "what it is"],
            [
                [
                    row.name,
                    "ready" if row.ready else "outdated" if row.disk_bytes else "not pulled",
                    as_bytes(row.disk_bytes) if row.disk_bytes else "-",
                    row.source,
                    row.description,
                ]
                for row in rows
            ],
        )
    )


@app.command()
def pull(name: Name) -> None:
    """Fetch or convert a model, so that later starts need no network and no time."""
    from scope_cli.models.registry import find

    found = find(name, say=_say).ready()
    _say(f"{name} is ready: {found.source}, {found.path}")


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="A name from `scope models list`, or a GGUF file.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what scope fetched or converted for a model; the model's own file stays."""
    import sys

    from scope_cli.errors import UsageError
    from scope_cli.models.registry import kept_copies, remove
    from scope_cli.units import as_bytes

    copies = kept_copies(name)
    if not copies:
        hint = "`scope models list` shows what there is; `hf cache rm` removes what lies in the hub's cache"
        raise UsageError(f"scope keeps nothing of {name!r}", hint)
    frees = as_bytes(sum(copies.values()))
    if not yes:
        if not (sys.stdin and sys.stdin.isatty()):
            raise UsageError(f"removing {name} frees {frees}: not without being asked", "--yes says so")
        if not typer.confirm(f"Remove {', '.join(map(str, copies))}? This frees {frees}.", err=True):
            return
    for folder in copies:
        remove(folder, _say)
    _say(f"removed {name}: {frees} are free again")


@app.command()
def show(
    name: Name,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    as_json: Json = False,
) -> None:
    """The shape of a model and what its cache costs; fetches the model if need be."""
    from scope_cli.console import tables
    from scope_cli.models.registry import find
    from scope_cli.settings.schema import ModelSettings
    from scope_cli.units import as_bytes

    find(name, offline, _say)  # what cannot be found is told before torch is imported

    with loading(name) as phases:
        from scope_cli.models.model import open_model

        opened = open_model(ModelSettings(name=name), offline=offline, say=phases.say)
    geometry = opened.geometry
    windows = sorted({layer.window for layer in geometry.layers if layer.kind == "window"})
    facts: dict[str, Any] = opened.describe() | {
        "path": str(opened.folder.path),
        "policy_layers": geometry.policy_layers,
        "sliding_windows": windows,
        "kv_bytes_per_token": geometry.token_bytes(opened.dtype.itemsize),
        "chat_template": opened.tokenizer.chat_template is not None,
    }
    if opened.folder.pending:
        facts["conversion_bytes"] = opened.folder.pending.gguf.disk_bytes
    if as_json:
        print(json.dumps(facts, indent=2, allow_nan=False))
        return
    sliding = len(geometry.layers) - geometry.policy_layers
    kinds = [f"{geometry.policy_layers} full attention"]
    kinds += [f"{sliding} sliding window ({', '.join(map(str, windows))} tokens)"] if sliding else []
    tables.show_list(
        tables.Table(
            ["", name],
            [
                ["source", facts["source"]],
                ["path", facts["path"]],
                ["layers", f"{facts['layers']}: {', '.join(kinds)}"],
                ["heads", f"{facts['heads']}, {facts['kv_heads']} KV heads, {facts['head_dim']} wide"],
                ["context", f"{facts['context']:,} tokens"],
                ["weights", f"{as_bytes(facts['weight_bytes'])} {form_of(facts)} on {facts['device']}"],
                ["KV cache", f"{as_bytes(facts['kv_bytes_per_token'])} per token"],
                ["chat template", "yes" if facts["chat_template"] else "no"],
                *(
                    [["conversion", f"{as_bytes(facts['conversion_bytes'])} on disk, at the first run"]]
                    if "conversion_bytes" in facts
                    else []
                ),
            ],
        )
    )


def form_of(facts: dict[str, Any]) -> str:
    """What the weights' bytes are: 'as float32', 'as int4, computing in float32'."""
    packed = facts["load_in"]
    return f"as {packed}, computing in {facts['dtype']}" if packed else f"as {facts['dtype']}"


def _say(line: str) -> None:
    typer.echo(printable(line), err=True)
