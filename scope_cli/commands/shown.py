"""How `scope profile` shows what it planned or measured: a table, JSON, CSV, pictures."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from scope_cli.measure.profiling.pages import Page
from scope_cli.settings.load import LoadedProfile

Cases = list[tuple[str, LoadedProfile]]  # label, profile


@dataclass(frozen=True)
class Display:
    """As it was asked for on the command line."""

    json: bool
    csv: bool
    plot: list[str]
    quiet: bool
    console: Console

    @property
    def width(self) -> int | None:
        return width_of(self.console)

    def table(self, text: str) -> None:
        print(text, file=self.console.file)

    def draw(self, page: Page, in_characters: Callable[[int], list[Text]]) -> None:
        """The pictures; `in_characters` draws them as wide as the terminal."""
        for file in self.plot:
            if file == "-":
                for part in in_characters(self.console.width):
                    self.console.print(part)
            else:
                page.write(Path(file))
                if not self.quiet:
                    print(f"wrote {file}", file=sys.stderr)


def width_of(console: Console) -> int | None:
    return console.width if console.is_terminal else None
