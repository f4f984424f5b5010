"""`python -m scope_cli` is `scope`."""

from scope_cli.cli import run

run()
