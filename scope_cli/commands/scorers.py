"""scope scorers, scope prefills: every plug-in, options, needs, cost, purpose and origin in one line."""

from scope_cli.console import tables
from scope_cli.errors import PluginError
from scope_cli.policies import plugins


def scorers_command() -> None:
    """List the scorers, which rank the generated tokens, and their options."""
    _print_plugins("scorers", "scorer")


def prefills_command() -> None:
    """List the prefill methods, which compress a prompt's cache, their wrappers and options."""
    _print_plugins("prefills", "method")
    print()
    _print_plugins("wrappers", "wrapper")


def _print_plugins(kind: str, one: str) -> None:
    rows, broken = [], []
    for name, offered in plugins.sources(kind).items():
        try:
            cls = plugins.plugin_class(kind, name)
        except PluginError as error:
            broken.append(error)
            continue
        options = plugins.options_in_words(cls) or "-"
        rows.append([name, plugins.purpose(cls), options, cls.needs, cls.cost, offered[0].package])
    tables.show_list(tables.Table([one, "what it does", "options", "needs", "cost", "from"], rows))
    if broken:
        raise broken[0]
