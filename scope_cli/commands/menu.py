"""The commands by their names, a line each; the module of one is imported when it is needed."""

from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

HELP_NAMES = ["-h", "--help"]
COMMANDS = {
    "Write": {
        "generate": "Write a long text, or several side by side.",
        "resume": "Continue a text that was interrupted: by Ctrl-C, a kill, a crash, a full disk.",
        "batch": "Write a text for each of many prompts, several at once; a job can be stopped and resumed.",
        "prompt": "Read a prompt once and keep its cache in a file.",
    },
    "See what there is": {
        "runs": "List the texts in a folder: finished or not, how long, with which settings.",
        "models": "List, fetch, describe and remove models.",
        "profiles": "List, show and check profiles, the YAML files of settings.",
        "scorers": "List the scorers, which rank the generated tokens, and their options.",
        "prefills": "List the prefill methods, which compress a prompt's cache, their wrappers and options.",
        "doctor": "Check this machine: what a run needs, what is missing, and what to do about it.",
    },
    "Measure": {
        "profile": "Plan and measure memory and speed of one or several profiles.",
        "evaluate": "Measure quality: profiles against the full cache, and against each other.",
        "tune": "Find the smallest budget that keeps your own text close to the full cache's.",
        "calibrate": "Record a model's typical queries for the scorer `tri`.",
        "bench": "Measure the speed of profiles and other programs in turn, each in a process of its own.",
    },
}
HOMES = {"prefills": "scorers"}  # modules that have another name than their command


class Later(TyperCommand):
    """A command whose module has not been imported yet."""

    def __init__(self, name: str, panel: str, line: str) -> None:
        super().__init__(name, help=line, rich_help_panel=panel)

    @cached_property
    def real(self) -> TyperCommand | TyperGroup:
        """The values of its options named by words: typer names Python's types."""
        assert self.name is not None
        module = import_module(f"scope_cli.commands.{HOMES.get(self.name, self.name)}")
        app = getattr(module, "app", None)
        if app is None:
            app = typer.Typer()
            app.command(self.name)(getattr(module, f"{self.name}_command"))
        app._add_completion = False  # which is the whole program's
        found = get_command(app)
        assert isinstance(found, TyperCommand | TyperGroup)
        found.name, found.rich_help_panel = self.name, self.rich_help_panel
        return found

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        name_values(self.real, defaults=not {*HELP_NAMES}.isdisjoint(args))
        return self.real.make_context(info_name, args, parent, **extra)


class Menu(TyperGroup):
    """All commands, each of them `Later`."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        for panel, lines in COMMANDS.items():
            self.commands.update({name: Later(name, panel, line) for name, line in lines.items()})


def whole(menu: TyperGroup) -> TyperGroup:
    """With every command in its place, for who describes them all."""
    for name, one in menu.commands.items():
        if isinstance(one, Later):
            menu.commands[name] = one.real
    name_values(menu, defaults=True)
    return menu


def name_values(top: TyperCommand | TyperGroup, defaults: bool) -> None:
    """defaults: say in the help what is taken where nothing is typed, which reads a profile"""
    from scope_cli.commands import options

    for one in leaves(top):
        names = typer.Context(one, help_option_names=HELP_NAMES)
        if (asks := one.get_help_option(names)) is not None:
            asks.metavar = ""
        for param in one.params:
            if isinstance(param, TyperArgument):
                vars(param)["display_type_rich"] = lambda ctx: None  # its name says it
            elif isinstance(param, TyperOption) and param.metavar is None:
                param.metavar = options.value_word(param.name or "", param.type_descriptor.annotation)
            if defaults and isinstance(param, TyperOption):
                options.show_defaults(param)


def leaves(top: TyperCommand | TyperGroup) -> Iterator[TyperCommand | TyperGroup]:
    yield top
    for one in top.commands.values() if isinstance(top, TyperGroup) else ():
        if isinstance(one, TyperCommand | TyperGroup):
            yield from leaves(one)
