"""Jobs in, Results out: one process for each, so that no peak hides behind another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import scope_cli
from scope_cli.errors import ScopeError
from scope_cli.measure.profiling.result import Result, from_dict
from scope_cli.measure.profiling.worker import Job

LAST_WORDS = 4000  # characters of a crashed worker's stderr that are shown


def run_job(job: Job, say: Callable[[str, float], None]) -> Result:
    """Measure in a process of its own; what the user can put right there is raised here as well.

    `say` is told what goes on, and which share of the output is written.
    """
    folder = str(Path(scope_cli.__file__).parent.parent)
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with TemporaryFile() as words:
        process = subprocess.Popen(
            [sys.executable, "-m", "scope_cli.measure.profiling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env=env,
            text=True,
            encoding="utf-8",
        )
        try:
            said = _listen(process, job, say)
        finally:
            process.kill()
            process.wait()
        if said is not None:
            return from_dict(said)
        words.seek(0)
        print(words.read().decode(errors="replace")[-LAST_WORDS:], file=sys.stderr)
    code = process.returncode
    killed = code == -9
    raise ScopeError(
        f"{job.label}: the process that measured it {'was killed' if killed else f'ended with code {code}'}",
        "it may have run out of memory: scope profile --plan" if killed else "its last words stand above",
    )


def _listen(
    process: subprocess.Popen[str], job: Job, say: Callable[[str, float], None]
) -> dict[str, Any] | None:
    """The result that the worker tells; None where it ends without one."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(asdict(job), allow_nan=False))
        process.stdin.close()
    except BrokenPipeError:  # it crashed before it read
        return None
    result = None
    for line in process.stdout:
        told = json.loads(line)
        if "progress" in told:
            say(told["progress"], told.get("part", 0.0))
        elif "error" in told:
            raise WorkerError(told["error"], told["hint"], told["exit_code"])
        else:
            result = told["result"]
    process.wait()
    return result


class WorkerError(ScopeError):
    """A ScopeError of the worker, with its exit code."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
