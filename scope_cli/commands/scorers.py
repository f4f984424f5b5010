"""scope scorers, scope prefills: every plug-in, its options, its purpose in one line."""


def scorers_command() -> None:
    """What ranks the generated tokens, each with its options."""
    _print_plugins("scorers")


def prefills_command() -> None:
    """What is done once to the prompt's cache, each with its options."""
    _print_plugins("prefills")


def _print_plugins(kind: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scope_cli import plugins

    table = Table("name", "options", "what it does", box=None, pad_edge=False, header_style="bold")
    for name in plugins.names(kind):
        cls = plugins.plugin_class(kind, name)
        table.add_row(Text(name), Text(plugins.options_in_words(cls) or "-"), Text(plugins.purpose(cls)))
    Console().print(table)
