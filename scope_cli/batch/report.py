"""A ledger in, OUT/report.html out: one file with everything in it, that opens without a network."""

import io
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from scope_cli.batch.ledger import Ledger
from scope_cli.batch.rows import Row
from scope_cli.batch.writer import write_whole
from scope_cli.units import as_bytes, as_duration, as_rate, as_ratio, counted

NAME = "report.html"
MOST_NAMED, LONGEST_NAME = 60, 32  # bars of a plot that are named, characters of a name
HELD, FULL, READ, BAD = "#2a6fdb", "#c9ced6", "#e0a030", "#c0392b"
STYLE: dict[Any, Any] = {  # matplotlib's settings
    "svg.fonttype": "none",  # the reader's own font, and small files
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8ec",
    "axes.axisbelow": True,
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>scope batch: {{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2330 }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0 }
th, td { border-bottom: 1px solid #e6e8ec }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.name { overflow-wrap: break-word } .wide { overflow-x: auto }
.failed { color: #c0392b } .dim { color: #6b7280 }
figure { margin: 1rem 0 } svg { width: 100%; height: auto }
figcaption { color: #6b7280; font-size: .9rem }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="dim">{{ written }}</p>
<table id="totals">
{% for name, value in totals %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% for heading, picture, caption in pictures %}
<h2>{{ heading }}</h2>
<figure>{{ picture }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% if failures %}
<h2>Failures</h2>
<div class="wide"><table id="failures">
<tr><th>prompt</th><th>reason</th></tr>
{% for row in failures %}<tr><td class="name">{{ row.id }}</td><td class="failed">{{ row.error }}</td></tr>
{% endfor %}</table></div>
{% endif %}
<h2>Every prompt</h2>
<div class="wide"><table id="prompts">
<tr><th>prompt</th><th>state</th><th class="n">prompt tokens</th><th class="n">tokens</th><th>end</th>
<th class="n">time</th><th class="n">tokens/s</th><th class="n">KV held</th><th class="n">of full</th></tr>
{% for row in rows %}<tr><td class="name">{% if row.link %}<a href="{{ row.link }}">{{ row.name }}</a>
{% else %}{{ row.name }}{% endif %}</td><td class="{{ row.state }}">{{ row.state }}</td>
<td class="n">{{ row.prompt }}</td><td class="n">{{ row.tokens }}</td><td>{{ row.reason }}</td>
<td class="n">{{ row.time }}</td><td class="n">{{ row.rate }}</td><td class="n">{{ row.held }}</td>
<td class="n">{{ row.share }}</td></tr>
{% endfor %}</table></div>
</body>
</html>
"""


def write_report(ledger: Ledger, out: Path) -> Path:
    """Also of a job that is not through: what there is."""
    write_whole(out / NAME, page(ledger, out.resolve().name))
    return out / NAME


def page(ledger: Ledger, name: str) -> str:
    rows = ledger.rows()
    ended = [row for row in rows if row.state == "done" and row.end]
    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(
        title=f"{name}: {len(ended):,} of {counted(len(rows), 'prompt')}",
        written=time.strftime("written %Y-%m-%d %H:%M:%S"),
        totals=totals(ledger, rows, ended),
        pictures=pictures(ended),
        failures=[row for row in rows if row.state == "failed"],
        rows=[cells(row) for row in rows],
    )


def totals(ledger: Ledger, rows: list[Row], ended: list[Row]) -> list[tuple[str, str]]:
    counts, settings = ledger.counts(), ledger.get("settings") or {}
    model, decode = settings.get("model", {}), settings.get("decode", {})
    tokens = sum(row.end["output_tokens"] for row in ended)
    busy = busy_s(rows)
    held, full = summed(ended, "held_bytes"), summed(ended, "full_bytes")
    lines = [
        ("prompts", ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)),
        ("model", f"{model.get('name')}, {settings.get('runs_on')}"),
        ("cache", f"{decode.get('strategy')}, budget {decode.get('budget'):,}") if decode else ("cache", "-"),
        ("tokens", f"{tokens:,} in {as_duration(busy)}, {as_rate(tokens / busy)}" if busy else "none"),
        ("KV at the end", f"{as_bytes(held)} held, {as_bytes(full)} in full caches ({as_ratio(held, full)})"),
    ]
    for group in ledger.groups():
        lanes = group["shape"]["lanes"]
        size = f"{counted(lanes, 'lane')} of {as_bytes(group['lane_bytes'])}"
        lines.append((f"group {group['number']}", f"{counted(group['rows'], 'prompt')}, {size}"))
    return lines


def busy_s(rows: list[Row]) -> float:
    """Seconds in which at least one prompt was run; breaks between two starts of the job do not count."""
    spans = sorted((row.started_at, row.finished_at) for row in rows if row.started_at and row.finished_at)
    busy, until = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def summed(rows: list[Row], reading: str) -> int:
    return sum(row.end["reading"][reading] for row in rows)


def cells(row: Row) -> dict[str, Any]:
    """One line of the table, as text; dashes where nothing is known."""
    end = row.end
    reading = end.get("reading", {})
    known = bool(end)
    seconds = end["prefill_s"] + end["decode_s"] if known else 0.0
    return {
        "name": row.id,
        "link": quote(f"./{row.output}") if known else "",  # the text, beside the page
        "state": row.state,
        "prompt": f"{row.prompt_tokens:,}" if row.prompt_tokens else "-",
        "tokens": f"{end['output_tokens']:,}" if known else "-",
        "reason": end.get("reason", row.error or "-"),
        "time": as_duration(seconds) if known else "-",
        "rate": f"{end['output_tokens'] / end['decode_s']:.1f}" if known and end["decode_s"] else "-",
        "held": as_bytes(reading["held_bytes"]) if known else "-",
        "share": as_ratio(reading["held_bytes"], reading["full_bytes"]) if known else "-",
    }


def pictures(rows: list[Row]) -> list[tuple[str, Markup, str]]:
    """(heading, inline SVG, caption)"""
    if not rows:
        return []
    return [
        ("Tokens", drawn(draw_tokens, rows), "Written tokens of each finished prompt, the longest on top."),
        (
            "Time",
            drawn(draw_time, rows),
            "When each finished prompt was run, in the order they began: reading in yellow, writing in blue. "
            "Breaks between two starts of the job are left out.",
        ),
        (
            "KV memory",
            drawn(draw_memory, rows),
            "What each prompt's cache held at its end, and what one that forgets nothing would have held.",
        ),
    ]


def drawn(draw: Any, rows: list[Row]) -> Markup:
    """A plot as an <svg> element, as high as its bars need."""
    height = 1.0 + 0.24 * max(4, len(rows)) if len(rows) <= MOST_NAMED else 7.0
    with rc_context({**STYLE, "svg.hashsalt": draw.__name__}):
        figure = Figure(figsize=(9, height), layout="constrained")
        draw(figure.subplots(), rows)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = file.getvalue()
    return Markup(svg[svg.index("<svg") :])  # matplotlib escapes what it draws


def named(axes: Axes, rows: list[Row]) -> None:
    """One line for each prompt, from the top; names as long as they can be read."""
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    if len(rows) <= MOST_NAMED:
        axes.set_yticks(range(len(rows)), [shortened(row.id) for row in rows], parse_math=False)
    else:
        axes.set(ylabel=f"{len(rows):,} prompts", yticks=[])


def shortened(name: str) -> str:
    """'a/very/long/name.txt' -> its end, which tells prompts apart; one line, whatever it holds."""
    name = " ".join(name.split())
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def draw_tokens(axes: Axes, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: -row.end["output_tokens"])
    axes.barh(range(len(rows)), [row.end["output_tokens"] for row in rows], color=HELD, height=0.75)
    axes.set(xlabel="tokens")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    named(axes, rows)


def draw_time(axes: Axes, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: (row.started_at or 0.0, row.finished_at or 0.0))
    first = rows[0].started_at or 0.0
    clock, until = 0.0, None
    for line, row in enumerate(rows):
        start, end, read = row.started_at or 0.0, row.finished_at or 0.0, row.end["prefill_s"]
        if until is not None and start > until:
            clock += start - until  # nothing ran: leave it out
        until = max(end, until or end)
        left = start - first - clock
        axes.barh(line, end - start, left=left, color=HELD, height=0.75)
        axes.barh(line, min(read, end - start), left=left, color=READ, height=0.75)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: as_duration(seconds)))
    named(axes, rows)


def draw_memory(axes: Axes, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda row: -row.end["reading"]["full_bytes"])
    readings = [row.end["reading"] for row in rows]
    at = range(len(rows))
    axes.barh(at, [one["full_bytes"] for one in readings], color=FULL, height=0.75, label="full cache")
    axes.barh(at, [one["held_bytes"] for one in readings], color=HELD, height=0.4, label="held")
    most = max(one["full_bytes"] for one in readings)
    unit = 1024 ** min(3, max(1, most).bit_length() // 10)  # so that ticks are round in it
    axes.xaxis.set_major_locator(FixedLocator(unit * np.array(MaxNLocator(5).tick_values(0, most / unit))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: as_bytes(count)))
    axes.set_xlim(0, 1.05 * most or 1)
    named(axes, rows)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
