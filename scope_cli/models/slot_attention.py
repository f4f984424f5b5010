"""One query of each lane over all of its slots, as Triton kernels: a decode step's attention on a GPU.

With a mask, `scaled_dot_product_attention` shares out lanes, heads and blocks of queries. One query of one
lane is a handful of blocks then, and most of the card waits. Here the slots are shared out too: each program
takes a stretch of one KV head's slots for the whole group of queries, and the parts are merged in the order
of the slots (Flash-Decoding). Blocks in which every slot is free are not read.

Slots may be packed: keys in 8 bits with a scale per token, values in 8 bits with a scale per token, or in 4
bits with a scale and a minimum per group of 32.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from scope_cli.cache.layers import SlotLayer

BLOCK = 64  # slots that a program looks at together
PROGRAMS_PER_UNIT = 4  # programs to each multiprocessor, so that none waits for memory alone
MOST_PARTS = 128
SMALLEST_SIDE = 16  # of a product on tensor cores


@dataclass(frozen=True)
class PackedSlots:
    """The scales of packed slots; None where keys, or values, are plain.

    key_scales, value_scales: float16 [lanes, kv_heads, slots], of 8-bit keys and values
    value_groups: float16 [lanes, kv_heads, slots, 2, head_dim / 32], scale and minimum of 4-bit values;
        byte j of a token holds the values j, in its low half, and j + head_dim / 2
    """

    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    value_groups: Tensor | None = None


def attend_slots(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    scale: float,
    packed: PackedSlots | None = None,
    exact: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """softmax(scale * query @ keys^T + bias) @ values, for one query of each head.

    query: [lanes, kv_heads, group, head_dim]
    keys: [lanes, kv_heads, slots, head_dim], any strides but the last
    values: the same; with 4 bits [lanes, kv_heads, slots, head_dim / 2]
    bias: [lanes, kv_heads, 1, slots], 0 where a token is held, -inf where the slot is free
    exact: keys, values and bias of plain tokens beside the packed slots, with the same axes
    returns [lanes, kv_heads, group, head_dim]; zeros where a lane holds nothing
    """
    packed = packed or PackedSlots()
    lanes, kv_heads, group, head_dim = query.shape
    slots = keys.shape[2]
    heads = lanes * kv_heads
    parts, blocks = shared_out(heads, slots, query.device)
    more, more_blocks = (0, 0) if exact is None else shared_out(heads, exact[0].shape[2], query.device)
    sums = query.new_empty(heads, parts + more, group, head_dim, dtype=torch.float32)
    tops = query.new_empty(
        heads, parts + more, 2, group, dtype=torch.float32
    )  # largest logit, sum of weights
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    key_scales, value_scales, value_groups = packed.key_scales, packed.value_scales, packed.value_groups
    width = max(SMALLEST_SIDE, triton.next_power_of_2(head_dim))
    if exact is not None:
        _launch(query, *exact, None, None, None, sums, tops, scale, more, more_blocks, parts, parts + more)
    _launch(
        query, keys, values, bias, key_scales, value_scales, value_groups, sums, tops, scale,
        parts, blocks, 0, parts + more,
    )  # fmt: skip
    _merge[(heads, group)](
        sums, tops, out, parts + more,
        GROUP=group, HEAD_DIM=head_dim, WIDTH=width, PARTS=triton.next_power_of_2(parts + more),
    )  # fmt: skip
    return out


def _launch(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor,
    key_scales: Tensor | None, value_scales: Tensor | None, value_groups: Tensor | None,
    sums: Tensor, tops: Tensor, scale: float, parts: int, blocks: int, first: int, all_parts: int,
) -> None:  # fmt: skip
    """The stretches of some slots, as the parts from `first` on, of `all_parts`."""
    lanes, kv_heads, group, head_dim = query.shape
    _part[(lanes * kv_heads, parts)](
        query, keys, values, bias, key_scales, value_scales, value_groups, sums, tops,
        scale * math.log2(math.e), keys.shape[2], blocks, first, all_parts,
        *query.stride()[:3], *keys.stride()[:3], *values.stride()[:3], *bias.stride()[:2], bias.stride(3),
        *(key_scales.stride()[:2] if key_scales is not None else (0, 0)),
        *(value_scales.stride()[:2] if value_scales is not None else (0, 0)),
        *(value_groups.stride()[:4] if value_groups is not None else (0, 0, 0, 0)),
        KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK=BLOCK,
        ROWS=max(SMALLEST_SIDE, triton.next_power_of_2(group)),
        WIDTH=max(SMALLEST_SIDE, triton.next_power_of_2(head_dim)),
        KEY_BITS=16 if key_scales is None else 8,
        VALUE_BITS=4 if value_groups is not None else 16 if value_scales is None else 8,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4, num_stages=2,
    )  # fmt: skip


def shared_out(heads: int, slots: int, device: torch.device) -> tuple[int, int]:
    """How many stretches a head's slots are cut into, and how many blocks of slots a stretch has."""
    blocks = triton.cdiv(slots, BLOCK)
    wanted = max(1, min(MOST_PARTS, triton.cdiv(PROGRAMS_PER_UNIT * units(device), heads)))
    each = triton.cdiv(blocks, min(wanted, blocks))
    return triton.cdiv(blocks, each), each


