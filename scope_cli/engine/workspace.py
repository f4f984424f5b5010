"""What a model call needs beside weights and cache: shape, chunk and prompt length in, bytes out.

Arithmetic on the largest tensors that are alive together, and two measured constants: docs/how-to/profile.md.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from scope_cli.cache.shape import MEMO_BYTES
from scope_cli.engine.chunks import chunk_ends
from scope_cli.engine.plan import LanePlan
from scope_cli.geometry import LayerGeometry
from scope_cli.models.shapes import ModelShape
from scope_cli.models.target import Target
from scope_cli.native.layout import BLOCK, ROUNDED_BYTES

INDEX_BYTES = 8  # an int64
PROCESS_BYTES = 7 * 2**17
"""What was measured and not derived: by how much a warm process's own memory grows while it
reads or writes, beside all tensors (events, text, half-used pages). On a GPU tensors alone are counted."""
MASKS = 5  # bytes that a view's masks of a slot take
TOKENS, STRIPE = 64, 128  # of a piece, and columns at once: prompt.cpp
TILE = 64  # tokens: KEYS of reading.h
STAGE_BYTES = 2**19  # measured too: pages that a staged prompt leaves half used


@dataclass(frozen=True)
class Workspace:
    """Peaks of the two phases, in bytes, beside weights and cache."""

    prefill: int  # one lane's prompt at a time, staging included; snapshots of the others
    decode: int  # all lanes together, with their snapshots


def workspace(target: Target, plan: LanePlan, chunk: int) -> Workspace:
    """Of the lanes of `plan.shape`; chunk: `prefill.chunk`."""
    shape, dtype_bytes = target.shape, target.dtype_bytes
    ends = chunk_ends(plan.prompt_tokens, chunk, target.device)
    staged = plan.prompt.staging_bytes(shape.geometry, dtype_bytes, plan.shape.form)
    sizes = [end - start for start, end in pairwise([0, *ends])]
    longest, last = max(sizes), sizes[-1]

    def reading(tokens: int) -> int:
        return reading_bytes(target, plan, tokens)

    prefill = staged + reading(longest)
    if staged and target.device == "cpu":  # pages come as the stage is filled; the last chunk may be short
        filled = staged * (plan.prompt_tokens - last) // plan.prompt_tokens
        prefill = max(filled + reading(longest), staged + reading(last))
    if staged:
        prefill = max(prefill, staged + settling_bytes(shape, plan, dtype_bytes))
    own = (PROCESS_BYTES + STAGE_BYTES * bool(staged)) if target.device == "cpu" else 0
    own -= untouched_bytes(target, plan)
    lane = replace(plan.shape, lanes=1).cache_bytes(shape.geometry, dtype_bytes)
    snapshots, lanes = plan.snapshots * lane, plan.shape.lanes
    decode = writing_bytes(target, plan) + lanes * snapshots
    return Workspace(max(0, own + prefill + (lanes - 1) * snapshots), max(0, own + decode))


def untouched_bytes(target: Target, plan: LanePlan) -> int:
    """The cache's space to unpack slots in, for which C++ has no use: its pages are never there."""
    if not (target.reads_native and target.steps_native) or plan.prompt.staged:
        return 0
    return plan.shape.lanes * plan.shape.space(target.shape.geometry) * target.dtype_bytes


def reading_bytes(target: Target, plan: LanePlan, tokens: int) -> int:
    """One chunk of `tokens` on its way through the layer that needs most, the prompt's last chunk.

    Alive all the time: the embedded tokens, the residual stream, what the layer got from its norm, cosines
    and sines. Beside them the largest of three: the feed-forward layer's wide tensors (the gate's activation,
    the other half, their product; packed products round less); attention's (queries before and after their
    rotation and halfway, the same of keys, values, the output, a mask over everything read so far as bool and
    as numbers, where it is not C++'s); and what a prefill method computes when it is shown a chunk. Where
    slots are packed there are turned queries, then outputs, a chunk's tokens on their way into numbers and,
    where the prompt is staged, one layer of it unpacked; a prompt that is not is unpacked into the cache's
    own space.

    In C++ only the stream, the turns, the layer's queries, keys and values, tiles of all keys and values and
    each layer's newest queries are alive all the time; beside them the output, and turned queries, where a
    scorer may ask for more than a step's attention. What else there is every thread has its own.
    """
    shape, dtype_bytes, prompt, form = target.shape, target.dtype_bytes, plan.prompt_tokens, plan.shape.form
    layer = max(shape.geometry.layers, key=lambda one: one.heads * one.head_dim)
    hidden, wide = tokens * shape.geometry.hidden, tokens * shape.intermediate
    queries, keys = tokens * layer.heads * layer.head_dim, tokens * layer.kv_heads * layer.head_dim
    turned = queries * form.turns_keys + queries * form.turns_values
    if target.reads_native:
        stream, wide = hidden + tokens * layer.head_dim + queries + 2 * keys, 0
        newest = min(tokens, plan.shape.ring) * layer.heads * layer.head_dim * len(shape.geometry.layers)
        attention = queries + (0 if plan.by_attention else turned)
        own = target.threads * thread_bytes(shape, layer) + tile_bytes(layer, prompt) + dtype_bytes * newest
    else:
        stream, own = 3 * hidden + 2 * tokens * layer.head_dim, 0
        attention = 4 * queries + 4 * keys + (queries + 2 * keys if form.packs else 0)
    mask = 0 if target.reads_native else tokens * prompt * (1 + dtype_bytes)
    unpacked = prompt * layer.slot_bytes(dtype_bytes) if form.packs and plan.prompt.staged else 0
    observing = unpacked
    if plan.prompt.staged:
        numbers = plan.prompt.method.observing(layer, tokens, prompt)
        observing += dtype_bytes * 2 * (queries + keys) + max(4, dtype_bytes) * numbers
    attending = dtype_bytes * attention + mask + unpacked
    return own + dtype_bytes * stream + max(dtype_bytes * 3 * wide, attending, observing)


