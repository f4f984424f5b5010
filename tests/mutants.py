"""A file's mutants, drawn at random, and which its tests notice: `python -m tests.mutants SEED COUNT NAME`.

cosmic-ray makes the mutants (`pip install cosmic-ray`, of which nothing else is used). Nothing is written to
the tree: each mutant lives in a fork of this process, whose import of the module gets the mutant's code.
"""

import ast
import importlib.util
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import hypothesis.internal.conjecture.engine as hypothesis
import matplotlib.figure  # noqa: F401
import pytest
import torch  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from transformers import Gemma3ForCausalLM, LlamaForCausalLM  # noqa: F401  imports that every fork would repeat

SLOWEST_S = 150  # for one mutant's tests; a mutant that takes longer has been noticed
MOST_BYTES = 16 * 2**30

CACHE = ["tests/cache/test_cache.py", "-k", "not 4000 and not four_scorers"]
DECODE = ["tests/engine/test_decode.py"]
LANES = ["tests/engine/test_lanes.py", "-k", "not compiled"]
GRAPHS = ["tests/engine/test_graphs.py", "-k", "llama-slide-3 or asks or half_way or another"]
TESTS = {  # in the order in which they are run, until one fails
    "schedule": [["tests/policies/test_schedule.py"], CACHE, DECODE],
    "attention": [["tests/policies/test_received.py"], ["tests/models/test_attention.py"], DECODE, GRAPHS],
    "batch/ledger": [["tests/batch/test_ledger.py"]],
    "batch/fit": [["tests/batch/test_groups.py"]],
    "memory": [["tests/machine/test_memory.py"]],
    "plan": [["tests/engine/test_plan.py"], ["tests/batch/test_groups.py"]],
    "cache": [CACHE, DECODE],
    "decode": [DECODE, ["tests/engine/test_no_numbers.py"], LANES],
    "step": [
        ["tests/engine/test_step.py", "-k", "only_a_layer or nobody or captured or failed or cannot"],
        GRAPHS,
    ],
}


class Meaning(ast.NodeTransformer):
    """Without what has none when it runs: annotations, docstrings, blocks for type checkers."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(0)
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else node


def meaning(source: str) -> str:
    return ast.dump(Meaning().visit(ast.parse(source)))


def draw(source: str, count: int, seed: int) -> Iterator[tuple[int, str, str]]:
    """A mutant at each of `count` places of a file: line, operator, code. Places, because some have ten."""
    tree, same = get_ast(source), meaning(source)
    places: dict[Any, list[tuple[str, int]]] = {}
    for name in operator_names():
        operator = get_operator(name)
        if not operator.arguments():
            found = (place for node in ast_nodes(tree) for place in operator().mutation_positions(node))
            for nth, place in enumerate(found):
                places.setdefault(place, []).append((name, nth))
    chance = random.Random(seed)
    for place in chance.sample(sorted(places), len(places)):
        name, nth = chance.choice(places[place])
        try:
            code = mutate_code(source, get_operator(name)(), nth)
            if meaning(code) == same:
                continue
        except (SyntaxError, AttributeError):  # cosmic-ray makes some that are no Python, and gives some up
            continue
        yield place[0][0], name.removeprefix("core/"), code
        count -= 1
        if not count:
            return


class Loader(SourceFileLoader):
    """Imports a mutant in the place of a file."""

    code = ""

    def get_code(self, fullname: str) -> Any:
        return compile(self.code, self.path, "exec", dont_inherit=True)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None


def run(module: str, path: Path, code: str, tests: list[list[str]], output: Path) -> int:
    """0 where every test passes."""
    if child := os.fork():
        for _ in range(SLOWEST_S * 20):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return -signal.SIGALRM
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    hypothesis.MAX_SHRINKING_SECONDS = 0  # any example will do
    loader = Loader(module, str(path))
    loader.code = code
    sys.meta_path.insert(0, loader)  # type: ignore[arg-type]
    result: int = 1
    for one in tests:
        result = int(pytest.main([*one, "-x", "-q", "-p", "no:cacheprovider", "--tb=line"]))
        if result:
            break
    sys.stdout.flush()
    os._exit(result)


def noticed_by(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0] if lines else (output.strip().splitlines() or ["nothing said"])[-1]


def changed_line(source: str, code: str) -> Iterator[str]:
    for old, new in zip(source.splitlines(), code.splitlines(), strict=False):
        if old != new:
            yield f"{old.strip()}  ->  {new.strip()}"
            return


def main() -> None:
    seed, count, *names = sys.argv[1:]
    output = Path("/tmp") / f"mutant-{os.getpid()}.txt"
    for name in names or TESTS:
        path = Path("scope_cli") / f"{name}.py"
        source = path.read_text()
        module = "scope_cli." + name.replace("/", ".")
        assert run(module, path, source, TESTS[name], output) == 0, output.read_text()
        print(f"{name}: the tests pass as it is", flush=True)
        for line, operator, code in draw(source, int(count), int(seed)):
            started = time.perf_counter()
            result = run(module, path, code, TESTS[name], output)
            how = "SURVIVED" if result == 0 else f"noticed ({result})"
            print(f"  {path}:{line} {operator} {how} {time.perf_counter() - started:.0f} s", flush=True)
            print(f"     {''.join(changed_line(source, code))}", flush=True)
            if result:
                print(f"     {noticed_by(output.read_text())}", flush=True)


if __name__ == "__main__":
    main()
