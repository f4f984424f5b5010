"""Prompts' ids in, names of their output files out: the same relative path, and no two the same."""

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

PART, RECORD = ".part", ".run.json"
OWN_FILES = ("scope.db", "scope.db-wal", "scope.db-shm", "scope.db-journal", "results.jsonl", "report.html")
ZWNJ, ZWJ = "\u200c", "\u200d"  # Persian and Devanagari are written with them
KEPT = f" .,=+@()-_{ZWNJ}{ZWJ}"
LONGEST = 255 - len(RECORD) - len(PART)  # bytes of a name, with room for what goes behind it


class OutputNames:
    """Gives each prompt a file below the output folder, and remembers what is taken."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {_as_seen_by_any_disk(name) for name in OWN_FILES}
        for name in taken:
            self._take(name)

    def for_file(self, path: str) -> str:
        """A prompt's path below its directory: 'a/b.txt' writes to 'a/b.txt'."""
        return self._first_free(PurePosixPath(path))

    def for_line(self, row_id: str) -> str:
        """A line of a JSONL file: 'chapter 1/2' writes to 'chapter 1_2.txt'."""
        composed = unicodedata.normalize("NFC", row_id)
        name = "".join(char if _is_kept(char) else "_" for char in composed).strip().lstrip(".") or "_"
        return self._first_free(PurePosixPath(f"{name}.txt"))

    def _first_free(self, path: PurePosixPath) -> str:
        path = path.with_name(_shortened(path.name))
        name, number = str(path), 1
        while any(_as_seen_by_any_disk(name + end) in self._taken for end in ("", PART, RECORD)):
            number += 1
            name = str(path.with_name(_shortened(f"{path.stem}-{number}{path.suffix}")))
        self._take(name)
        return name

    def _take(self, name: str) -> None:
        self._taken |= {_as_seen_by_any_disk(name + end) for end in ("", PART, RECORD)}


def _is_kept(char: str) -> bool:
    """Letters with the marks that belong to them, and their joiners; digits; a few signs."""
    return unicodedata.category(char)[0] in "LMN" or char in KEPT


def _shortened(name: str) -> str:
    """A name that a disk takes, told apart by a hash where it had to be cut."""
    if len(name.encode()) <= LONGEST:
        return name
    end = f"-{hashlib.sha256(name.encode()).hexdigest()[:12]}{PurePosixPath(name).suffix[:16]}"
    return name.encode()[: LONGEST - len(end.encode())].decode("utf-8", "ignore") + end


def _as_seen_by_any_disk(name: str) -> str:
    """Some disks take A.txt and a.txt for one file, some compose accents, some overlook joiners."""
    visible = name.replace(ZWNJ, "").replace(ZWJ, "")
    folded = unicodedata.normalize("NFD", visible).casefold()
    return unicodedata.normalize("NFD", folded)
