"""Jobs in, Results out: one process for each, so that no peak hides behind another."""

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict

from scope_cli.errors import ScopeError
from scope_cli.machine.setup import as_the_user_has_it
from scope_cli.measure.child import Child, NoAnswer
from scope_cli.measure.profiling.result import Result, from_dict
from scope_cli.measure.profiling.worker import Measurement

LAST_WORDS = 4000  # characters of a crashed worker's stderr that are shown
WORKER = (sys.executable, "-m", "scope_cli.measure.profiling.worker")


def run_job(job: Measurement, say: Callable[[str, float], None]) -> Result:
    """Measure in a process of its own; what the user can put right there is raised here as well.

    `say` is told what goes on, and which share of the output is written.
    """
    with closing(Child(WORKER, as_the_user_has_it())) as child:
        try:
            answer = child.ask(asdict(job), lambda told: say(told["progress"], told.get("part", 0.0)))
        except NoAnswer as error:
            print(child.words()[-LAST_WORDS:], file=sys.stderr)
            killed = error.code == -9
            raise ScopeError(
                f"{job.label}: the process that measured it {'was killed' if killed else error}",
                "it may have run out of memory: scope profile --plan"
                if killed
                else "its last words are above",
            ) from error
        finally:
            child.kill()
    if "error" in answer:
        raise WorkerError(answer["error"], answer["hint"], answer["exit_code"])
    return from_dict(answer["result"])


class WorkerError(ScopeError):
    """A ScopeError of the worker, with its exit code."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
