"""A peer of `scope bench` as a contender of gpu.py: a process of its own, begun anew for each job."""

import shlex
from dataclasses import asdict
from typing import Any

from scope_cli.measure.bench.contest import ask, started
from scope_cli.measure.bench.protocol import Account, Ids, Job, Loaded
from scope_cli.measure.child import Child

TIMEOUT_S = 900.0


class Apart:
    """`told` is the process's newest answer; "peak_bytes" in it are beside the weights."""

    def __init__(self, command: str) -> None:
        self.command = shlex.split(command)
        self.child: Child | None = None
        self.told: dict[str, Any] = {}

    def load(self, job: Job) -> Loaded:
        self.child = started(self.command, TIMEOUT_S)
        return Loaded(**self.ask("load", job=asdict(job)))

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        assert self.child is not None, "nothing was loaded"
        self.told = ask(self.child, op, **request)
        return self.told

    def read(self, ids: Ids) -> list[int]:
        return self.ask("read", ids=ids)["next"]

    def advance(self, ids: Ids) -> list[int]:
        return self.ask("advance", ids=ids)["next"]

    def step(self, count: int) -> tuple[float, Ids]:
        told = self.ask("step", count=count)
        return told["elapsed_s"], told["ids"]

    def account(self) -> Account:
        return Account(self.told["held_bytes"], self.told["read_bytes"], self.told["moved_bytes"])

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
