"""scope profiles: which there are, what one says in full, whether one is valid."""

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from scope_cli.commands import options as o
from scope_cli.commands.overrides import overrides_of
from scope_cli.console import tables
from scope_cli.console.safe import printable
from scope_cli.errors import ProfileError
from scope_cli.settings.find import profile_names, shipped_folder
from scope_cli.settings.load import load_profile

app = typer.Typer(help="List, show and check profiles, the YAML files of settings.", no_args_is_help=True)


@app.command("list")
def list_command() -> None:
    """List the profiles in ./profiles and those shipped, each with its purpose."""
    rows = []
    seen = set()
    for folder in (Path("profiles"), shipped_folder()):
        for name in profile_names(folder):
            if name not in seen:
                seen.add(name)
                own = folder != shipped_folder() and folder.resolve() != shipped_folder().resolve()
                about = _about(name)
                rows.append([name, "./profiles" if own else "shipped", about])
    tables.show_list(tables.Table(["profile", "from", "what for"], rows))


def _about(name: str) -> str:
    """A profile's own line, or what is wrong with it."""
    try:
        return load_profile(name).profile.description
    except ProfileError as error:
        return f"broken: {error}"


@app.command("show")
@o.with_settings()
def show_command(
    name: Annotated[str, typer.Argument(help="A profile's name or file.")] = "default",
    given: o.Given = {},  # noqa: B006
) -> None:
    """Print a profile in full, every default written out: YAML that can be saved and changed."""
    loaded = load_profile(name, overrides_of(**given))
    print(yaml.safe_dump(loaded.profile.as_dict(), sort_keys=False, allow_unicode=True), end="")


@app.command("check")
def check_command(
    names: Annotated[list[str], typer.Argument(help="Profiles, by name or file.", show_default=False)],
) -> None:
    """Check profiles and report every problem; exit code 2 if there is one."""
    wrong = False
    for name in names:
        try:
            print(printable(f"{name}: valid ({load_profile(name).source})"))
        except ProfileError as error:
            wrong = True
            print(printable(f"{name}: error: {error}", lines=True), file=sys.stderr)
    raise typer.Exit(2 if wrong else 0)
