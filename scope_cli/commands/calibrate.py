"""scope calibrate: a text in, the file that the scorer tri needs out."""

from pathlib import Path
from typing import Annotated

import typer

from scope_cli.commands import options as o
from scope_cli.commands.io import check_writable, read_text, tell
from scope_cli.commands.overrides import overrides_of
from scope_cli.errors import UsageError
from scope_cli.models.opening import opened_model
from scope_cli.settings.load import load_profile


@o.with_settings("model")
def calibrate_command(
    output: Annotated[Path, typer.Argument(help="The file to write (safetensors).", show_default=False)],
    text: Annotated[
        str, typer.Option("-t", help="A file with some thousand words like those to be written.")
    ],
    force: Annotated[bool, typer.Option(help="Overwrite the file.")] = False,
    profile: o.Profile = "default",
    offline: o.Offline = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Record a model's typical queries for the scorer `tri`."""
    check_writable(output, None, force)
    content = read_text(text, "--text")

    settings = load_profile(profile, overrides_of(**given)).profile.model
    with opened_model(settings, offline) as opened:
        from scope_cli.engine.calibrate import calibrate
    ids = opened.tokenizer(content)["input_ids"][: opened.geometry.context]
    if len(ids) < 2:
        raise UsageError(
            "the text is too short to calibrate with", "give some thousand words with --text FILE"
        )
    layers = calibrate(opened, ids, output)
    if not layers:
        raise UsageError(f"{opened.name} has no rotary positions in its full-attention layers")
    tell(f"{output}: {layers} layers, {len(ids):,} tokens")
