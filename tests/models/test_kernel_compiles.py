"""The attention kernels compile for cards that are not there, within the shared memory that those have."""

import os
import subprocess
import sys

import pytest

from tests.helpers.scripts import ROOT

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA's builds of PyTorch")

SHARED = {"75": 64, "80": 163, "86": 99, "90": 227}  # KiB a block may have, by compute capability (75: 7.5)


@pytest.mark.parametrize("capability", SHARED)
def test_the_kernels_compile_for_a_card_and_fit_its_shared_memory(capability, tmp_path):
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)  # which tests/conftest.py sets where there is no card
    command = [sys.executable, "-m", "tests.helpers.kernels", capability]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    for line in lines:
        *case, part, merge = line.split()
        assert 0 < max(int(part), int(merge)) <= 1024 * SHARED[capability], case
