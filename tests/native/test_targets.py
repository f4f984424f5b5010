"""The library compiles for machines that nobody here has: `make test-targets` brings the compiler."""

import platform
import sys

import pytest

from scope_cli.native import build

pytest.importorskip("ziglang", reason="needs ziglang, which compiles for other machines")
TARGETS = {
    "aarch64-linux-gnu": "aarch64",
    "aarch64-macos": "arm64",
    "x86_64-macos": "x86_64",
    "x86_64-windows-gnu": "AMD64",
}


@pytest.mark.parametrize("target", TARGETS)
def test_it_compiles_and_links_for(target, tmp_path, monkeypatch):
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", target]
    monkeypatch.setattr(build, "compilers", lambda: iter([compiler]))
    monkeypatch.setattr(platform, "machine", lambda: TARGETS[target])
    build.build(tmp_path / "library", build.all_sets())
    assert (tmp_path / "library").is_file()
