"""A folder in, its SQLite database out: opened, checked, and every error of SQLite told as one of ours.

WAL mode, where the disk can do that. What is committed is true.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from scope_cli.errors import ScopeError, UsageError

NAME = "scope.db"
FORMAT = 1  # PRAGMA user_version
DAMAGE = re.compile("malformed|no such|not a database|syntax")  # SQLite's words for a schema it cannot follow
BUSY_S = 60.0  # how long one process waits for another's transaction
NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs")
TABLES = """
CREATE TABLE IF NOT EXISTS job (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS processes (owner TEXT PRIMARY KEY, pid INTEGER, host TEXT, started_at REAL);
CREATE TABLE IF NOT EXISTS groups (number INTEGER PRIMARY KEY, plan TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    number INTEGER PRIMARY KEY,      -- the order of the inputs
    id TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,
    output TEXT NOT NULL UNIQUE,     -- below OUT
    content_hash TEXT NOT NULL,
    state TEXT NOT NULL,
    error TEXT,                      -- why it failed
    detail TEXT,                     -- a traceback, where the reason is not the user's to put right
    prompt_ids BLOB,                 -- int32, little-endian
    prompt_tokens INTEGER,
    planned INTEGER,                 -- tokens of the output at most
    sampling TEXT NOT NULL DEFAULT '{}',
    meta TEXT,
    seed INTEGER,
    group_number INTEGER,            -- whom it shares a cache with
    turn INTEGER,                    -- when it comes in its group
    attempts INTEGER NOT NULL DEFAULT 0,
    owner TEXT,                      -- the process that runs it
    profile_hash TEXT,               -- what it was run with
    started_at REAL,
    finished_at REAL,
    record TEXT                      -- its run record, as JSON, once it has ended
);
CREATE INDEX IF NOT EXISTS rows_by_turn ON rows (group_number, state, turn);
"""


class Database:
    def __init__(self, out: Path, read_only: bool = False) -> None:
        """Open OUT/scope.db, and make it where there is none. Raises UsageError where that cannot be."""
        self.path = out / NAME
        self.notes: list[str] = []
        self._file: tuple[int, int] | None = None
        try:
            # As a path, not read-only mode: SQLite itself has to be able to go on after a crash.
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
            if read_only:
                self._check_format()
            else:
                self._prepare()
            self._file = self._identity()
        except (sqlite3.DatabaseError, OSError) as error:
            hint = "is the folder writable, and the file a ledger of scope batch?"
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                hint = "make room, and the same command goes on"
            raise UsageError(f"cannot use {self.path}: {error}", hint) from error

    def _identity(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _prepare(self) -> None:
        (mode,) = self._db.execute(f"PRAGMA journal_mode={self._journal_mode()}").fetchone()
        if mode != "wal":
            self.notes.append(f"the ledger keeps a {mode} journal: WAL does not work on this disk")
        self._db.execute("PRAGMA synchronous=FULL")  # a row that is done stays done when the power goes
        with self.transaction():
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in TABLES.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={FORMAT}")
        self._check_format()

    def _journal_mode(self) -> str:
        """WAL needs memory that all processes share, which no network file system has between machines."""
        kind = file_system_of(self.path.parent)
        return "delete" if kind.startswith(NETWORK) else "wal"

    def _check_format(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            raise UsageError(
                f"{self.path} is empty, or no ledger of scope batch",
                "finished texts are beside it; another --output-dir starts over",
            )
        if found != FORMAT:
            raise UsageError(
                f"{self.path} has format {found}, this version of scope reads {FORMAT}",
                "choose another --output-dir",
            )

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, and nobody else writes meanwhile."""
        self._check_it_is_there()
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            raise

    def _check_it_is_there(self) -> None:
        """SQLite writes on into a file that somebody has removed, and nobody would ever read it."""
        with suppress(OSError):
            if self._file in (None, self._identity()):
                return
        raise ScopeError(
            f"{self.path} is gone: the output folder was removed or replaced while the job ran",
            "the same command starts over",
        )

    def _run(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _read(self, statement: str, values: Any = ()) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.DatabaseError) -> Exception:
        if isinstance(error, sqlite3.IntegrityError):  # our bug
            return error
        if not isinstance(error, sqlite3.OperationalError) or DAMAGE.search(str(error)):
            return self._damaged(str(error))
        if "readonly" in str(error) or "unable to open" in str(error):
            return UsageError(f"cannot write {self.path}: {error}", "is the folder writable?")
        return ScopeError(
            f"cannot write {self.path}: {error}", "what is done stays done; the same command continues"
        )

    def _damaged(self, what: str, way_out: str = "another --output-dir starts over") -> UsageError:
        return UsageError(f"{self.path} is damaged: {what}", f"finished texts are beside it; {way_out}")

    def sound(self) -> bool:
        """SQLite's own check of the whole file."""
        try:
            return self._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        except sqlite3.DatabaseError:  # not even readable
            return False

    def check(self) -> None:
        """Raises UsageError where the file is damaged as a whole; single rows are mended."""
        if not self.sound():
            raise self._damaged("SQLite finds errors in it")


def file_system_of(folder: Path) -> str:
    """'ext4', 'nfs4', ...: of the mount that a folder lies in; '' where the system does not say."""
    where, best, kind = folder.resolve(), -1, ""
    for mount in psutil.disk_partitions(all=True):
        if where.is_relative_to(mount.mountpoint) and len(mount.mountpoint) >= best:
            best, kind = len(mount.mountpoint), mount.fstype
    return kind
