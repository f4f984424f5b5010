"""Rows of text in, a table that fits the reader's terminal out; markdown or plain lines for a pipe."""

import re
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len

from scope_cli.console.safe import printable

GAP = 2  # blanks between columns
LONG_CELL = 40  # a last column of sentences is folded where so much is left for it
UNITS = r"B|KiB|MiB|GiB|TiB|GB/s|tokens|tokens/s|s|nats|worse|better"
GLUE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Table:
    """A row for each thing; its first `names` columns say what it is."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    of_text: bool = False  # every column is aligned left; else those of numbers are not


def reader_width(file: TextIO) -> int | None:
    """Columns of the terminal that shows `file`; None where it is a file or a pipe."""
    from rich.console import Console

    console = Console(file=file)
    return console.width if console.is_terminal else None


def show(table: Table, file: TextIO | None = None) -> None:
    """Laid out for a terminal; markdown for a file or a pipe."""
    file = file or sys.stdout
    width = reader_width(file)
    print(as_markdown(table) if width is None else laid_out(table, width), file=file)


def show_list(table: Table) -> None:
    """Laid out for a terminal; for a pipe one line each, whole, with tabs between the columns."""
    width = reader_width(sys.stdout)
    rows = [[printable(cell) for cell in row] for row in table.rows]  # names may be anybody's
    table = Table(table.heads, rows, table.names, of_text=True)
    print(as_lines(table) if width is None else laid_out(table, width))


def as_markdown(table: Table) -> str:
    rows = [table.heads, ["---"] * len(table.heads), *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def as_lines(table: Table) -> str:
    return "\n".join("\t".join(row) for row in (table.heads, *table.rows))


def laid_out(table: Table, width: int) -> str:
    """A line for each row where they fit; else an interval goes below its mean, or a last cell is folded.

    Where that does not fit either, there is a block for each row.
    """
    for fold in (whole, at_brackets):
        lines = list(_in_columns(table, fold))
        if max(map(cell_len, lines)) <= width:
            return "\n".join(lines)
    before = [row[:-1] for row in table.rows]
    first = max(map(cell_len, _in_columns(Table(table.heads[:-1], before), whole)), default=0)
    if table.of_text and (rest := width - first - GAP) >= LONG_CELL:
        cells = [folded(row[-1], rest) for row in table.rows]
        return "\n".join(_in_columns(table, whole, cells))
    return "\n\n".join("\n".join(_block(table, row, width)) for row in table.rows)


def whole(cell: str) -> list[str]:
    return [cell]


def at_brackets(cell: str) -> list[str]:
    """'0.017 (0.015 to 0.019) *' -> '0.017', '(0.015 to 0.019) *'"""
    before, bracket, after = cell.partition(" (")
    return [before, f"({after}"] if bracket else [cell]


def _in_columns(
    table: Table, fold: Callable[[str], list[str]], last: Sequence[list[str]] = ()
) -> Iterator[str]:
    """last: the lines of each row's last cell"""
    rows = [[fold(cell) for cell in row] for row in table.rows]
    for row, lines in zip(rows, last, strict=False):
        row[-1] = lines
    lefts = set(range(len(table.heads) if table.of_text else table.names))
    heads = [_folded_head(head, [row[at] for row in rows]) for at, head in enumerate(table.heads)]
    every = [heads, *rows]
    widths = [max(cell_len(line) for row in every for line in row[at]) for at in range(len(heads))]
    yield from _lines(heads, widths, lefts, bottom=True)
    for row in rows:
        yield from _lines(row, widths, lefts)


def _folded_head(head: str, cells: Sequence[list[str]]) -> list[str]:
    """A heading takes no more width than what stands below it, and than its longest word."""
    widest = max([cell_len(line) for cell in cells for line in cell], default=cell_len(head))
    return folded(head, max(widest, *map(cell_len, pieces(head))))


def _lines(
    row: Sequence[list[str]], widths: Sequence[int], lefts: Container[int], bottom: bool = False
) -> Iterator[str]:
    height = max(map(len, row))
    for number in range(height):
        cells = []
        for at, (lines, width) in enumerate(zip(row, widths, strict=True)):
            place = number - (height - len(lines) if bottom else 0)
            text = lines[place] if 0 <= place < len(lines) else ""
            blanks = " " * (width - cell_len(text))
            cells.append(text + blanks if at in lefts else blanks + text)
        yield (" " * GAP).join(cells).rstrip()


def _block(table: Table, row: Sequence[str], width: int) -> Iterator[str]:
    """What it is, then a line for each of its cells that says something."""
    yield from folded(", ".join(row[: table.names]), width)
    label = max(cell_len(head) for head in table.heads[table.names :]) + 2 * GAP
    for head, cell in zip(table.heads[table.names :], row[table.names :], strict=True):
        if cell not in ("", "-"):
            first, *rest = folded(cell, max(16, width - label))
            yield f"{'':{GAP}}{head}".ljust(label) + first
            yield from (" " * label + line for line in rest)


def fitted(text: str, file: TextIO) -> str:
    """Lines that are folded between words for the terminal that shows `file`; as they are for a pipe."""
    width = reader_width(file)
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip(" "))]
        lines += [indent + part for part in folded(line.strip(" "), max(16, width - len(indent)))]
    return "\n".join(lines)


def columns(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], width: int | None) -> str:
    """A column for each thing, a label before each row; rows without a label keep parts apart.

    Where the columns do not fit the width their cells are folded, as many side by side as stay readable, the
    others below them.
    """
    first = max((cell_len(label) for label, _ in rows), default=0)
    lines = [("", heads), *rows]
    wide = [max(cell_len(values[at]) for _, values in lines) for at in range(len(heads))]
    if width is None or first + sum(GAP + one for one in wide) <= width:
        return "\n".join(_row(lines, first, wide))
    word = max(cell_len(piece) for _, values in lines for value in values for piece in pieces(value))
    many = max(1, min(len(heads), (width - first) // (GAP + word)))
    each = max(word, (width - first) // many - GAP)
    parts = []
    for start in range(0, len(heads), many):
        part = [(label, values[start : start + many]) for label, values in lines]
        parts.append("\n".join(_row(part, first, [each] * len(part[0][1]))))
    return "\n\n".join(parts)


def _row(lines: Sequence[tuple[str, Sequence[str]]], first: int, widths: Sequence[int]) -> Iterator[str]:
    for label, values in lines:
        cells = [folded(value, width) for value, width in zip(values, widths, strict=True)]
        yield from _lines([[label], *cells], [first, *widths], {0})


def folded(text: str, width: int) -> list[str]:
    """Lines of at most `width`, if no word is longer; a number stays with its unit."""
    lines = [""]
    for piece in (part for one in pieces(text) for part in in_parts(one, width)):
        joined = f"{lines[-1]} {piece}" if lines[-1] else piece
        if cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(piece)
    return [line.replace(GLUE, " ") for line in lines if line] or [""]


def in_parts(word: str, width: int) -> Iterator[str]:
    """A word that is longer than a line, such as a path, in parts that are not."""
    part = ""
    for letter in word:
        if cell_len(part + letter) > width:
            yield part
            part = ""
        part += letter
    yield part


def pieces(text: str) -> list[str]:
    """What is not broken: three in '66.89 MiB (65.45 MiB) +2.2%'; inside of each the blanks are glued."""
    return re.sub(rf"(?<=[\d%]) (?=(?:{UNITS})(?![\w/]))", GLUE, text).split(" ")
