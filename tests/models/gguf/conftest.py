"""A cache of its own for each test: what is converted here meets nobody else's."""

import pytest


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    folder = tmp_path / "scope-cache"
    monkeypatch.setenv("SCOPE_CACHE", str(folder))
    return folder
