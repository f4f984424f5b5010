"""The end of memory is recognised, whoever says it."""

import errno

import pytest
import torch

from scope_cli.errors import OutOfMemoryError, ScopeError, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_memory_that_ended_is_recognised_and_said_in_a_line(error):
    assert is_out_of_memory(error)
    told = OutOfMemoryError.of(error)
    assert isinstance(told, ScopeError) and told.exit_code == 1 and is_out_of_memory(told)
    assert str(told).startswith("memory ran out") and "\n" not in str(told) and told.hint


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("an illegal memory access was encountered"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        ScopeError("not enough memory: told before"),
        RuntimeError(),
    ],
    ids=str,
)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(failed.value)


@pytest.mark.parametrize(
    "line",
    [
        "runs no",
        "resume no",
        "prompt show no",
        "generate --prompt-cache no",
        "generate -f no",
        "generate hi --profile no",
        "batch no -o out",
        "batch --status no",
        "evaluate compare no",
        "evaluate fidelity --text no",
        "evaluate loops -f no -o no/f.json",
        "profile compare no no",
        "profiles show no",
        "models show no",
        "tune --text no",
        "calibrate c.safetensors --text no",
    ],
)
def test_a_path_that_is_not_there_is_one_error_and_one_hint(line, scope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = scope(*line.split())
    errors = [one for one in said.stderr.splitlines() if one.startswith("error: ")]
    hints = [one for one in said.stderr.splitlines() if one.startswith("hint: ")]
    assert (said.code, said.stdout, len(errors), len(hints)) == (2, "", 1, 1), said.stderr


@pytest.mark.parametrize(
    "line",
    [
        "profile compare deep.json deep.json",
        "evaluate compare deep.json",
        "evaluate fidelity --run deep.json --prompt-file words.txt",
        "evaluate longgenbench --data deep.json --output out.json",
        "tune --text words.txt --scorer {name",
    ],
)
def test_what_cannot_be_read_as_json_or_yaml_is_no_bug_in_scope(line, scope, tmp_path, monkeypatch):
    """Brackets that are nested too deep among it, for which Python has another error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "words.txt").write_text("some words")
    refused = scope(*line.split())
    assert refused.code == 2 and "bug in scope" not in refused.stderr, refused.stderr
