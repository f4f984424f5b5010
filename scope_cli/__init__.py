"""Long-output generation with a bounded cache for the output and a preserved one for the prompt.

    from scope_cli import Profile, generate, load

What is public is listed in docs/reference/api.md; nothing of it is imported before it is asked for.
"""

import sys
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scope_cli.api import Writing, generate, load
    from scope_cli.errors import ScopeError
    from scope_cli.settings.schema import Profile

BEGAN = perf_counter()
__version__ = "0.1.0"
__all__ = ["Profile", "ScopeError", "Writing", "__version__", "generate", "load"]

_HOMES = {
    "Profile": "scope_cli.settings.schema",
    "ScopeError": "scope_cli.errors",
    "Writing": "scope_cli.api",
    "generate": "scope_cli.api",
    "load": "scope_cli.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] == "scope_cli.api" and "torch" not in sys.modules:
        import_module("scope_cli.machine.setup").wait_briefly()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
