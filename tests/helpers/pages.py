"""The pages of the documentation, their blocks of code, and what a command line becomes."""

import re
from pathlib import Path

from scope_cli import cli

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, *languages):
    """The code blocks of some languages; a line that ends with a backslash goes on in the next."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text.replace("\\\n", " ") for language, text in found if language in languages]


def parse(argv):
    """Walk down to the command that argv names; typer raises where an option or argument is not known."""
    command, context, name = cli.command(), None, "scope"
    while True:
        context = command.make_context(name, list(argv), parent=context)
        command = context.command
        rest = [*context._protected_args, *context.args] if hasattr(command, "commands") else []
        if not rest:  # a group may be a command as well: scope profile
            return context.params
        name, command, argv = command.resolve_command(context, rest)
