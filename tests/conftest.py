"""The user's door, a tiny model in a folder, and quiet defaults."""

import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anybody imports triton
os.environ.setdefault("SCOPE_NATIVE", "all")  # one library, in which tests choose the instructions
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # before anybody imports the compiler, which reads it once
    # What is compiled for one kind of CPU must not be found by another, as in machine/setup.py.
    kind = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"scope-tests-compiled-{kind}")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `make test &` in a script
    signal.signal(signal.SIGINT, signal.default_int_handler)

from scope_cli import cli
from tests.helpers.cost import SLOW, function_of
from tests.helpers.lanes import models, named  # noqa: F401  fixtures, as the next
from tests.helpers.native_library import native  # noqa: F401
from tests.helpers.tiny import tiny_model, tiny_tokenizer

# Shared machines are slow at times, and stand still for seconds.
settings.register_profile("scope", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("scope")


# What computes with a CPU's vector instructions; `make test-avx2` runs it as an older CPU would.
# Files and folders; compiled steps are for GPUs, and the native library's tests try each kind by themselves.
NUMERIC = (
    "cache/test_cache.py",
    "engine/test_decode.py",
    "engine/test_lanes.py",
    "engine/test_replay.py",
    "engine/test_sampling.py",
    "models/test_packed.py",
    "models/test_selftest.py",
    "native/test_step.py",
    "native/test_told.py",
    "policies/prefills/test_methods.py",
    "policies/scorers/test_behind_the_rotation.py",
    "policies/scorers/test_formulas.py",
    "policies/test_received.py",
    "policies/test_rope.py",
    "test_real_model.py",
    "test_same_tokens.py",
)


# What takes longest begins first. Such a file shares a model or compiled code: one process runs all of it.
TOGETHER = (
    "test_real_model.py",
    "engine/test_step.py",
    "batch/test_kill.py",
    "commands/test_profile.py",
    "measure/evaluate/test_recall.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = set(SLOW.read_text().split())
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        above = {str(part) for part in (path, *path.parents)}
        if not above.isdisjoint(NUMERIC):
            item.add_marker(pytest.mark.numeric)
        if str(path) in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(str(path)))
        if not slow.isdisjoint(above | {function_of(item.nodeid)}):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_sessionstart() -> None:
    """A kind of CPU that was asked for and not got would test nothing."""
    asked, found = os.environ.get("ATEN_CPU_CAPABILITY"), torch.backends.cpu.get_cpu_capability()
    if asked and asked.upper() != found:
        pytest.exit(f"ATEN_CPU_CAPABILITY={asked} has no effect: PyTorch computes with {found}", 1)


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def scope(capfd, monkeypatch):
    """Run one command line through `cli.main`: `scope("generate", "hi")`."""

    def run(*argv: str) -> Result:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        code = cli.main([str(part) for part in argv])
        assert before == {number: signal.getsignal(number) for number in before}, "a handler was left behind"
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    monkeypatch.setenv("COLUMNS", "200")
    return run


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny random Llama with a byte-level tokenizer, as a model folder."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
