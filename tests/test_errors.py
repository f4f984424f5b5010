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