def thread_bytes(shape: ModelShape, layer: LayerGeometry) -> int:
    """What a thread that reads a prompt has to itself: `Own` of prompt.cpp."""
    hidden, inner = shape.geometry.hidden, shape.intermediate
    kept, *others = (-(-wide // BLOCK) for wide in (hidden, max(hidden, layer.heads * layer.head_dim), inner))
    rounded = kept * ROUNDED_BYTES[16] + sum(others) * ROUNDED_BYTES[8]
    return TOKENS * (rounded + 4 * hidden + 4 * 2 * STRIPE) + 4 * hidden


def tile_bytes(layer: LayerGeometry, prompt: int) -> int:
    """The keys and values of one layer as attention multiplies them: `Tiles` of reading.h."""
    tiles = layer.kv_heads * -(-prompt // TILE)
    return tiles * 4 * (TILE * (-(-layer.head_dim // 16) * 16 + 3) + 16)


def settling_bytes(shape: ModelShape, plan: LanePlan, dtype_bytes: int) -> int:
    """Choosing what stays of one staged layer: the window's attention, in float32 at least, and an order."""
    precise = max(4, dtype_bytes)
    layer = max(shape.geometry.layers, key=lambda one: one.slot_bytes(1))
    attention = 3 * layer.heads * plan.prompt.ring * plan.prompt_tokens * precise
    order = 3 * layer.kv_heads * plan.prompt_tokens * INDEX_BYTES
    copied = plan.shape.slot_bytes(layer, dtype_bytes) * max(plan.prompt.kept, default=0)
    unpacked = layer.slot_bytes(dtype_bytes) * plan.prompt_tokens if plan.shape.form.packs else 0
    return max(attention, order + copied) + layer.slot_bytes(precise) * plan.prompt_tokens // 2 + unpacked


def writing_bytes(target: Target, plan: LanePlan) -> int:
    """A step's logits (the last step's, the new ones, in float32, as log-probabilities), or one eviction.

    A native step tells a scorer its attention: then no keys are looked at, and what an eviction computes is
    masks and two numbers for a slot (the attention and the scores), and an order of what may leave.
    """
    held, shape, dtype_bytes = plan.shape, target.shape, target.dtype_bytes
    logits = shape.geometry.vocab * (2 * dtype_bytes + 2 * 4)
    told = target.steps_native and plan.by_attention and not held.exact
    evicting = 0
    for index, layer in enumerate(shape.geometry.layers):
        if layer.kind == "full":
            slots = held.layer_slots(index, layer)
            many = min(held.looked_at_once(index, layer), shape.geometry.policy_layers)
            if told:
                order = 7 * MEMO_BYTES * held.evictable
                each = layer.kv_heads * (slots * (2 * MEMO_BYTES + MASKS) + order)
                evicting = max(evicting, many * each)
                continue
            one_side = prod((slots, layer.kv_heads, layer.head_dim))
            unpacked = one_side * dtype_bytes if held.form.packs else 0
            keys = one_side * 4 if dtype_bytes < 4 or not unpacked else 0  # in float32 and one piece
            each = held.slot_numbers(layer) * slots * MEMO_BYTES
            # Several layers, a layer's keys after the other's; or one, its keys and values turned back.
            evicting = max(evicting, many * each + keys + unpacked, each + keys + 3 * unpacked)
    return held.lanes * max(logits, evicting if plan.schedule.strategy != "full" else 0)
