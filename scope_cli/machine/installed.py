"""Packages that a run may do without, until something is asked for that needs one."""

from importlib import import_module

from scope_cli.errors import UsageError


def need(package: str, asked: str) -> None:
    """Raises UsageError where it cannot be imported, before anything is measured; asked: the option."""
    try:
        import_module(package)
    except ImportError as error:
        raise UsageError(f"{asked} needs {package}", f"pip install {package}") from error
