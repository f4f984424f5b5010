"""What one row's error was, in words for the ledger; which errors are nobody's row's."""

import traceback

from scope_cli.console.safe import printable
from scope_cli.errors import ScopeError

UNSTOPPABLE = (
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
)  # all else may be a row's: Rust panics are no Exception


def in_words(error: BaseException) -> str:
    """What went wrong on the first line, and the traceback below it where that is not the user's to mend."""
    if isinstance(error, ScopeError):
        return f"{error} ({error.hint})" if error.hint else str(error)
    said = str(error).strip().partition("\n")[0]
    first = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{first}\n{''.join(traceback.format_exception(error))}"


def reason_and_detail(said: str) -> tuple[str, str]:
    """The first line, and what stands below it."""
    reason, _, detail = said.partition("\n")
    return printable(reason), printable(detail, lines=True)
