"""Which of torch and transformers a task imports: each in a process of its own, forked from one without them.

`python -m tests.helpers.imported` is that one: tasks as JSON in, what became of them as JSON out. A task is a
command line, or `import` and a module.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "transformers"}


class Ended(NamedTuple):
    """How a task ended: its exit code (0 for an import), which heavy modules were there, what it said."""

    code: int
    heavy: list[str]
    said: str


def imported_by(tasks: Iterable[str]) -> dict[str, Ended]:
    """Each command line has a folder of its own with a text T, a folder D with a text and an empty one E."""
    command = [sys.executable, "-m", "tests.helpers.imported"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, input=json.dumps(list(tasks)), capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    return {task: Ended(*ended) for task, ended in json.loads(ran.stdout).items()}


def _forked(task: str) -> Ended:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        report, back = os.pipe()
        if not os.fork():
            os.close(report)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            code = 70  # what ends in another way than by its own end
            try:
                code = _run(task, Path(folder))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os.write(back, json.dumps([code, sorted(HEAVY & set(sys.modules))]).encode())
                os._exit(0)
        os.close(back)
        with os.fdopen(report, "rb") as pipe:
            code, heavy = json.loads(pipe.read())
        os.wait()
        said.seek(0)
        return Ended(code, heavy, said.read().decode())


def _run(task: str, folder: Path) -> int:
    words = task.split()
    if words[:1] == ["import"]:
        __import__(words[1])
        return 0
    os.chdir(folder)
    for name in ("D", "E"):
        Path(name).mkdir()
    for name in ("T", "D/a.txt"):
        Path(name).write_text("Some text.")
    return cli.main(words)


if __name__ == "__main__":
    tasks = json.load(sys.stdin)
    from scope_cli import cli, commands
    from scope_cli.models import opening

    # What most of them import is imported once.
    for found in pkgutil.walk_packages(commands.__path__, "scope_cli.commands."):
        importlib.import_module(found.name)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        cli.main(["profiles", "show"])
    opening.has_gpu, opening.platform.system = lambda: False, lambda: "Linux"
    assert not HEAVY & set(sys.modules)
    json.dump({task: _forked(task) for task in tasks}, sys.stdout)
