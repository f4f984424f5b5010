"""The rows of a job on a Ray cluster: workers that each hold the model and run lanes of a group.

The ledger, the outputs and the desk stay with this process. A worker is told which group it works on, is
handed tasks one by one, and gives back events in small batches. When one dies, its rows wait again and
another takes its place.
"""

import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from scope_cli.batch.desk import Desk
from scope_cli.batch.fit import Memory
from scope_cli.batch.groups import Group
from scope_cli.batch.local import Trouble, halve_lanes
from scope_cli.batch.ray_worker import Begin, KeptRow, Told, Worker
from scope_cli.batch.work import Task
from scope_cli.errors import ScopeError, UsageError
from scope_cli.events import Failed, Finished
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schema import ModelSettings
from scope_cli.units import counted

if TYPE_CHECKING:
    from scope_cli.models.model import OpenedModel

MOST_DEATHS = 3  # a row whose workers died so often is not given to another
KNOCK_S = 10.0
STORE_BYTES = 128 * 2**20  # of a cluster that is made for the run: tasks and events are small


@dataclass
class Hand:
    """What the driver knows of a worker."""

    actor: Any
    name: str
    pending: Any  # the reply that is awaited; the first one says that it is there
    group: Group | None = None
    wants: int = 0
    told_last: bool = False  # that no more tasks of its group come
    replied: bool = False  # it was alive at least once
    holds: set[int] = field(default_factory=set)  # rows
    alone: deque[int] = field(default_factory=deque)  # rows to be tried one at a time


