"""scope scorers, scope prefills: every plug-in, options, needs, cost and purpose in one line."""


def scorers_command() -> None:
    """What ranks the generated tokens, each with its options."""
    _print_plugins("scorers", "scorer")


def prefills_command() -> None:
    """What is done once to the prompt's cache, each with its options, and what wraps it."""
    _print_plugins("prefills", "method")
    print()
    _print_plugins("wrappers", "wrapper")


def _print_plugins(kind: str, one: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scope_cli import plugins

    table = Table(
        one, "options", "needs", "cost", "what it does", box=None, pad_edge=False, header_style="bold"
    )
    for name in plugins.names(kind):
        cls = plugins.plugin_class(kind, name)
        options = plugins.options_in_words(cls) or "-"
        table.add_row(*map(Text, (name, options, cls.needs, cls.cost, plugins.purpose(cls))))
    Console().print(table)
