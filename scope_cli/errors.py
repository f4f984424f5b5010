"""What the user can put right: one line, a hint, an exit code."""


class ScopeError(Exception):
    """Something the user can put right; `hint` says how."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(ScopeError):
    """What was typed cannot be done: options, files, prompts."""

    exit_code = 2


class ProfileError(UsageError):
    """A profile, or what `--set` made of it, is not valid; the message lists every problem."""


class ModelError(UsageError):
    """A model cannot be found, read, or held in the memory there is."""


class BusyError(ScopeError):
    """Another process works on the same output folder."""

    exit_code = 3


class AuditError(ScopeError):
    """The cache did not do what the profile promised: our bug, told as a fact (docs/readings.md)."""

    exit_code = 5
