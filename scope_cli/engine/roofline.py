"""A device and a loaded model in, how fast one step could be at best out: bytes to read over bandwidth.

A decode step multiplies every weight with a handful of rows, so it cannot be faster than reading the weights
once, and what its attention reads of the cache. A GPU's compute limit is far away at that number of rows.
"""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn

from scope_cli.events import Finished
from scope_cli.models.lean import PreTrainedModel
from scope_cli.native.layout import GROUP, Kind, packed_bytes, packed_shape
from scope_cli.native.library import library, weight_of
from scope_cli.units import as_bytes

PROBE_BYTES = 2**29  # of the buffer that is read: larger than the caches of most CPUs
ROW = 1024
PASSES = 4
FILLING = 0x3C  # bytes that are usual float16 scales, too


def limit_line(run: Finished, weight_bytes: int, lanes: int, bandwidth: float) -> str:
    """How near the run came to the memory's bandwidth; weight_bytes: what a step reads of the weights.

    A step reads the slots of every lane, and `run` tells of one.
    """
    steps = run.output_tokens - 1  # the first token comes from the prompt's logits
    if steps < 1:
        return "no step was taken"
    step_s, read_bytes = run.decode_s / steps, lanes * run.reading.read_bytes
    share = share_of_limit(step_s, weight_bytes, read_bytes, bandwidth)
    return (
        f"a step reads {as_bytes(weight_bytes)} of weights and {as_bytes(read_bytes)} of cache and took "
        f"{1000 * step_s:.1f} ms: {share:.0f}% of the memory's {as_bytes(int(bandwidth))}/s"
    )


def share_of_limit(step_s: float, weight_bytes: int, read_bytes: int, bandwidth: float) -> float:
    """In percent: the time that reading must take, over the time that the step took."""
    return 100 * (weight_bytes + read_bytes) / bandwidth / step_s


def bandwidth(device: torch.device) -> float:
    """Bytes per second that the device reads, the best of a few passes over a large buffer.

    On a CPU with the threads in force, in about 0.5 s: PyTorch's product of a matrix and one row, and the
    native one, which is what a decode step does all the time. On a GPU a copy counts as reads and writes.
    """
    if device.type == "cuda":  # pragma: no cover  needs a card
        values = torch.ones(PROBE_BYTES, dtype=torch.uint8, device=device)
        target = torch.empty_like(values)
        return 2 * PROBE_BYTES / min(_copy_s(values, target) for _ in range(PASSES))
    return max(_plain_rate(device), _native_rate() if device.type == "cpu" else 0)


def _plain_rate(device: torch.device) -> float:
    values, row = torch.ones(PROBE_BYTES // 4 // ROW, ROW, device=device), torch.ones(ROW, device=device)
    return PROBE_BYTES / min(_took_s(lambda: (values @ row)[0].item()) for _ in range(PASSES))


def _native_rate() -> float:
    """Of packed weights; 0 where there is no native library."""
    if (known := library()) is None:
        return 0
    rows = GROUP * (PROBE_BYTES // packed_bytes(Kind.INT8, GROUP, ROW))
    packed = torch.full(packed_shape(Kind.INT8, rows, ROW), FILLING, dtype=torch.uint8)
    weight, row = weight_of(packed, Kind.INT8, rows, ROW), torch.ones(1, ROW)
    return packed.nbytes / min(_took_s(lambda: known.product(weight, row)) for _ in range(PASSES))


def _took_s(read: Callable[[], object]) -> float:
    began = perf_counter()
    read()
    return perf_counter() - began


def _copy_s(values: torch.Tensor, target: torch.Tensor) -> float:  # pragma: no cover
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    target.copy_(values)
    ended.record()
    torch.cuda.synchronize(values.device)
    return began.elapsed_time(ended) / 1000


def step_weight_bytes(model: PreTrainedModel, lanes: int = 1) -> int:
    """Bytes of weights that one decode step reads.

    Everything once, as it is stored; of the embedding's table one row per lane. A table that lm_head shares
    is read whole, as lm_head.
    """
    table = model.get_input_embeddings()
    head = model.get_output_embeddings()
    looked_up = {id(tensor): tensor for tensor in _tensors(table)}
    shared = {id(tensor) for tensor in _tensors(head)} if head is not None else set()
    rows = sum(
        tensor[:1].nbytes for key, tensor in looked_up.items() if key not in shared and tensor.dim() > 1
    )
    others = {id(tensor): tensor.nbytes for tensor in _tensors(model)}
    whole = sum(nbytes for key, nbytes in others.items() if key in shared or key not in looked_up)
    return whole + lanes * rows


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