@cache
def units(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few where Triton's interpreter stands in for one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@triton.jit  # type: ignore[untyped-decorator]
def _part(  # type: ignore[no-untyped-def]
    query, keys, values, bias, key_scales, value_scales, value_groups, sums, tops,
    scale, slots, blocks, first, parts,
    q_lane, q_head, q_row, k_lane, k_head, k_slot, v_lane, v_head, v_slot, b_lane, b_head, b_slot,
    ks_lane, ks_head, vs_lane, vs_head, vg_lane, vg_head, vg_slot, vg_kind,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A stretch of one head's slots: sums of weighted values, not yet divided, with their largest logit."""
    head, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane, kv_head = head // KV_HEADS, head % KV_HEADS
    rows, columns, within = tl.arange(0, ROWS), tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    is_row, is_column = rows < GROUP, columns < HEAD_DIM
    asked = tl.load(
        query + lane * q_lane + kv_head * q_head + rows[:, None] * q_row + columns[None, :],
        mask=is_row[:, None] & is_column[None, :],
        other=0.0,
    )
    keys += lane * k_lane + kv_head * k_head
    values += lane * v_lane + kv_head * v_head
    bias += lane * b_lane + kv_head * b_head
    if KEY_BITS == 8:
        key_scales += lane * ks_lane + kv_head * ks_head
    if VALUE_BITS == 8:
        value_scales += lane * vs_lane + kv_head * vs_head
    if VALUE_BITS == 4:
        value_groups += lane * vg_lane + kv_head * vg_head

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    for block in range(part * blocks, tl.minimum((part + 1) * blocks, tl.cdiv(slots, BLOCK))):
        slot = block * BLOCK + within
        there = slot < slots
        held = tl.load(bias + slot * b_slot, mask=there, other=float("-inf")).to(tl.float32)
        if tl.max(held, 0) > float("-inf"):
            there &= held > float("-inf")
            offset = slot.to(tl.int64)
            key = tl.load(
                keys + offset[None, :] * k_slot + columns[:, None],
                mask=there[None, :] & is_column[:, None],
                other=0,
            )
            logits = tl.dot(asked, key.to(asked.dtype), input_precision=PRECISION) * scale
            if KEY_BITS == 8:
                logits *= tl.load(key_scales + offset, mask=there, other=0.0).to(tl.float32)[None, :]
            logits += held[None, :]
            newest = tl.maximum(top, tl.max(logits, 1))
            shrink = tl.exp2(top - newest)
            weights = tl.exp2(logits - newest[:, None])
            top = newest
            total = total * shrink + tl.sum(weights, 1)
            if VALUE_BITS == 4:
                half: tl.constexpr = HEAD_DIM // 2
                byte = tl.load(
                    values + offset[:, None] * v_slot + (columns % half)[None, :],
                    mask=there[:, None] & is_column[None, :],
                    other=0,
                )
                number = tl.where((columns < half)[None, :], byte & 15, byte >> 4).to(tl.float32)
                at = value_groups + offset[:, None] * vg_slot + (columns // 32)[None, :]
                known = there[:, None] & is_column[None, :]
                step = tl.load(at, mask=known, other=0.0).to(tl.float32)
                least = tl.load(at + vg_kind, mask=known, other=0.0).to(tl.float32)
                value = (number * step + least).to(asked.dtype)
            else:
                value = tl.load(
                    values + offset[:, None] * v_slot + columns[None, :],
                    mask=there[:, None] & is_column[None, :],
                    other=0,
                ).to(asked.dtype)
                if VALUE_BITS == 8:
                    weights *= tl.load(value_scales + offset, mask=there, other=0.0).to(tl.float32)[None, :]
            summed = summed * shrink[:, None]
            summed += tl.dot(weights.to(asked.dtype), value, input_precision=PRECISION)
    place = head * parts + first + part
    tl.store(
        sums + (place * GROUP + rows[:, None]) * HEAD_DIM + columns[None, :],
        summed,
        mask=is_row[:, None] & is_column[None, :],
    )
    tl.store(tops + place * 2 * GROUP + rows, top, mask=is_row)
    tl.store(tops + (place * 2 + 1) * GROUP + rows, total, mask=is_row)


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    sums, tops, out, parts,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The stretches of one query head, put together."""
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, columns = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    place = head * parts + part
    there = part < parts
    top = tl.load(tops + place * 2 * GROUP + row, mask=there, other=float("-inf"))
    total = tl.load(tops + (place * 2 + 1) * GROUP + row, mask=there, other=0.0)
    highest = tl.max(top, 0)
    share = tl.where(top > float("-inf"), tl.exp2(top - highest), 0.0)
    summed = tl.load(
        sums + (place[:, None] * GROUP + row) * HEAD_DIM + columns[None, :],
        mask=there[:, None] & (columns < HEAD_DIM)[None, :],
        other=0.0,
    )
    weight = tl.sum(total * share, 0)
    merged = tl.sum(summed * share[:, None], 0) / tl.where(weight > 0, weight, 1.0)
    tl.store(out + (head * GROUP + row) * HEAD_DIM + columns, merged, mask=columns < HEAD_DIM)


@torch.library.custom_op("scope::attend_slots", mutates_args=())
def attend_in_one(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float,
    key_scales: Tensor | None, value_scales: Tensor | None, value_groups: Tensor | None,
    exact_keys: Tensor | None, exact_values: Tensor | None, exact_bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """`attend_slots` as one operation, which a compiled step calls as it is."""
    packed = PackedSlots(key_scales, value_scales, value_groups)
    exact = None
    if exact_keys is not None and exact_values is not None and exact_bias is not None:
        exact = exact_keys, exact_values, exact_bias
    return attend_slots(query, keys, values, bias, scale, packed, exact)


@attend_in_one.register_fake
def _(query: Tensor, *_: Any) -> Any:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def attend_layer(query: Tensor, layer: "SlotLayer") -> Tensor:
    """One query of each head over a layer's slots; query: [lanes, kv_heads, group, head_dim], turned."""
    used, store, exact = layer.read_slots, layer.store, layer.exact
    tensors = {name: part[:, :, :used] for name, part in store.tensors().items()}
    return attend_in_one(
        query, tensors["keys"], tensors["values"], layer.bias[..., :used], layer.scale,
        tensors.get("key_scales"), tensors.get("value_scales"), tensors.get("value_groups"),
        *((exact.keys, exact.values, exact.bias) if exact else (None, None, None)),
    )  # fmt: skip
