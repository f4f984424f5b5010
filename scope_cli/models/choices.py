"""What `auto` means: one rule for whoever loads, plans or measures a model. No torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from scope_cli.errors import ModelError
from scope_cli.models.formats import BITS, packed_form
from scope_cli.settings.schema import ModelSettings

Wish = Literal["auto", "on", "off"]
COMPILING_PAYS_AFTER = 500  # steps: a guess
PLAIN = {"F32", "F16", "BF16"}  # GGUF types
MANY_LANES = 8  # from which bfloat16 is the faster one, where a CPU multiplies it in hardware


def load_in_of(settings: ModelSettings, device: str, quantised: str | None) -> str | None:
    """The form of the weights; None: plain.

    auto: on a CPU packed where they come from a GGUF file (`quantised`: the types of its layers) and no dtype
    was asked for. device: "cpu", "cuda:0", ...
    """
    on_cpu = device.partition(":")[0] == "cpu"
    if settings.load_in in BITS and not on_cpu:
        raise ModelError(
            f"load_in {settings.load_in} is for a CPU, not for {device}", "try --load-in 4bit (bitsandbytes)"
        )
    if settings.load_in != "auto":
        return settings.load_in
    return packed_form(quantised) if on_cpu and settings.dtype == "auto" else None


def dtype_of(
    name: str,
    device: str,
    stored: str | None,
    load_in: str | None = None,
    lanes: int = 1,
    quantised: str | None = None,
) -> str:
    """The dtype of cache and computation; that of plain weights, too.

    auto: the checkpoint's own, `stored`, on a GPU, and bfloat16 for a GGUF file of `quantised` types, whose
    weights only float32 would hold without loss; on a CPU float32, with AMX bfloat16 where eight `lanes` or
    more were asked for. Packed weights have float32 beside them.
    """
    if name != "auto":
        return name
    if device.partition(":")[0] != "cpu":
        packed = not set((quantised or "F32").split(", ")) <= PLAIN
        return "bfloat16" if packed else stored or "bfloat16"
    many = lanes >= MANY_LANES and load_in not in BITS
    return "bfloat16" if many and has_amx() else "float32"


def compiles(wish: Wish, device: str, steps: int) -> bool:
    """Whether a run of so many steps is compiled: on a GPU, where it pays for itself or is wanted."""
    return device == "cuda" and (wish == "on" or (wish == "auto" and steps >= COMPILING_PAYS_AFTER))


@cache
def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """This CPU multiplies bfloat16 matrices faster than float32 ones."""
    try:
        return "amx_tile" in cpuinfo.read_text()
    except OSError:
        return False
