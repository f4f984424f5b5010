"""What the pages say is what the code does: links, commands, readings, exit codes, the tree, fresh pages."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from scope_cli import errors
from scope_cli.events import Audit, Reading
from tests.helpers.pages import PAGES, README, ROOT


def load_build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = load_build()


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def prose(page):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_the_generated_pages_are_fresh():
    for name, text in BUILD.pages().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, "run `make docs`"


def test_the_generated_pages_depend_on_neither_terminal_nor_locale():
    env = {**os.environ, "COLUMNS": "40", "LC_ALL": "C", "TERM": "dumb", "FORCE_COLOR": "1"}
    check = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", "--check"], env=env, capture_output=True, text=True
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name} links to {target}"


def test_every_file_of_ours_that_is_named_is_there():
    """In pages and in sources, where no link says so; but for the example of a scorer to add."""
    sources = [file for part in ("scope_cli", "tests") for file in (ROOT / part).rglob("*.py")]
    sources += [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "benchmarks").glob("*.py")]
    named = re.compile(r"(?<![\w/.-])(?:scope_cli|benchmarks|docs|tests)/[\w/.-]+\.(?:py|sh|md|svg|png)\b")
    missing = {
        path: file.name
        for file in (*sources, *PAGES)
        for path in named.findall(file.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    }
    assert missing == {"scope_cli/policies/scorers/value_norm.py": "add-a-scorer.md"}


@pytest.mark.parametrize("kind", [Reading, Audit], ids=lambda kind: kind.__name__)
def test_every_reading_is_explained(kind):
    page = (ROOT / "docs" / "reference" / "readings.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(kind) if f"`{field.name}`" not in page] == []


def test_every_exit_code_is_listed():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.ScopeError)}
    assert codes <= set(BUILD.EXIT_CODES)
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert [int(code) for code in listed] == list(BUILD.EXIT_CODES)


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_is_in_the_contents():
    """Of the site, and of the README: what is listed nowhere is found by nobody."""
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page != README}
    listed = re.findall(r":\s+([\w/-]+\.md)$", contents, re.MULTILINE)
    assert set(listed) == pages and len(listed) == len(pages)
