"""What people and programs write is no near loop: tables, lists, code, poems, logs, a hundred documents.

The documents are this repository's own and those that some installed packages bring: read-mes, licences,
sources, JSON, CSV, headers. Words, digits and signs stand in the place of a model's tokens.
"""

import random
import re
import zlib
from importlib.metadata import files
from pathlib import Path

import pytest

from scope_cli.engine.loops import NearWatch

ROOT = Path(__file__).parents[2]
PACKAGES = ["hypothesis", "numpy", "psutil", "pydantic", "pytest", "rich", "tokenizers", "torch", "typer"]
KINDS = {".py", ".md", ".rst", ".txt", ".json", ".jsonl", ".yaml", ".csv", ".toml", ".h", ".cpp", ".pyi", ""}
MOST = 2_000  # tokens of each


def near_loop(text):
    watch = NearWatch()
    for token in re.findall(r"\d|[^\W\d]{1,8}|\s+|[^\w\s]", text)[:MOST]:
        watch.feed(zlib.crc32(token.encode()))
    return watch.longest()


def is_document(path):
    return path.suffix in KINDS and path.is_file() and 3_000 < path.stat().st_size < 300_000


def documents():
    """Fifty of the repository and fifty of the packages, evenly from all that there are."""
    own = [path for folder in ("docs", "scope_cli", "benchmarks") for path in (ROOT / folder).rglob("*")]
    others = [Path(str(file.locate())) for package in PACKAGES for file in files(package) or ()]
    for paths in (own, others):
        found = sorted(filter(is_document, paths))
        yield from (found[at * len(found) // 50] for at in range(50))


def test_a_hundred_documents_have_none():
    found = list(documents())
    assert len(set(found)) == 100
    loops = {path.name: near_loop(path.read_text("utf-8", errors="replace")) for path in found}
    assert {name: loop for name, loop in loops.items() if loop} == {}


WORDS = "harbour lantern engine copper meadow winter signal bridge anchor cotton market garden letter silver"


def words(chance, count):
    return " ".join(chance.choice(WORDS.split()) for _ in range(count))


def table(chance):
    rows = [(words(chance, 2), f"{chance.random():.3f}", f"{chance.randrange(10**6):,}") for _ in range(60)]
    lines = [f"| {name} | {share} | {size} | yes |" for name, share, size in rows]
    return "\n".join(["| name | share | bytes | passed |", "|---|--:|--:|---|", *lines])


def steps(chance):
    return "\n".join(
        f"{n}. Take the {words(chance, 1)} and put it on the {words(chance, 2)}." for n in range(1, 60)
    )


def code(chance):
    names = [words(chance, 1) for _ in range(50)]
    return "\n".join(f"    if kind == '{one}':\n        return {words(chance, 1)}({one})" for one in names)


def poem(chance):
    """Verses with a refrain of two lines between them."""
    refrain = "O the wind and the rain and the long way home,\nand the lights of the harbour that call.\n\n"
    return "".join("".join(f"{words(chance, 7)}\n" for _ in range(4)) + refrain for _ in range(25))


def records(chance):
    return "[" + ",\n".join(
        f'{{\n  "id": {chance.randrange(10**6)},\n  "name": "{words(chance, 2)}",\n  "active": true,\n'
        f'  "size": {chance.random():.4f}\n}}'
        for _ in range(50)
    )  # fmt: skip


def csv(chance):
    days = [f"2026-{month:02}-{day:02}" for month in range(1, 4) for day in range(1, 29)]
    return "\n".join(f"{day},{chance.randrange(10**4)},{chance.random():.4f},ok" for day in days)


def log(chance):
    times = [f"2026-11-26 10:0{n // 60}:{n % 60:02},{chance.randrange(1000):03}" for n in range(90)]
    return "\n".join(f"{one} INFO {words(chance, 1)} took {chance.randrange(900)} ms" for one in times)


@pytest.mark.parametrize("write", [table, steps, code, poem, records, csv, log])
def test_what_is_alike_from_line_to_line_is_none(write):
    for seed in range(5):
        assert near_loop(write(random.Random(seed))) is None


def test_the_same_paragraph_with_another_number_is_one():
    """The embedded model wrote it so."""
    lines = [
        "* Step-by-step guide: everything from planting to maintenance.",
        "* Read: a classic guidebook that covers everything from gardening to gardening.",
        "* For new gardeners: a classic guidebook that covers everything from gardening to gardening.\n\n",
    ]
    paragraphs = ["\n".join([f"**Chapter {n}: The Basics**\n", *lines]) for n in range(1, 9)]
    loop = near_loop("".join(paragraphs))
    assert loop is not None and loop.start + loop.period < 200