class RayEngine:
    """Workers on a cluster; a local one is made for the run where no address is given."""

    def __init__(
        self,
        opened: "OpenedModel",
        model: ModelSettings,
        offline: bool,
        address: str | None,
        workers: int | None,
        lanes: int = 1,
    ) -> None:
        self._ray = import_ray()
        self._model, self._offline, self._lanes = model, offline, lanes
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._connect(address or os.environ.get("RAY_ADDRESS"), workers)
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"no Ray cluster at {address}: {str(error).strip().partition(chr(10))[0]}",
                "without --ray-address a local one is started",
            ) from error
        finally:  # Ray has its own idea of SIGTERM
            for number, handler in handlers.items():
                signal.signal(number, handler)
        resources = self._ray.cluster_resources()
        self._on_gpu = resources.get("GPU", 0) >= 1
        self._workers = workers or int(resources["GPU" if self._on_gpu else "CPU"])
        self._begun = 0
        self._deaths: dict[int, int] = {}
        self._stillborn = 0
        self._groups: dict[int, Group] = {}
        self._hands = [self._hire()]
        first = self._asked(self._hands[0].pending)
        self._free_bytes: int = first["free_bytes"]
        self.opened = replace(
            opened, device=first["device"], dtype=first["dtype"], weight_bytes=first["weight_bytes"]
        )

    def _connect(self, address: str | None, workers: int | None) -> None:
        quiet = {"log_to_driver": False, "configure_logging": False}
        if address is not None:
            knock(address)
            with redirect_stdout(sys.stderr):  # Ray likes to talk
                self._ray.init(address=address, **quiet)
            return
        cores = max(os.cpu_count() or 1, workers or 1)
        local = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        with redirect_stdout(sys.stderr):
            self._ray.init(address="local", num_cpus=cores, **local, **quiet)

    def free_bytes(self) -> int:
        """Of the first worker, before it reads the weights."""
        return self._free_bytes

    def slots(self, settings: LoadedProfile) -> tuple[LoadedProfile, str | None]:
        """As the first worker finds them: a job has the same in all of them."""
        return self._asked(self._hands[0].actor.slots.remote(settings))

    def measure(self, settings: LoadedProfile, prompt_tokens: int, new_tokens: int) -> Memory:
        """As the first worker does; the others are taken to be like it."""
        return self._asked(self._hands[0].actor.measure.remote(settings, prompt_tokens, new_tokens))

    def _asked(self, answer: Any) -> Any:
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            raise ScopeError(
                f"a Ray worker cannot start: {cause_of(error)}", "are scope and the model there?"
            ) from error

    def _hire(self) -> Hand:
        worker = self._ray.remote(Worker)
        needs = {"num_gpus": 1} if self._on_gpu else {"num_cpus": 1}
        self._begun += 1
        actor = worker.options(**needs).remote(self._model, self._offline, self._lanes)
        return Hand(actor, f"worker {self._begun}", pending=actor.describe.remote())

    def close(self) -> None:
        self._ray.shutdown()

    def run(self, desk: Desk, groups: list[Group], stop: Callable[[], bool]) -> None:
        """Every row that waits, given out one by one to whoever has a lane free."""
        while len(self._hands) < self._workers:
            self._hands.append(self._hire())
        self._groups = {group.number: group for group in groups}
        while True:
            for hand in self._hands:
                if hand.pending is None:
                    self._give(hand, desk, stop())
            pending = {hand.pending: hand for hand in self._hands if hand.pending is not None}
            if not pending:
                return
            ready, _ = self._ray.wait(list(pending), num_returns=1, timeout=0.5)
            for reply in ready:
                self._take(pending[reply], reply, desk)

    def _give(self, hand: Hand, desk: Desk, stopping: bool) -> None:
        """The next request to a worker that waits for one; none where there is nothing to do."""
        begin = None
        if hand.group is None:
            waiting = [] if stopping else [group for group in self._groups.values() if desk.waits(group)]
            if hand.alone and not stopping:
                waiting = [self._groups[desk.ledger.row(hand.alone[0]).group_number or 0]]
            if not waiting:
                return
            hand.group, hand.wants, hand.told_last = waiting[0], waiting[0].lanes, False
            if hand.group.number not in {group.number for group in desk.groups_run}:
                desk.groups_run.append(hand.group)
            begin = Begin(desk.profile, hand.group, desk.keeper is not None, desk.checkpoint_every)
        tasks: list[Task] = []
        if hand.alone and not hand.holds:
            task = desk.take(hand.group, hand.alone.popleft())
            tasks, last = [task] if task else [], True
        else:
            while len(tasks) < hand.wants and not stopping:
                task = desk.take(hand.group)
                if task is None:
                    break
                tasks.append(task)
            last = bool(hand.alone) or (len(tasks) < hand.wants and not desk.waits(hand.group))
        tasks = [carrying_its_state(task) for task in tasks]
        hand.holds |= {task.number for task in tasks}
        hand.pending = hand.actor.exchange.remote(begin, tasks, last and not hand.told_last, stopping)
        hand.told_last |= last

    def _take(self, hand: Hand, reply: Any, desk: Desk) -> None:
        """What a worker has told, or that it died."""
        hand.pending = None
        try:
            told: Told | dict[str, Any] = self._ray.get(reply)
        except self._ray.exceptions.RayError as error:
            self._replace(hand, desk, cause_of(error))
            return
        hand.replied = True
        if not isinstance(told, Told):  # its first answer
            return
        hand.wants = told.wants
        for line in told.lines:
            desk.board.say(f"{hand.name}: {line}")
        for event in told.events:
            if isinstance(event, KeptRow):
                desk.keep(event.number, event.state)
                continue
            desk.receive(event)
            if isinstance(event, Finished | Failed):
                hand.holds.discard(event.prompt)
        if told.ended:
            group, hand.group = hand.group, None
            assert group is not None, "it was told which"
            rows = sorted(hand.holds & desk.running.keys())
            hand.holds.clear()
            if told.trouble is not None:
                self._after_trouble(hand, group, rows, desk, told.trouble)
            else:  # handed over after its last lane had ended
                desk.put_back(rows)

    def _after_trouble(self, hand: Hand, group: Group, rows: list[int], desk: Desk, trouble: Trouble) -> None:
        """As on one machine: fewer lanes, one row to blame, or several that are tried one at a time."""
        if trouble.out_of_memory and group.lanes > 1:
            desk.put_back(rows)
            if self._groups[group.number].lanes >= group.lanes:
                self._groups[group.number] = halve_lanes(desk, group)
        elif not rows:
            raise RuntimeError(f"a worker broke off with no row to blame:\n{trouble.detail}")
        elif len(rows) == 1:
            desk.fail(rows[0], trouble.reason, trouble.detail)
        else:
            desk.put_back(rows)
            desk.board.say(f"{hand.name}: {trouble.reason}: trying its {len(rows)} prompts one by one")
            hand.alone.extend(rows)

    def _replace(self, hand: Hand, desk: Desk, why: str) -> None:
        """A worker is gone: its rows wait for the others, and another takes its place."""
        rows = sorted(hand.holds & desk.running.keys())
        self._stillborn = 0 if hand.replied else self._stillborn + 1
        if self._stillborn >= MOST_DEATHS:
            raise ScopeError(f"Ray workers die before they have begun: {why}", "`ray status` tells more")
        for number in rows:
            self._deaths[number] = self._deaths.get(number, 0) + 1
        lost = [number for number in rows if self._deaths[number] >= MOST_DEATHS]
        for number in lost:
            desk.fail(number, f"its worker died {MOST_DEATHS} times: {why}")
        back = [number for number in rows if number not in lost]
        desk.put_back(back)
        again = f"; {counted(len(back), 'prompt')} wait{'s' * (len(back) == 1)} again" if back else ""
        desk.board.say(f"{hand.name} died{again}: {why}")
        self._hands[self._hands.index(hand)] = self._hire()


def carrying_its_state(task: Task) -> Task:
    """For a worker that may not see our files."""
    if task.work.state is None:
        return task
    return replace(task, work=replace(task.work, state=KeptRow(task.number, task.work.state())))


def import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(
            "--engine ray needs Ray, which is not there", "pip install 'scope-cli[ray]'"
        ) from error
    return ray


def knock(address: str) -> None:
    """Raises OSError where nobody listens; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def cause_of(error: Exception) -> str:
    """Of a traceback the last line says most, of another message the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if any("ray::" in line for line in lines[:2]) else lines[0]
