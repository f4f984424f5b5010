"""scope profiles: which there are, what one says in full, whether one is valid."""

from typing import Annotated

import typer

from scope_cli.commands import options as o

app = typer.Typer(help="The YAML files of settings: list, show, check.", no_args_is_help=True)


@app.command("list")
def list_command() -> None:
    """The profiles in ./profiles and those shipped, each with its purpose."""
    from pathlib import Path

    from scope_cli import tables
    from scope_cli.profile import find_profile, profile_names, read_yaml, shipped_folder

    rows = []
    seen = set()
    for folder in (Path("profiles"), shipped_folder()):
        for name in profile_names(folder):
            if name not in seen:
                seen.add(name)
                own = folder != shipped_folder() and folder.resolve() != shipped_folder().resolve()
                about = str(read_yaml(find_profile(name)).get("description", ""))
                rows.append([name, "./profiles" if own else "shipped", about])
    tables.show_list(tables.Table(["profile", "from", "what for"], rows))


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="A profile's name or file.")] = "default",
    set_: o.Set = [],  # noqa: B006  typer copies it
) -> None:
    """Print a profile in full, every default written out: YAML that can be saved and changed."""
    import yaml

    from scope_cli.profile import load_profile, parse_set

    loaded = load_profile(name, parse_set(set_))
    print(yaml.safe_dump(loaded.profile.as_dict(), sort_keys=False, allow_unicode=True), end="")


@app.command("check")
def check_command(
    names: Annotated[list[str], typer.Argument(help="Profiles, by name or file.", show_default=False)],
) -> None:
    """Check profiles; every problem of each is reported, exit code 2 if there is one."""
    import sys

    from scope_cli.errors import ProfileError
    from scope_cli.profile import load_profile

    wrong = False
    for name in names:
        try:
            print(f"{name}: valid ({load_profile(name).source})")
        except ProfileError as error:
            wrong = True
            print(f"{name}: error: {error}", file=sys.stderr)
    raise typer.Exit(2 if wrong else 0)
