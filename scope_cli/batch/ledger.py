"""OUT/scope.db: the job, every prompt and its state; what is committed here is true.

SQLite in WAL mode, where the disk can do that. A row is `waiting`, `running`, `done`, `failed` or
`interrupted`. Several processes may share a ledger: taking a row is one transaction. SQLite has no checksums,
so what is kept as JSON carries one of its own: a byte that a disk has turned is noticed.
"""

import json
import re
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import psutil

from scope_cli.console.safe import as_json, printable
from scope_cli.errors import ScopeError, UsageError

State = Literal["waiting", "running", "done", "failed", "interrupted"]
STATES: tuple[State, ...] = ("waiting", "running", "done", "failed", "interrupted")
NAME = "scope.db"
FORMAT = 1  # PRAGMA user_version
DAMAGED = "what the ledger kept of it is damaged"
DAMAGE = re.compile("malformed|no such|not a database|syntax")  # SQLite's words for a schema it cannot follow
SEAL = re.compile("[0-9a-f]{8} ")  # a checksum before JSON
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
KINDS = get_type_hints(Row) | dict.fromkeys(AS_JSON, str | None) | {"state": str}


class Ledger:
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
            raise UsageError(
                f"cannot use {self.path}: {error}",
                "is the folder writable, and the file a ledger of scope batch?",
            ) from error

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
                "finished texts are beside it; another --output-dir begins anew",
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
            "the same command begins anew",
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
            f"cannot write {self.path}: {error}", "what is done stays done; the same command goes on"
        )

    def _damaged(self, what: str, way_out: str = "another --output-dir begins anew") -> UsageError:
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

    # The job

    def get(self, key: str, default: Any = None) -> Any:
        found = self._read("SELECT value FROM job WHERE key = ?", (key,))
        return self._unsealed(found[0][0], f"its {key}") if found else default

    def set(self, **values: Any) -> None:
        """Facts about the job; inside a transaction with whatever belongs together."""
        self._db.executemany(
            "INSERT INTO job VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [(key, sealed(value)) for key, value in values.items()],
        )

    def forget(self) -> None:
        """Begin again from nothing; inside a transaction with what takes its place."""
        for table in ("job", "groups", "rows"):
            self._run(f"DELETE FROM {table}")

    def _unsealed(self, text: Any, what: str) -> Any:
        try:
            return unsealed(text)
        except ValueError as error:
            raise self._damaged(f"{what} cannot be read", "--restart begins anew") from error

    # Groups: how many lanes of which size

    def groups(self) -> list[dict[str, Any]]:
        plans = self._read("SELECT plan FROM groups ORDER BY number")
        return [self._unsealed(plan, "a group of prompts") for (plan,) in plans]

    def add_groups(self, plans: Iterable[dict[str, Any]]) -> None:
        self._db.executemany(
            "INSERT INTO groups VALUES (?, ?)", [(plan["number"], sealed(plan)) for plan in plans]
        )

    def drop_empty_groups(self) -> None:
        self._run(
            "DELETE FROM groups WHERE number NOT IN "
            "(SELECT group_number FROM rows WHERE group_number NOT NULL)"
        )

    # Rows

    def rows(self, *states: State, bulky: bool = False) -> list[Row]:
        """Every row (of some states), in the order of the inputs; `bulky`: with its prompt."""
        names = ", ".join(name if bulky or name != "prompt_ids" else "NULL AS prompt_ids" for name in COLUMNS)
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        return [
            _row(found) for found in self._read(f"SELECT {names} FROM rows {where} ORDER BY number", states)
        ]

    def row(self, number: int) -> Row:
        return _row(self._read("SELECT * FROM rows WHERE number = ?", (number,))[0])

    def mend(self) -> list[str]:
        """Rows that a disk has damaged are as good as changed: they are run again. Their ids."""
        damaged = [row for row in self.rows() if row.error == DAMAGED]
        if damaged:
            with self.transaction():
                for row in damaged:
                    self.put(Row(row.number, row.id, row.source, row.output, content_hash="", attempts=1))
        return [row.id for row in damaged]

    def counts(self) -> dict[State, int]:
        found = dict(map(tuple, self._read("SELECT state, count(*) FROM rows GROUP BY state")))
        return {state: found.get(state, 0) for state in STATES}

    def tokens_left(self, usual: float | None) -> float:
        """Of the rows that have not ended: as long as they may get, or as long as others usually were."""
        ((tokens,),) = self._read(
            "SELECT sum(min(planned, ?)) FROM rows WHERE state IN ('waiting', 'running', 'interrupted')",
            (usual if usual is not None else 2**62,),
        )
        return tokens or 0

    def put(self, row: Row) -> None:
        """Add a row, or change the one with its number. No other row ever goes for it: its id and its output
        are nobody else's, or sqlite3.IntegrityError is raised.
        """
        values = {name: getattr(row, name) for name in COLUMNS}
        values |= {name: _to_json(values[name]) for name in AS_JSON}
        marks = ", ".join(f":{name}" for name in COLUMNS)
        new = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS)
        self._run(
            f"INSERT INTO rows ({', '.join(COLUMNS)}) VALUES ({marks}) "
            f"ON CONFLICT (number) DO UPDATE SET {new}",
            values,
        )

    def change(self, number: int, **values: Any) -> None:
        values |= {name: _to_json(values[name]) for name in AS_JSON if name in values}
        names = ", ".join(f"{name} = :{name}" for name in values)
        self._run(f"UPDATE rows SET {names} WHERE number = :number", {**values, "number": number})

    def remove(self, number: int) -> None:
        self._run("DELETE FROM rows WHERE number = ?", (number,))

    # Taking rows, and giving them back

    def take(self, owner: str, group: int, profile_hash: str, number: int | None = None) -> Row | None:
        """The next row of a group, now running here, or None where none waits; `number`: that row."""
        which, value = ("group_number = ?", group) if number is None else ("number = ?", number)
        with self.transaction():
            found = self._read(
                f"SELECT number FROM rows WHERE {which} AND state IN ('waiting', 'interrupted') "
                "ORDER BY turn LIMIT 1",
                (value,),
            )
            if not found:
                return None
            self._run(
                "UPDATE rows SET state = 'running', owner = ?, attempts = attempts + 1, profile_hash = ?, "
                "started_at = ?, finished_at = NULL, error = NULL, detail = NULL, record = NULL "
                "WHERE number = ?",
                (owner, profile_hash, time.time(), found[0]["number"]),
            )
            return self.row(found[0]["number"])

    def waiting_in(self, group: int) -> int:
        ((count,),) = self._read(
            "SELECT count(*) FROM rows WHERE group_number = ? AND state IN ('waiting', 'interrupted')",
            (group,),
        )
        return count

    def end(self, number: int, owner: str, state: State, record: dict[str, Any], error: str | None = None,
            detail: str | None = None) -> bool:  # fmt: skip
        """A row that runs here has ended; False where it is not ours any more."""
        with self.transaction():
            changed = self._run(
                "UPDATE rows SET state = ?, owner = NULL, finished_at = ?, record = ?, error = ?, detail = ? "
                "WHERE number = ? AND state = 'running' AND owner = ?",
                (state, time.time(), _to_json(record), error, detail, number, owner),
            ).rowcount
            return changed == 1

    def withdraw(self, number: int, error: str) -> None:
        """A row that was done has failed after all: its text did not get its name."""
        with self.transaction():
            self._run(
                "UPDATE rows SET state = 'failed', error = ? WHERE number = ? AND state = 'done'",
                (error, number),
            )

    def give_back(self, owner: str, state: State = "waiting", *numbers: int) -> int:
        """Rows that ran in a process (some of them) wait again, or are marked interrupted; how many."""
        only = f"AND number IN ({', '.join('?' * len(numbers))})" if numbers else ""
        with self.transaction():
            return self._run(
                f"UPDATE rows SET state = ?, owner = NULL WHERE state = 'running' AND owner = ? {only}",
                (state, owner, *numbers),
            ).rowcount

    # Processes

    def enter(self, owner: str, pid: int, host: str) -> None:
        with self.transaction():
            self._run("INSERT INTO processes VALUES (?, ?, ?, ?)", (owner, pid, host, time.time()))

    def leave(self, owner: str) -> None:
        with self.transaction():
            self._run("DELETE FROM processes WHERE owner = ?", (owner,))

    def processes(self) -> list[dict[str, Any]]:
        return [dict(found) for found in self._read("SELECT * FROM processes ORDER BY started_at")]

    def recover(self, alive: Iterable[str]) -> int:
        """Rows whose process is gone wait again; how many there were."""
        living = tuple(alive)
        marks = ", ".join("?" * len(living))
        with self.transaction():
            self._run(f"DELETE FROM processes WHERE owner NOT IN ({marks})", living)
            return self._run(
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
    """As it was put; one that cannot be read has failed, and the reason says so."""
    values = dict(found)
    try:
        for name, value in values.items():
            if not isinstance(value, KINDS[name]) or (name == "state" and value not in STATES):
                raise ValueError(name)
            if isinstance(value, str):
                value.encode()
        values |= {name: unsealed(values[name]) for name in AS_JSON if values[name] is not None}
    except ValueError:
        name, source, output = (printable(str(values[key])) for key in ("id", "source", "output"))
        return Row(values["number"], name, source, output, content_hash="", state="failed", error=DAMAGED)
    return Row(**values)


def _to_json(value: Any) -> str | None:
    return None if value is None else sealed(value)


def sealed(value: Any) -> str:
    """JSON with its checksum in front."""
    text = as_json(value)
    return f"{zlib.crc32(text.encode()):08x} {text}"


def unsealed(text: Any) -> Any:
    """Raises ValueError where not every byte is as it was written; JSON alone is what older ledgers hold."""
    if not isinstance(text, str):
        raise ValueError("no text")
    if SEAL.match(text):
        seal, text = text[:8], text[9:]
        if f"{zlib.crc32(text.encode()):08x}" != seal:
            raise ValueError("the checksum differs")
    return json.loads(text)
