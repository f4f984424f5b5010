"""scope doctor: a line for each check, one exit code; its self-test leaves nothing behind."""

import json
import os

import pytest

from scope_cli.commands import doctor
from scope_cli.machine.checks import Check
from scope_cli.native import build, library

NAMES = ["python", "memory", "cache", "torch", "gpu", "compiler", "kernel", "model", "self-test"]


@pytest.fixture
def well(monkeypatch):
    """A machine on which all checks pass at once."""

    def use(**states):
        def looks(model, offline):
            for name in NAMES:
                check = Check(
                    name, states.get(name, "ok"), f"about {name}", f"mend {name}" * (name in states)
                )
                yield name, lambda check=check: check

        monkeypatch.setattr(doctor, "looks", looks)

    return use


def test_every_check_has_a_line_and_a_problem_is_an_exit_code(scope, well):
    well()
    said = scope("doctor")
    assert (said.code, said.stderr) == (0, "")
    assert [line.split()[:2] for line in said.stdout.splitlines()[:-1]] == [["ok", name] for name in NAMES]
    assert said.stdout.endswith("no problem found\n")
    well(gpu="note", cache="problem")
    said = scope("doctor")
    assert said.code == 1
    assert "problem  cache      about cache\n                    mend cache\n" in said.stdout
    assert said.stdout.endswith("1 problem\n")


def test_json_says_the_same(scope, well):
    well(cache="problem")
    said = scope("doctor", "--json")
    rows = json.loads(said.stdout)
    assert said.code == 1 and [row["name"] for row in rows] == NAMES
    assert rows[2] == {"name": "cache", "state": "problem", "said": "about cache", "todo": "mend cache"}


def test_offline_asks_no_server():
    assert [name for name, _ in doctor.looks("smollm2-135m", True)] == NAMES
    assert [name for name, _ in doctor.looks("smollm2-135m", False)] == [
        *NAMES[:3],
        "hub",
        "index",
        *NAMES[3:],
    ]


def test_the_self_test_writes_ten_tokens_evicts_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path / "cache"))
    check = doctor.self_test()
    assert check.state == "ok", check
    assert check.said.startswith("10 tokens, 5 evictions") and check.said.endswith("audit passed")
    assert os.environ["SCOPE_CACHE"] == str(tmp_path / "cache") and not (tmp_path / "cache").exists()


def test_the_self_test_says_when_the_cache_broke_its_promise(monkeypatch):
    from scope_cli.cache.cache import ScopeCache
    from scope_cli.events import Audit

    monkeypatch.setattr(ScopeCache, "audit", lambda *_: Audit(True, False, True, ("held too much",)))
    check = doctor.self_test()
    assert check.state == "problem" and "held too much" in check.said and "report" in check.todo


def test_a_model_that_is_not_there_is_told_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path))
    check = doctor.model_check("smollm2-135m")
    assert check.state == "note" and "scope models pull smollm2-135m" in check.todo


def test_random_weights_are_always_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path))
    assert doctor.model_check("random:tiny").state == "ok"


def test_a_folder_is_a_model_or_a_problem(tiny_folder, tmp_path):
    assert doctor.model_check(str(tiny_folder)).state == "ok"
    assert doctor.model_check(str(tmp_path)).state == "problem"


def test_without_a_compiler_the_kernel_is_missing_and_the_way_to_one_is_named(monkeypatch):
    monkeypatch.setattr(build, "compilers", lambda: iter(()))
    assert doctor.compiler().state == "note" and "ziglang" in doctor.compiler().todo
    monkeypatch.setattr(library, "library", lambda: None)
    monkeypatch.setattr(library, "why_not", lambda: "there is no C++ compiler")
    assert doctor.kernel().said == "not built: there is no C++ compiler"
    monkeypatch.setattr(library, "why_not", lambda: None)
    assert "SCOPE_NATIVE" in doctor.kernel().todo
