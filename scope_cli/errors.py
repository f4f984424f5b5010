"""What the user can put right: one line, a hint, an exit code."""

import errno


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


class PluginError(UsageError):
    """An installed package offers a plug-in that cannot be used, or one that is there already."""


class ModelError(UsageError):
    """A model cannot be found, read, or held in the memory there is."""


class BusyError(ScopeError):
    """Another process works on the same output folder or file."""

    exit_code = 3


class WriteError(ScopeError):
    """A file cannot be written; where the disk is full, that room helps."""

    def __init__(self, path: object, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "make room, or name a file on another disk" if full else "is the folder there, and writable?"
        super().__init__(f"cannot write {path}: {error.strerror}", hint)


class AuditError(ScopeError):
    """The cache did not do what the profile promised: our bug, told as a fact."""

    exit_code = 5


class OutOfMemoryError(ScopeError):
    """Memory ended while something was running; what was written before is kept."""

    @classmethod
    def of(cls, error: BaseException) -> "OutOfMemoryError":
        """The sentence for what `is_out_of_memory` recognised."""
        said = next(iter(str(error).strip().splitlines()), "")
        return cls(
            f"memory ran out: {said}" if said else "memory ran out",
            "what was written is kept; try a smaller --budget, --max-new-tokens or --lanes",
        )


OUT_OF_MEMORY = (  # what PyTorch and its libraries say in a plain RuntimeError
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Did memory end, of the device or of the process? PyTorch is not imported for it."""
    if isinstance(error, ScopeError):
        return isinstance(error, OutOfMemoryError)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """What went wrong, in a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
