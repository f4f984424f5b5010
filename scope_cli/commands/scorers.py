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
    from scope_cli.console import tables
    from scope_cli.policies import plugins

    rows = []
    for name in plugins.names(kind):
        cls = plugins.plugin_class(kind, name)
        rows.append([name, plugins.purpose(cls), plugins.options_in_words(cls) or "-", cls.needs, cls.cost])
    tables.show_list(tables.Table([one, "what it does", "options", "needs", "cost"], rows))
