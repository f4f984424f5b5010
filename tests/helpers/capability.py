"""A process that computes as another CPU would."""

import os
import subprocess
import sys

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
PLAIN = {"ATEN_CPU_CAPABILITY": "default"}


def run_as(capability: dict[str, str], code: str) -> str:
    """What Python code prints."""
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **capability}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
