"""scope models list | pull | show | rm: names in, a table or JSON on stdout."""

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from scope_cli.console import tables
from scope_cli.console.safe import printable
from scope_cli.errors import UsageError
from scope_cli.models import catalogue
from scope_cli.models.catalogue import Known
from scope_cli.models.kept import kept_copies, remove
from scope_cli.models.opening import opened_model
from scope_cli.models.registry import find, listed
from scope_cli.settings.schema import ModelSettings
from scope_cli.units import as_bytes

SHORT_NAMES = (
    "Open models that --model takes by these names. They are fetched from the hub at the first run; what the "
    "cache takes is said in 16 bits, for every 1,000 tokens that are held."
)
UNTRIED = (
    "The embedded model is tried with every change of scope. Of the others only the family is: nobody has "
    "judged their texts here, and none is recommended."
)

app = typer.Typer(help="List, fetch, describe and remove models.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="A name from `scope models list`, a folder, a GGUF file, or a hub name.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models on this machine, then open models by size, and whether they fit here."""
    rows = listed()
    device, free = catalogue.here()
    fetched = {row.name for row in rows if row.ready}
    known = sorted(catalogue.KNOWN.values(), key=lambda one: one.parameters)
    if as_json:
        short = [_facts(one, one.fits(device, free), one.hub in fetched) for one in known]
        print(json.dumps([asdict(row) for row in rows] + short, indent=2, allow_nan=False))
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
    fits = {"yes": "yes", "packed": f"as {catalogue.PACKED}", "no": "no"}
    print(f"\n{_fitted(SHORT_NAMES)}\n")
    tables.show_list(
        tables.Table(
            ["name", "to fetch", "context", "per 1,000 tokens", "fits here", "licence"],
            [
                [
                    one.name,
                    "fetched" if one.hub in fetched else as_bytes(one.weight_bytes),
                    f"{one.context:,}",
                    as_bytes(one.cache_bytes(1000)),
                    fits[one.fits(device, free)],
                    one.licence + " (gated)" * one.gated,
                ]
                for one in known
            ],
        )
    )
    print(f"\n{_fitted(f'{UNTRIED} Free on {device}: {as_bytes(free)}.')}")


def _fitted(text: str) -> str:
    return tables.fitted(text, sys.stdout)


def _facts(one: Known, fits: str, ready: bool) -> dict[str, Any]:
    return {
        "name": one.name,
        "ready": ready,
        "source": one.hub,
        "licence": one.licence,
        "gated": one.gated,
        "parameters": one.parameters,
        "weight_bytes": one.weight_bytes,
        "context": one.context,
        "cache_bytes_per_1000_tokens": one.cache_bytes(1000),
        "fits": fits,
        "tried": False,
    }


@app.command()
def pull(name: Name) -> None:
    """Fetch or convert a model, so that later starts need no network and no time."""
    found = find(name, say=_say)
    if found.gguf_file is not None:  # in the form in which it will be used
        from scope_cli.models.model import open_model

        open_model(ModelSettings(name=name), say=_say).prepare()
    _say(f"{name} is ready: {found.source}, {found.path}")


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="A name from `scope models list`, or a GGUF file.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what scope fetched or converted for a model; the model's own file stays."""
    copies = kept_copies(name)
    if not copies:
        hint = "`scope models list` shows what there is; `hf cache rm` removes what lies in the hub's cache"
        raise UsageError(f"scope has no copy of {name!r}", hint)
    frees = as_bytes(sum(copies.values()))
    if not yes:
        if not (sys.stdin and sys.stdin.isatty()):
            raise UsageError(f"removing {name} would free {frees}: confirm it", "add --yes")
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
    """Describe a model and what its cache costs; fetches the model if need be."""
    with opened_model(ModelSettings(name=name), offline) as opened:
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
        packs = opened.load_in in ("int4", "int8")
        facts["conversion_bytes"] = opened.weight_bytes if packs else opened.folder.gguf.disk_bytes
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
