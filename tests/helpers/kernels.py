"""python -m tests.helpers.kernels CAPABILITY: the attention kernels, compiled for a card that is not there.

A line for each case: dtype, head_dim, slots, and the shared bytes of both kernels. Triton makes what a card
of that compute capability would run (75 is 7.5); nothing is launched. TRITON_INTERPRET must not be set.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget

from scope_cli.models import slot_attention
from scope_cli.models.slot_attention import PackedSlots, attend_slots

LANES, KV_HEADS, GROUP, SLOTS = 1, 2, 4, 256
CASES = [
    ("bfloat16", 128, "plain"),
    ("bfloat16", 128, "int8"),
    ("float16", 128, "k8v4"),
    ("bfloat16", 256, "plain"),
    ("float32", 128, "plain"),
    ("float32", 64, "k8v4"),
]


class NoCard:
    """In the place of Triton's driver: says which card there is, and no more."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiling(kernel, told):
    """Calls of the kernel compile it, note its shared bytes in `told`, and launch nothing."""
    run = kernel.run

    def compiled(*args, warmup, **kwargs):
        made = run(*args, warmup=True, **kwargs)
        assert ".target sm_" in made.asm["ptx"]
        told.append(made.metadata.shared)

    kernel.run = compiled


def arguments(dtype, head_dim, kv):
    """What `attend_slots` takes, of zeros."""

    def zeros(*tail, dtype=dtype):
        return torch.zeros(LANES, KV_HEADS, *tail, dtype=dtype)

    keys, values, packed = zeros(SLOTS, head_dim), zeros(SLOTS, head_dim), PackedSlots()
    if kv != "plain":
        keys, scales = keys.to(torch.int8), zeros(SLOTS, dtype=torch.float16)
        packed = PackedSlots(scales, scales)
        values = keys
    if kv == "k8v4":
        values = zeros(SLOTS, head_dim // 2, dtype=torch.uint8)
        packed = PackedSlots(scales, value_groups=zeros(SLOTS, 2, head_dim // 32, dtype=torch.float16))
    return zeros(GROUP, head_dim), keys, values, zeros(1, SLOTS), head_dim**-0.5, packed


def main() -> None:
    triton.runtime.driver.set_active(NoCard(int(sys.argv[1])))
    told: list[int] = []
    compiling(slot_attention._part, told)
    compiling(slot_attention._merge, told)
    for dtype, head_dim, kv in CASES:
        told.clear()
        attend_slots(*arguments(getattr(torch, dtype), head_dim, kv))
        print(dtype, head_dim, kv, *told)


if __name__ == "__main__":
    main()
