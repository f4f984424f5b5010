"""OUT/scope.db: the job, every prompt and its state; what is committed here is true.

SQLite in WAL mode, where the disk can do that. A row is `waiting`, `running`, `done`, `failed` or
`interrupted`. Several processes may share a ledger: taking a row is one transaction.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from scope_cli.errors import ScopeError, UsageError

State = Literal["waiting", "running", "done", "failed", "interrupted"]
STATES: tuple[State, ...] = ("waiting", "running", "done", "failed", "interrupted")
NAME = "scope.db"
FORMAT = 1  # PRAGMA user_version
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


@dataclass(frozen=True)
class Row:
    number: int
    id: str
    source: str
    output: str
    content_hash: str
    state: State = "waiting"
    error: str | None = None
    detail: str | None = None
    prompt_ids: bytes | None = None
    prompt_tokens: int | None = None
    planned: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    meta: Any = None
    seed: int | None = None
    group_number: int | None = None
    turn: int | None = None
    attempts: int = 0
    owner: str | None = None
    profile_hash: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    record: dict[str, Any] | None = None

    @property
    def end(self) -> dict[str, Any]:
        """How it ended: tokens, times, readings; empty while it has not, and where it never ran."""
        found: list[dict[str, Any]] = (self.record or {}).get("results", [])
        return found[0] if found else {}


AS_JSON = ("sampling", "meta", "record")
COLUMNS = tuple(Row.__dataclass_fields__)


class Ledger:
    def __init__(self, out: Path, read_only: bool = False) -> None:
        """Open OUT/scope.db, and make it where there is none. Raises UsageError where that cannot be."""
        self.path = out / NAME
        self.notes: list[str] = []
        try:
            # As a path, not read-only mode: SQLite itself has to be able to go on after a crash.
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            if read_only:
                self._check_format()
            else:
                self._prepare()
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"cannot use {self.path}: {error}",
                "is the folder writable, and the file a ledger of scope batch?",
            ) from error

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
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise self._failed(error) from error
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise self._failed(error) from error
            raise

    def _failed(self, error: sqlite3.OperationalError) -> Exception:
        if "readonly" in str(error) or "unable to open" in str(error):
            return UsageError(f"cannot write {self.path}: {error}", "is the folder writable?")
        return ScopeError(
            f"cannot write {self.path}: {error}", "what is done stays done; the same command goes on"
        )

    def sound(self) -> bool:
        """SQLite's own check of the whole file."""
        return self._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"

    # The job

    def get(self, key: str, default: Any = None) -> Any:
        found = self._db.execute("SELECT value FROM job WHERE key = ?", (key,)).fetchone()
        return json.loads(found[0]) if found else default

    def set(self, **values: Any) -> None:
        """Facts about the job; inside a transaction with whatever belongs together."""
        self._db.executemany(
            "INSERT INTO job VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [(key, json.dumps(value)) for key, value in values.items()],
        )

    def forget(self) -> None:
        """Begin again from nothing."""
        with self.transaction():
            for table in ("job", "groups", "rows"):
                self._db.execute(f"DELETE FROM {table}")

    # Groups: how many lanes of which size

    def groups(self) -> list[dict[str, Any]]:
        return [json.loads(plan) for (plan,) in self._db.execute("SELECT plan FROM groups ORDER BY number")]

    def add_groups(self, plans: Iterable[dict[str, Any]]) -> None:
        self._db.executemany(
            "INSERT INTO groups VALUES (?, ?)", [(plan["number"], json.dumps(plan)) for plan in plans]
        )

    def drop_empty_groups(self) -> None:
        self._db.execute(
            "DELETE FROM groups WHERE number NOT IN "
            "(SELECT group_number FROM rows WHERE group_number NOT NULL)"
        )

    # Rows

    def rows(self, *states: State, bulky: bool = False) -> list[Row]:
        """Every row (of some states), in the order of the inputs; `bulky`: with its prompt."""
        names = ", ".join(name if bulky or name != "prompt_ids" else "NULL AS prompt_ids" for name in COLUMNS)
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        return [
            _row(found)
            for found in self._db.execute(f"SELECT {names} FROM rows {where} ORDER BY number", states)
        ]

    def row(self, number: int) -> Row:
        return _row(self._db.execute("SELECT * FROM rows WHERE number = ?", (number,)).fetchone())

    def counts(self) -> dict[State, int]:
        found = dict(self._db.execute("SELECT state, count(*) FROM rows GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def tokens_left(self, usual: float | None) -> float:
        """Of the rows that have not ended: as long as they may get, or as long as others usually were."""
        (tokens,) = self._db.execute(
            "SELECT sum(min(planned, ?)) FROM rows WHERE state IN ('waiting', 'running', 'interrupted')",
            (usual if usual is not None else 2**62,),
        ).fetchone()
        return tokens or 0

    def put(self, row: Row) -> None:
        """Add a row, or replace the one with its number."""
        values = {name: getattr(row, name) for name in COLUMNS}
        values |= {name: _to_json(values[name]) for name in AS_JSON}
        marks = ", ".join(f":{name}" for name in COLUMNS)
        self._db.execute(f"INSERT OR REPLACE INTO rows ({', '.join(COLUMNS)}) VALUES ({marks})", values)

    def change(self, number: int, **values: Any) -> None:
        values |= {name: _to_json(values[name]) for name in AS_JSON if name in values}
        names = ", ".join(f"{name} = :{name}" for name in values)
        self._db.execute(f"UPDATE rows SET {names} WHERE number = :number", {**values, "number": number})

    def remove(self, number: int) -> None:
        self._db.execute("DELETE FROM rows WHERE number = ?", (number,))

    # Taking rows, and giving them back

    def take(self, owner: str, group: int, profile_hash: str, number: int | None = None) -> Row | None:
        """The next row of a group, now running here, or None where none waits; `number`: that row."""
        which, value = ("group_number = ?", group) if number is None else ("number = ?", number)
        with self.transaction():
            found = self._db.execute(
                f"SELECT number FROM rows WHERE {which} AND state IN ('waiting', 'interrupted') "
                "ORDER BY turn LIMIT 1",
                (value,),
            ).fetchone()
            if found is None:
                return None
            self._db.execute(
                "UPDATE rows SET state = 'running', owner = ?, attempts = attempts + 1, profile_hash = ?, "
                "started_at = ?, finished_at = NULL, error = NULL, detail = NULL, record = NULL "
                "WHERE number = ?",
                (owner, profile_hash, time.time(), found["number"]),
            )
            return self.row(found["number"])

    def waiting_in(self, group: int) -> int:
        (count,) = self._db.execute(
            "SELECT count(*) FROM rows WHERE group_number = ? AND state IN ('waiting', 'interrupted')",
            (group,),
        ).fetchone()
        return count

    def end(self, number: int, owner: str, state: State, record: dict[str, Any], error: str | None = None,
            detail: str | None = None) -> bool:  # fmt: skip
        """A row that runs here has ended; False where it is not ours any more."""
        with self.transaction():
            changed = self._db.execute(
                "UPDATE rows SET state = ?, owner = NULL, finished_at = ?, record = ?, error = ?, detail = ? "
                "WHERE number = ? AND state = 'running' AND owner = ?",
                (state, time.time(), _to_json(record), error, detail, number, owner),
            ).rowcount
            return changed == 1

    def give_back(self, owner: str, state: State = "waiting", *numbers: int) -> int:
        """Rows that ran in a process (some of them) wait again, or are marked interrupted; how many."""
        only = f"AND number IN ({', '.join('?' * len(numbers))})" if numbers else ""
        with self.transaction():
            return self._db.execute(
                f"UPDATE rows SET state = ?, owner = NULL WHERE state = 'running' AND owner = ? {only}",
                (state, owner, *numbers),
            ).rowcount

    # Processes

    def enter(self, owner: str, pid: int, host: str) -> None:
        with self.transaction():
            self._db.execute("INSERT INTO processes VALUES (?, ?, ?, ?)", (owner, pid, host, time.time()))

    def leave(self, owner: str) -> None:
        with self.transaction():
            self._db.execute("DELETE FROM processes WHERE owner = ?", (owner,))

    def processes(self) -> list[dict[str, Any]]:
        return [dict(found) for found in self._db.execute("SELECT * FROM processes ORDER BY started_at")]

    def recover(self, alive: Iterable[str]) -> int:
        """Rows whose process is gone wait again; how many there were."""
        living = tuple(alive)
        marks = ", ".join("?" * len(living))
        with self.transaction():
            self._db.execute(f"DELETE FROM processes WHERE owner NOT IN ({marks})", living)
            return self._db.execute(
                "UPDATE rows SET state = 'waiting', owner = NULL "
                f"WHERE state = 'running' AND owner NOT IN ({marks})",
                living,
            ).rowcount


def file_system_of(folder: Path) -> str:
    """'ext4', 'nfs4', ...: of the mount that a folder lies in; '' where the system does not say."""
    where, best, kind = folder.resolve(), -1, ""
    for mount in psutil.disk_partitions(all=True):
        if where.is_relative_to(mount.mountpoint) and len(mount.mountpoint) >= best:
            best, kind = len(mount.mountpoint), mount.fstype
    return kind


def _row(found: sqlite3.Row) -> Row:
    values = dict(found)
    for name in AS_JSON:
        values[name] = json.loads(values[name]) if values[name] is not None else None
    return Row(**values)


def _to_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
