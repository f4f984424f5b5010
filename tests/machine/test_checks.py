"""What `scope doctor` asks of a machine: of one that is well, and of one that is not."""

import http.server
import threading
from contextlib import contextmanager

import pytest

from scope_cli.machine import checks, memory


@contextmanager
def server(status):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{it.server_port}/simple"
        it.shutdown()


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_a_server_that_says_anything_is_there(status, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with server(status) as url:
        check = checks.reachable("hub", url.replace("user:secret@", ""), "do this")
    assert (check.state, check.said, check.todo) == ("ok", "127.0.0.1 answers", "")


def test_no_password_of_an_index_is_shown(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    check = checks.reachable("index", "http://user:secret@127.0.0.1:9/simple", "do this")
    assert check.state == "note" and "secret" not in check.said + check.todo
    assert check.todo.startswith("do this")


def test_the_index_is_the_one_of_pip(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.test/simple")
    assert checks.index_url() == "https://mirror.test/simple"


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checks.hub().state == "note" and "HF_HUB_OFFLINE" in checks.hub().said


def test_an_old_python_is_a_problem():
    assert checks.python((3, 11)).state == "ok"
    assert checks.python((3, 10)).state == "problem"


def test_a_cache_folder_that_is_none_is_a_problem_with_a_way_out(tmp_path):
    assert checks.cache(tmp_path / "new").state == "ok"
    (tmp_path / "file").write_text("")
    check = checks.cache(tmp_path / "file")
    assert check.state == "problem" and "SCOPE_CACHE" in check.todo


def test_a_full_disk_is_a_problem(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": checks.ROOM - 1})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    check = checks.cache(tmp_path)
    assert check.state == "problem" and "scope models rm" in check.todo


def cgroup(tmp_path, limit, usage):
    own = tmp_path / "own"
    own.write_text("0::/box\n")
    (tmp_path / "box").mkdir()
    for name, value in (("memory.max", limit), ("memory.current", usage), ("memory.stat", "inactive_file 0")):
        (tmp_path / "box" / name).write_text(f"{value}\n")
    return own


def test_memory_names_what_limits_it(tmp_path, monkeypatch):
    own = cgroup(tmp_path, 2**30, 2**29)
    real = memory.cgroup_free_bytes
    monkeypatch.setattr(checks, "cgroup_free_bytes", lambda root: real(tmp_path, own))
    check = checks.memory()
    assert check.state == "problem"
    assert check.said == "512.00 MiB free within the limit of the container (cgroup)"
    assert "raise the container's limit" in check.todo
    (tmp_path / "box" / "memory.max").write_text("max\n")
    assert "of the machine's" in checks.memory().said


def test_a_gpu_that_pytorch_cannot_use_is_a_problem(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(checks.nvidia, "names_and_drivers", lambda: [("H100", "550.1")])
    monkeypatch.setattr(torch.version, "cuda", None)
    assert checks.gpu().state == "problem" and "without CUDA" in checks.gpu().said
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert checks.gpu().state == "problem" and "driver 550.1" in checks.gpu().said
    monkeypatch.setattr(checks.nvidia, "names_and_drivers", list)
    assert checks.gpu().state == "ok"


def test_a_torch_that_does_not_import_is_a_problem(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    assert checks.torch().state == "problem"


def test_a_check_that_fails_is_a_problem_and_no_traceback():
    check = checks.checked("cache", lambda: 1 / 0)
    assert (check.state, check.said) == ("problem", "ZeroDivisionError: division by zero")
