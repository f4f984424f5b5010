"""A seed and the embedded model in; the same text out on every kind of CPU, known by its hash.

Everything that decides a text is computed in one order: products, norms, rotation and attention in C++, the
slots' rounding, and the scores that evictions go by. The hashes change when that order does.
"""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.helpers.capability import AVX2, PLAIN

pytestmark = pytest.mark.real_model
PROMPT = Path("examples/prompts/bread.txt").absolute()
CPUS = {
    "this one": {},
    "AVX2": {**AVX2, "SCOPE_NATIVE": "avx2"},
    "no vectors": {**PLAIN, "SCOPE_NATIVE": "plain"},
}
TEXTS = {
    "sampled": (("--kv", "int8"), "4b5e57a140a89c3d"),
    "short": (("--kv", "int8", "--max-new-tokens", "40"), "8008a1490e94e3dc"),
    "greedy": (("--temperature", "0"), "424d0af58db2e546"),
    "hot, over plain slots": (("--temperature", "1.2", "--kv", "plain"), "3f8a8fa2b46e41ce"),
}
SLOW = "no vectors"
CASES = [(cpu, text) for cpu in CPUS for text in TEXTS if cpu != SLOW or text == "short"]


@pytest.mark.parametrize(("cpu", "text"), CASES)
def test_a_seed_writes_the_same_text_on_every_cpu(cpu, text):
    options, expected = TEXTS[text]
    command = [sys.executable, "-m", "scope_cli", "generate", "--prompt-file", str(PROMPT), "--seed", "8"]
    command += ["--budget", "32", "--max-new-tokens", "80", "--ignore-eos", *options]
    ran = subprocess.run(command, env={**os.environ, **CPUS[cpu]}, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    assert b"evicted" in ran.stderr, "the test needs a text that depends on evictions"
    assert sha256(ran.stdout).hexdigest()[:16] == expected
