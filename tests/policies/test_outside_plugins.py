"""Plug-ins of another package: found, listed, checked and run like ours; broken ones end in one line."""

import json
import sys

import pytest

from scope_cli.policies import plugins

LOUDEST = '''
from dataclasses import dataclass
from typing import Annotated, ClassVar
from pydantic import Field
from scope_cli.policies.prefills.base import Prefill
from scope_cli.policies.scorers.base import Scorer
from scope_cli.policies.wrappers.base import Wrapper

@dataclass(frozen=True)
class Loudest(Scorer):
    """Tokens whose values are longest."""

    needs: ClassVar[str] = "values"
    cost: ClassVar[str] = "S D"
    times: Annotated[int, Field(ge=1)] = 3

    def score(self, view):
        return self.times * view.precise(view.values).norm(dim=-1)

@dataclass(frozen=True)
class Firsts(Prefill):
    """The first tokens of all."""

    def score(self, view):
        import torch
        return -torch.arange(view.prompt, dtype=torch.float32).expand(view.kv_heads, -1)

@dataclass(frozen=True)
class Nothing(Wrapper):
    """Changes nothing."""

@dataclass
class Thawed(Scorer):
    """Not frozen."""

@dataclass(frozen=True)
class Silent(Scorer):
    pass

@dataclass(frozen=True)
class Odd(Scorer):
    """An option of a type that nobody can check."""

    view: "nowhere.Thing" = None

class Other:
    """No scorer at all."""
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Write a package as pip would have installed it: name, source, entry points by group."""

    def forget():
        plugins.sources.cache_clear()
        for name in ("acme_plugins", "more_plugins"):
            sys.modules.pop(name, None)
        for key in list(plugins._registered):
            if key[1] in ("loudest", "firsts", "nothing"):
                del plugins._registered[key]

    def write(package, source, **groups):
        folder = tmp_path / "site" / package
        folder.mkdir(parents=True)
        (folder / f"{package}_plugins.py").write_text(source)
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = []
        for kind, entries in groups.items():
            lines.append(f"[scope_cli.{kind}]")
            lines += [f"{name} = {package}_plugins:{cls}" for name, cls in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(folder)
        forget()

    yield write
    monkeypatch.undo()
    forget()


@pytest.fixture
def acme(install):
    install(
        "acme",
        LOUDEST,
        scorers={"loudest": "Loudest"},
        prefills={"firsts": "Firsts"},
        wrappers={"nothing": "Nothing"},
    )


def test_they_are_listed_with_their_package(scope, acme):
    listed = scope("scorers")
    assert (listed.code, listed.stderr) == (0, "")
    assert "loudest\tTokens whose values are longest.\ttimes=3\tvalues\tS D\tacme\n" in listed.stdout
    assert all(line.endswith("\tscope") for line in listed.stdout.splitlines()[1:] if "loudest" not in line)
    assert {"firsts", "nothing"} <= {line.split("\t")[0] for line in scope("prefills").stdout.splitlines()}


def test_a_run_uses_them(scope, acme, tiny_folder, tmp_path):
    out = tmp_path / "o.txt"
    argv = ["generate", "Once upon a time, long ago", "--model", tiny_folder, "-o", out, "--ignore-eos"]
    argv += ["--budget", "8", "--max-new-tokens", "24", "--scorer", "loudest", "--prefill", "firsts"]
    argv += ["--prefill-budget", "12", "--set", "prefill.window=4", "--set", "prefill.wrap=[nothing]"]
    ran = scope(*argv)
    assert ran.code == 0, ran.stderr
    record = json.loads(out.with_name("o.txt.run.json").read_text())
    assert record["status"] == "finished" and record["results"][0]["audit"]["problems"] in ([], ())
    assert record["profile"]["decode"]["scorer"] == "loudest"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("decode.scorer={name: loudest, times: 0}", "times): is 0; it must be at least 1 (default 3)"),
        ("decode.scorer={name: loudest, tims: 2}", "no such key; did you mean times?"),
        ("decode.scorer=loudes", "did you mean loudest?"),
    ],
)
def test_their_options_are_checked(scope, acme, typed, words):
    ran = scope("generate", "hi", "--set", typed)
    assert (ran.code, ran.stdout) == (2, "") and words in ran.stderr


BROKEN = {
    "Missing": "cannot be loaded: AttributeError",
    "Other": "is no subclass of scope_cli.policies.scorers.base.Scorer",
    "Thawed": "is no frozen dataclass",
    "Silent": "has no docstring",
    "Odd": "has an option of a type that cannot be checked",
}


@pytest.mark.parametrize("cls", BROKEN)
def test_a_broken_one_is_one_error_line_and_does_not_hide_the_others(scope, install, cls):
    install("acme", LOUDEST, scorers={"broken": cls, "loudest": "Loudest"})
    for argv in (["scorers"], ["generate", "hi", "--scorer", "broken"]):
        ran = scope(*argv)
        first, hint = ran.stderr.splitlines()
        assert ran.code == 2 and BROKEN[cls] in first and "acme" in first, ran.stderr
        assert first.startswith("error: ") and hint.startswith("hint: update acme or uninstall it")
    assert "loudest" in scope("scorers").stdout
    assert scope("profiles", "check", "default").code == 0, "who does not use it does not meet it"


def test_a_package_that_breaks_when_it_is_imported_is_told_in_one_line(scope, install):
    install("acme", "import nowhere_at_all", scorers={"loudest": "Loudest"})
    ran = scope("generate", "hi", "--scorer", "loudest")
    assert ran.code == 2 and "ModuleNotFoundError: No module named 'nowhere_at_all'" in ran.stderr


def test_two_of_one_name_are_refused_by_name(scope, install):
    install("acme", LOUDEST, scorers={"attention": "Loudest", "loudest": "Loudest"})
    ran = scope("generate", "hi", "--scorer", "attention")
    assert ran.code == 2 and "scope and acme both offer 'attention'" in ran.stderr
    install("more", LOUDEST.replace("acme", "more"), scorers={"loudest": "Loudest"})
    ran = scope("generate", "hi", "--scorer", "loudest")
    assert ran.code == 2 and "both offer 'loudest'" in ran.stderr
    assert ran.stderr.splitlines()[1].startswith("hint: uninstall")
