"""Imports point one way, and what answers at once does not import torch."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scope_cli.policies import plugins
from tests.helpers.configs import LLAMA_8B
from tests.helpers.imported import imported_by

PACKAGE = Path(__file__).parent.parent / "scope_cli"
# From the ground up: a folder or file imports what stands above its own line here, and nothing below it.
FLOORS = [
    {"errors", "units", "names", "utf8", "events"},
    {"files", "geometry"},
    {"console", "machine"},
    {"policies", "formats"},
    {"settings"},
    {"cache"},
    {"native"},
    {"models"},
    {"engine"},
    {"api"},
    {"sinks"},
    {"batch", "measure"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Modules of ours that a file imports, by the first name below the package."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("scope_cli.")}
    return found - {"__version__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own != "__init__":
        assert {room for room in imported(file) - {own} if FLOOR[room] >= FLOOR[own]} == set()


def test_the_top_of_the_package_shows_the_architecture():
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name[:2] != "__"}
    assert rooms - set(FLOOR) <= {"py.typed", "shipped_profiles"}


def test_the_package_itself_imports_no_torch():
    code = "import scope_cli, sys; dir(scope_cli); scope_cli.Profile; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_what_answers_at_once_imports_no_torch():
    for line, ended in imported_by(["--help", "generate --help", "--version", "profiles show"]).items():
        assert (ended.code, ended.heavy) == (0, []), line


EARLY = [  # what is wrong is known without a model; T is a text, D a folder with one, E an empty one
    "generate",
    "generate -f no.txt",
    "generate hi --device cuda",
    "generate hi --device tpu",
    "generate hi --model nope",
    "generate hi --model E",
    "generate hi --model T",
    "generate hi --profile nope",
    "generate hi --scorer nope",
    "generate hi --budget x",
    "generate hi --temperature -1",
    "generate hi --system-file no.txt",
    "generate hi --set decode.nope=1",
    "generate hi -o T",
    "generate hi -o no/such/folder.txt",
    "batch nope -o out",
    "batch no.jsonl -o out",
    "batch E -o out",
    "batch D -o out --glob *.md",
    "batch D -o D",
    "batch D -o T",
    "batch D -o out --device cuda",
    "batch D -o out --device cuda --dry-run",
    "batch D -o out --device tpu",
    "batch D -o out --model nope",
    "batch D -o out --model E",
    "batch D -o out --lanes x",
    "batch D -o out --profile nope",
    "batch D -o out --prompt-template T",
    "batch --status E",
    "models show nope",
    "models show E",
    "models show T",
    "models pull nope",
    "models pull E",
    "models rm nope --yes",
    "evaluate compare no.json",
    "evaluate recall --kind nope",
    "evaluate recall --budget 1,x",
    "evaluate fidelity --text no.txt",
    "evaluate fidelity --text T --device cuda:7",
    "evaluate fidelity --text T --device tpu",
    "evaluate fidelity --text T --model nope",
    "evaluate fidelity --run no.json -f T",
    "evaluate fidelity --text T -o no/such/folder.json",
    "evaluate fidelity --text T --plot p.doc",
    "evaluate loops -f no.txt",
    "evaluate loops -f T -p slid",
    "evaluate longgenbench --data no.jsonl -o g.json",
    "evaluate longgenbench --data T -o g.json --task math",
    "tune --text no.txt",
    "tune --text T --scorer nope",
    "tune --text T --device mps",
    "calibrate c.safetensors --text no.txt",
    "calibrate T --text T",
    "calibrate c.safetensors --text T --model nope",
    "profile compare no.json no.json",
    "profile --budget 1,x",
    "profile --prompt-file no.txt",
    "profile --device cuda",
    "profile --model nope",
    "profile --plan --config no.json",
    "bench -f no.txt",
    "bench hello --positions abc",
    "bench hello --prompt-tokens 0",
    "bench hello --peer dynamik",
    "bench hello --device cuda",
    "bench hello --model nope",
]


def test_an_error_that_needs_no_model_imports_no_torch():
    ends = imported_by(EARLY)
    assert len(ends) == len(EARLY)
    for line, ended in ends.items():
        assert (ended.code, ended.heavy) == (2, []) and ended.said.startswith("error: "), (line, ended)


def test_no_plugin_imports_torch_until_it_computes():
    kinds = [(kind, name) for kind in ("scorers", "prefills", "wrappers") for name in plugins.names(kind)]
    lines = [f"import scope_cli.policies.{kind}.{name}" for kind, name in kinds if name != "tri"]
    guilty = [line for line, ended in imported_by(lines).items() if (ended.code, ended.heavy) != (0, [])]
    assert len(lines) > 20 and guilty == []


def test_a_plan_imports_neither_torch_nor_transformers(tmp_path):
    """With every kind of plug-in, because their sizes are part of the plan."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA_8B))
    argv = ["profile", "--plan", "--config", str(config), "--memory", "24GiB", "--scorer", "rkv"]
    argv += ["--prefill", "snapkv", "--prefill-budget", "25%", "--set", "prefill.wrap=[adakv]"]
    code = (
        f"import sys; from scope_cli import cli; code = cli.main({argv!r}); "
        "found = {'torch', 'transformers'} & set(sys.modules); print(code, found, file=sys.stderr); "
        "sys.exit(code or bool(found))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "longest prompt" in ran.stdout


def test_a_plain_run_imports_neither_the_compiler_nor_torch_distributed(
    scope, tiny_folder, tmp_path, monkeypatch
):
    """Weights as they are, and packed ones at the second start. Later it is all there."""
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path))
    argv = ["generate", "hi", "--model", str(tiny_folder), "--max-new-tokens", "2", "--compile", "off"]
    argv += ["--quiet", "--load-in"]
    assert scope(*argv, "int8").code == 0
    code = (
        "import sys; from scope_cli import cli; "
        f"codes = [cli.main({argv!r} + [form]) for form in ('none', 'int8')]; "
        "found = {'torch._dynamo', 'torch._inductor', 'torch.distributed.tensor'} & set(sys.modules); "
        "import torch, transformers.masking_utils as masks; "
        "real = torch.distributed.is_available(), torch.compiler.disable(len)('ab'); "
        "masks.TransformGetItemToIndex().__enter__(); "
        "print(codes, found, real, 'torch._dynamo' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1] == "[0, 0] set() (True, 2) True", ran.stderr


def test_the_first_page_of_help_imports_no_command():
    code = "import sys; from scope_cli import cli; cli.main(['--help']); print(*sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    there = set(ran.stderr.split())
    assert ran.returncode == 0 and "scope generate" in ran.stdout
    assert {name for name in there if name.startswith("scope_cli.commands.")} == {"scope_cli.commands.menu"}
    assert "pydantic" not in there
