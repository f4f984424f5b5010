"""A figure and its numbers in, a file out: PNG, SVG, or an HTML page that says what, where and when."""

from __future__ import annotations

import html
import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from scope_cli.errors import UsageError, WriteError
from scope_cli.machine.description import machine
from scope_cli.machine.installed import need
from scope_cli.measure.profiling import plots
from scope_cli.measure.profiling.report import plan_rows, plan_title
from scope_cli.measure.profiling.result import WORDS, Result, figures, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scope_cli.measure.profiling.report import PlannedProfile
    from scope_cli.models.target import Target

FORMATS = ("png", "svg", "html")


def check_plot(target: str) -> None:
    """Raises UsageError for a picture that could not be written, before anything is measured."""
    if target == "-":
        return
    path = Path(target)
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise UsageError(
            f"--plot {target}: no such format",
            f"end the name with {', '.join('.' + one for one in FORMATS)}, or give - for the terminal",
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {target}: there is no folder {path.parent}", "make it first")
    need("matplotlib", "--plot")


@dataclass(frozen=True)
class Page:
    title: str
    facts: Sequence[tuple[str, str]]  # what, its value
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]  # what, a cell for each head
    results: Sequence[Result] = ()
    planned: Sequence[PlannedProfile] = ()

    @classmethod
    def of_results(cls, results: list[Result]) -> Page:
        one, numbers = results[0], [figures(result) for result in results]
        weights = f", {one.model['load_in']} weights" if one.model.get("load_in") else ""
        keys = [key for key in WORDS if any(key in row for row in numbers)]
        facts = [
            ("model", f"{one.model['name']}, {one.model['dtype']} on {one.model['device']}{weights}"),
            ("machine", on(one.machine)),
            ("measured", one.measured_at.replace("T", " ")),
            ("command", command(one.command)),
            ("versions", ", ".join(f"{name} {version}" for name, version in one.versions.items())),
            *((result.label, result.policy) for result in results),
            *(("note", note) for note in dict.fromkeys(note for result in results for note in result.notes)),
        ]
        return cls(
            f"scope profile: {one.model['name']}",
            [(what, value) for what, value in facts if value],
            [result.label for result in results],
            [(WORDS[key], [in_words(key, row[key]) for row in numbers if key in row]) for key in keys],
            results=results,
        )

    @classmethod
    def of_plans(cls, planned: list[PlannedProfile], target: Target, typed: list[str]) -> Page:
        facts = [
            ("planned", plan_title(target)),
            ("machine", on(machine())),
            ("made", datetime.now().astimezone().isoformat(timespec="seconds")),
            ("command", command(typed)),
        ]
        heads = [one.label for one in planned]
        return cls(f"scope profile: {target.shape.name}", facts, heads, plan_rows(planned), planned=planned)

    def figure(self) -> Figure:
        what, facts = self.facts[0][1], dict(self.facts)
        if not self.results:
            return plots.draw_plans(list(self.planned), what)
        where = on({**self.results[0].machine, "system": None})
        lines = [what, ", ".join(filter(None, (where, facts.get("measured"))))]
        return plots.draw(list(self.results), "\n".join(filter(None, lines)))

    def write(self, target: Path) -> None:
        import matplotlib

        kind = target.suffix.lower().removeprefix(".")
        buffer = io.BytesIO()
        figure = self.figure()
        metadata = {"Date": None} if kind in ("svg", "html") else {}
        with matplotlib.rc_context(plots.STYLE):  # how text and ids are written is asked for now
            figure.savefig(buffer, format="svg" if kind == "html" else kind, dpi=plots.DPI, metadata=metadata)
        content = buffer.getvalue()
        if kind in ("svg", "html"):
            svg = numbered_clips(content.decode())
            content = (svg if kind == "svg" else self.html(svg)).encode()
        try:
            target.write_bytes(content)
        except OSError as error:
            raise WriteError(target, error) from error

    def html(self, svg: str) -> str:
        """One file that needs no other."""
        facts = "\n".join(
            f"<tr><th>{escaped(what)}</th><td>{escaped(value)}</td></tr>" for what, value in self.facts
        )
        heads = "".join(f"<th>{escaped(head)}</th>" for head in self.heads)
        body = "\n".join(
            f"<tr><th>{escaped(what)}</th>{''.join(f'<td>{escaped(cell)}</td>' for cell in cells)}</tr>"
            for what, cells in self.rows
        )
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escaped(self.title)}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }}
th {{ text-align: left; font-weight: normal; padding: .1rem 2rem .1rem 0; vertical-align: top; }}
#numbers td, #numbers thead th {{ text-align: right; padding: .1rem .6rem; }}
#numbers tbody tr:nth-child(odd) {{ background: #f4f4f4; }}
#facts td {{ overflow-wrap: anywhere; }}
</style></head><body>
<h1>{escaped(self.title)}</h1>
<table id="facts">{facts}</table>
{svg[svg.index("<svg") :]}
<table id="numbers"><thead><tr><th></th>{heads}</tr></thead><tbody>
{body}
</tbody></table>
</body></html>
"""


def escaped(text: str) -> str:
    return html.escape(text)


def on(found: dict[str, object]) -> str:
    """A machine in words."""
    threads = f", threads: {found['threads']}" if found.get("threads") else ""
    parts = [
        found.get("gpu"),
        found.get("processor"),
        f"{found['cores']} cores{threads}" if found.get("cores") else "",
    ]
    return ", ".join(str(part) for part in [*parts, found.get("system")] if part)


def command(typed: Sequence[str]) -> str:
    return f"scope {shlex.join(typed)}" if typed else ""


def numbered_clips(svg: str) -> str:
    """Clip paths named by their order: matplotlib names them by the last bits of their corners.

    Those depend on where numpy's arrays happen to lie in memory.
    """
    names: dict[str, str] = {}
    return re.sub(r"\bp[0-9a-f]{10}\b", lambda found: names.setdefault(found[0], f"clip{len(names)}"), svg)
