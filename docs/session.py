"""Records docs/images/session.svg: a real run on a terminal of 80 columns, while it writes and at its end.

`python docs/session.py` runs what `make run` runs; what is drawn is what the terminal showed.
"""

import os
import pty
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
SVG = ROOT / "docs" / "images" / "session.svg"
WIDTH, HEIGHT, KEPT = 80, 24, 8  # columns; rows; rows of the moving picture that are drawn
AT = 0.6  # of the run: where the moving picture is taken
EVICTED = re.compile(r"evicted (\d+)")
REDRAWN = re.compile(rb"(?=\r\x1b)")  # where a terminal's lines begin to be drawn anew


def command_of_make() -> list[str]:
    """['scope', 'generate', ...], as the Makefile has it."""
    line = re.search(r"^run:.*\n\t\$\(BIN\)/(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line is not None
    return shlex.split(line[1])


def record(command: list[str]) -> tuple[list[list[str]], list[str]]:
    """(the screen at each change while it wrote, all rows at the end)"""
    screen = pyte.HistoryScreen(WIDTH, HEIGHT, history=10_000)
    stream, frames = pyte.ByteStream(screen), []
    child, terminal = pty.fork()
    if not child:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": str(HEIGHT)}
        os.execvp(command[0], command)
    while True:
        try:
            said = os.read(terminal, 65536)
        except OSError:  # it has ended
            break
        if not said:
            break
        for piece in REDRAWN.split(said):  # several pictures may come at once
            stream.feed(piece)
            rows = [row.rstrip() for row in screen.display]
            if any(EVICTED.search(row) for row in rows):
                frames.append(rows)
    os.waitpid(child, 0)
    gone = ["".join(row[x].data for x in range(WIDTH)).rstrip() for row in screen.history.top]
    return frames, [row for row in [*gone, *(row.rstrip() for row in screen.display)] if row]


def draw(command: list[str], frames: list[list[str]], rows: list[str]) -> str:
    console = Console(width=WIDTH, record=True, file=StringIO(), force_terminal=True)
    moving = [row for row in frames[int(AT * (len(frames) - 1))] if row][-KEPT:]
    end = next(number for number, row in enumerate(rows) if row.startswith("prompt:"))
    shown = [f"$ {shlex.join(command)}", "", "...", *moving, "", "... and at the end:", "", *rows[end:]]
    for row in shown:
        console.print(Text(row), soft_wrap=True)
    svg = console.export_svg(title="scope", clear=False)
    return re.sub(r"@font-face \{.*?\}\n?", "", svg, flags=re.DOTALL)  # nothing is fetched


if __name__ == "__main__":
    os.chdir(ROOT)
    asked = sys.argv[1:] or command_of_make()
    SVG.write_text(draw(asked, *record(asked)), encoding="utf-8")
