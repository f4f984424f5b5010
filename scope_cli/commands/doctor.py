"""scope doctor: is everything there that a run needs? A line for each check, and what to do about it."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from scope_cli.commands import options as o
from scope_cli.console.phases import Phases
from scope_cli.console.safe import printable
from scope_cli.errors import ModelError, first_line
from scope_cli.events import Finished
from scope_cli.machine import checks
from scope_cli.machine.checks import Check, checked
from scope_cli.models.random_weights import PREFIX
from scope_cli.models.registry import find, listed
from scope_cli.native import build
from scope_cli.settings.load import load_profile
from scope_cli.settings.schema import ModelSettings
from scope_cli.units import counted

TINY = "random:tiny"
TRIED_TOKENS = 10
TRY = {  # a budget so small that ten tokens do not fit
    "model.device": "cpu", "model.load_in": "none", "model.compile": "off", "decode.strategy": "slide",
    "decode.budget": 4, "decode.recent": 2, "decode.interval": 1, "prompt.raw": True,
    "sampling.max_new_tokens": TRIED_TOKENS, "sampling.ignore_eos": True, "sampling.temperature": 0,
}  # fmt: skip
COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}


@o.with_settings("model")
def doctor_command(
    offline: o.Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    given: o.Given = {},  # noqa: B006
) -> None:
    """Check this machine: what a run needs, what is missing, and what to do about it.

    Exits with code 1 if there is a problem.
    """
    found: list[Check] = []
    phases = Phases(log=False)
    for name, look in looks(given["model"] or ModelSettings().name, offline):
        phases.begin(f"checking {name}")
        check = checked(name, look)
        phases.end()
        found.append(check)
        if not as_json:
            show(check)
    problems = sum(check.state == "problem" for check in found)
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=2, allow_nan=False))
    else:
        print(counted(problems, "problem") if problems else "no problem found")
    raise typer.Exit(1 if problems else 0)


def looks(model: str, offline: bool) -> Iterator[tuple[str, Callable[[], Check]]]:
    """(name, check), the cheap ones first; what needs PyTorch comes after PyTorch."""
    yield "python", checks.python
    yield "memory", checks.memory
    yield "cache", checks.cache
    if not offline:
        yield "hub", checks.hub
        yield "index", checks.index
    yield "torch", checks.torch
    yield "gpu", checks.gpu
    yield "compiler", compiler
    yield "kernel", kernel
    yield "model", lambda: model_check(model)
    yield "self-test", self_test


def show(check: Check) -> None:
    line = Text(f"{check.state:<8}", COLOURS[check.state]).append(f" {check.name:<10} ", "")
    lines = [line.append(printable(check.said))]
    if check.todo:
        lines.append(Text(f"{'':<20}{printable(check.todo)}"))
    console = Console(highlight=False)
    for one in lines:
        if console.is_terminal:
            console.print(one)
        else:
            print(one.plain)


def compiler() -> Check:
    """What the native step would be built with."""
    found = next(build.compilers(), None)
    if found is not None:
        return Check("compiler", "ok", " ".join(found))
    if next(build.FOLDER.glob("*.so"), None):
        return Check("compiler", "ok", "none, and none is needed: this build of scope brings its kernel")
    slower = "none: packed weights are multiplied by PyTorch, which is slower"
    return Check("compiler", "note", slower, "install g++ or clang++, or `pip install ziglang`")


def kernel() -> Check:
    """The native library, built now where it is not there yet."""
    from scope_cli.native import library

    if (there := library.library()) is not None:
        return Check("kernel", "ok", f"built, {there.instructions}")
    if (why := library.why_not()) is None:
        return Check("kernel", "note", f"switched off: {build.SWITCH} is off", f"unset {build.SWITCH}")
    return Check("kernel", "note", f"not built: {why}", "scope runs without it, slower")


def model_check(name: str) -> Check:
    """Is it on this machine, so that a run needs no network?"""
    path = Path(name).expanduser()
    if path.exists() or name.startswith(PREFIX):
        try:
            return Check("model", "ok", f"{name}: {find(name, offline=True).source}")
        except ModelError as error:
            return Check("model", "problem", first_line(error), error.hint)
    for row in listed():
        if row.name == name and row.ready:
            return Check("model", "ok", f"{name}: {row.source}")
    return Check("model", "note", f"{name} is not on this machine", f"`scope models pull {name}` fetches it")


def self_test() -> Check:
    """Ten tokens of a tiny random model through the whole engine, with evictions and the audit."""
    from scope_cli.engine.run import generate, new_work
    from scope_cli.engine.slots_check import slots_of
    from scope_cli.models.model import open_model

    began = perf_counter()
    settings = load_profile("default", {"model.name": TINY, **TRY})
    with no_trace():
        loaded = open_model(settings.profile.model, offline=True).load()
        settings, _ = slots_of(loaded, settings)
    work = new_work(settings, loaded.geometry, loaded.opened.encode("scope", settings.profile.prompt))
    end = next(event for event in generate(loaded, settings.profile, [work]) if isinstance(event, Finished))
    said = f"{end.output_tokens} tokens, {end.reading.evictions} evictions, {perf_counter() - began:.1f} s"
    if end.audit.passed and end.audit.policy_active and end.output_tokens == TRIED_TOKENS:
        return Check("self-test", "ok", f"{said}, audit passed")
    why = "; ".join(end.audit.problems) or "nothing was evicted"
    return Check("self-test", "problem", f"{said}: {why}", "this is a bug in scope; please report it")


@contextmanager
def no_trace() -> Iterator[None]:
    """Another cache folder meanwhile: the real one may be no good, and nothing is left behind."""
    before = os.environ.get("SCOPE_CACHE")
    with TemporaryDirectory(prefix="scope-doctor-") as folder:
        os.environ["SCOPE_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["SCOPE_CACHE"]
            if before is not None:
                os.environ["SCOPE_CACHE"] = before
