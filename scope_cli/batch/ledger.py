"""OUT/scope.db: the job, every prompt and its state; what is committed here is true.

A row is `waiting`, `running`, `done`, `failed` or `interrupted`. Several processes may share a ledger: taking
a row is one transaction.
"""

import time
from collections.abc import Iterable
from typing import Any

from scope_cli.batch.database import Database
from scope_cli.batch.rows import (
    AS_JSON,
    COLUMNS,
    DAMAGED,
    STATES,
    Row,
    State,
    row_of,
    sealed,
    to_json,
    unsealed,
)


class Ledger(Database):
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
            raise self._damaged(f"{what} cannot be read", "--restart starts over") from error

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
            row_of(found) for found in self._read(f"SELECT {names} FROM rows {where} ORDER BY number", states)
        ]

    def row(self, number: int) -> Row:
        return row_of(self._read("SELECT * FROM rows WHERE number = ?", (number,))[0])

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
        values |= {name: to_json(values[name]) for name in AS_JSON}
        marks = ", ".join(f":{name}" for name in COLUMNS)
        new = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS)
        self._run(
            f"INSERT INTO rows ({', '.join(COLUMNS)}) VALUES ({marks}) "
            f"ON CONFLICT (number) DO UPDATE SET {new}",
            values,
        )

    def change(self, number: int, **values: Any) -> None:
        values |= {name: to_json(values[name]) for name in AS_JSON if name in values}
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
                (state, time.time(), to_json(record), error, detail, number, owner),
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
