"""The attention of a step on a GPU against the plain formula; without one, through Triton's interpreter."""

from dataclasses import replace

import numpy
import pytest
import torch

pytest.importorskip("triton")

import triton

from scope_cli.formats.base import SHORT
from scope_cli.models.slot_attention import BLOCK, PackedSlots, attend_layer, attend_slots, shared_out
from tests.cache.test_cache import loaded_tiny
from tests.cache.test_packed_slots import cache_with, stepped

CUDA = torch.cuda.is_available()


def release(package):
    return tuple(int(part) for part in package.__version__.split(".")[:2])


if not CUDA and release(triton) < (3, 8) and release(numpy) >= (2, 4):
    reason = f"Triton {triton.__version__} interprets nothing with numpy {numpy.__version__}"
    pytest.skip(reason, allow_module_level=True)
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
pytestmark = [pytest.mark.gpu] if CUDA else []
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if CUDA else [torch.float32]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def plain(query, keys, values, bias, scale):
    """The formula in float64."""
    query, keys, values, bias = (one.double().cpu() for one in (query, keys, values, bias))
    logits = scale * query @ keys.transpose(2, 3) + bias
    return torch.nan_to_num(logits.softmax(-1)) @ values


def slots_of(lanes, kv_heads, group, slots, head_dim, dtype, seed=0, held=0.6):
    """Buffers of which a prefix is looked at, free slots scattered in it, and one stretch all free."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    query = random(lanes, kv_heads, group, head_dim)
    keys = random(lanes, kv_heads, slots + 70, head_dim)[:, :, :slots]
    values = random(lanes, kv_heads, slots + 70, head_dim)[:, :, :slots]
    free = torch.rand(lanes, kv_heads, 1, slots, generator=generator) > held
    free[..., BLOCK : 3 * BLOCK] = True
    free[..., 0] = False
    bias = torch.zeros(free.shape).masked_fill(free, -torch.inf).to(DEVICE, dtype)
    return query, keys, values, bias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("lanes", "kv_heads", "group"), [(1, 2, 1), (1, 1, 8), (3, 2, 4), (2, 1, 3)])
@pytest.mark.parametrize("slots", [1, 257])
def test_attention_over_slots_is_the_plain_formula(dtype, head_dim, lanes, kv_heads, group, slots):
    query, keys, values, bias = slots_of(lanes, kv_heads, group, slots, head_dim, dtype)
    out = attend_slots(query, keys, values, bias, head_dim**-0.5)
    wanted = plain(query, keys, values, bias, head_dim**-0.5)
    assert out.dtype == dtype and out.is_contiguous()
    error = (out.double().cpu() - wanted).norm() / wanted.norm()
    assert error < TOLERANCE[dtype], error


def test_what_lies_in_a_free_slot_is_never_seen():
    query, keys, values, bias = slots_of(2, 2, 4, 500, 64, DTYPES[0])
    free = (bias == -torch.inf).squeeze(2)
    out = attend_slots(query, keys, values, bias, 0.125)
    keys[free], values[free] = torch.nan, torch.nan
    assert torch.equal(attend_slots(query, keys, values, bias, 0.125), out)


def test_a_lane_that_holds_nothing_gives_zeros_and_its_neighbour_what_it_would():
    query, keys, values, bias = slots_of(2, 2, 4, 300, 64, DTYPES[0])
    alone = attend_slots(query, keys, values, bias, 0.125)
    bias[0] = -torch.inf
    out = attend_slots(query, keys, values, bias, 0.125)
    assert not out[0].any() and torch.equal(out[1], alone[1])


@pytest.mark.parametrize("slots", [1, 63, 64, 65, 4096, 5000])
@pytest.mark.parametrize("heads", [1, 8, 64, 4096])
def test_every_slot_belongs_to_one_stretch(slots, heads):
    parts, blocks = shared_out(heads, slots, DEVICE)
    assert (parts - 1) * blocks * BLOCK < slots <= parts * blocks * BLOCK


def packed_8(tensor):
    """Rounded to 8 bits with a scale for each token: the numbers, the scales, what they stand for."""
    scales = (tensor.float().abs().amax(-1) / 127).to(torch.float16)
    numbers = (tensor.float() / scales.float().unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
    return numbers, scales, numbers.float() * scales.float().unsqueeze(-1)


def packed_4(tensor):
    """Rounded to 4 bits, a scale and a minimum for each 32: the bytes, the groups, what they stand for."""
    grouped = tensor.float().unflatten(-1, (-1, 32))
    least = grouped.amin(-1).to(torch.float16)
    step = ((grouped.amax(-1) - least.float()) / 15).to(torch.float16)
    numbers = ((grouped - least.float().unsqueeze(-1)) / step.float().unsqueeze(-1)).round().clamp(0, 15)
    stands_for = (numbers * step.float().unsqueeze(-1) + least.float().unsqueeze(-1)).flatten(-2)
    low, high = numbers.flatten(-2).to(torch.uint8).chunk(2, -1)
    return low | (high << 4), torch.stack([step, least], -2), stands_for


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("value_bits", [8, 4])
@pytest.mark.parametrize(("lanes", "kv_heads", "group"), [(1, 2, 1), (3, 2, 4), (1, 1, 8)])
def test_packed_slots_are_what_their_numbers_stand_for(dtype, head_dim, value_bits, lanes, kv_heads, group):
    query, keys, values, bias = slots_of(lanes, kv_heads, group, 300, head_dim, dtype)
    keys, key_scales, plain_keys = packed_8(keys)
    if value_bits == 8:
        values, value_scales, plain_values = packed_8(values)
        packed = PackedSlots(key_scales, value_scales)
    else:
        values, value_groups, plain_values = packed_4(values)
        packed = PackedSlots(key_scales, value_groups=value_groups)
    out = attend_slots(query, keys, values, bias, head_dim**-0.5, packed)
    wanted = plain(query, plain_keys, plain_values, bias, head_dim**-0.5)
    error = (out.double().cpu() - wanted).norm() / wanted.norm()
    assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize("value_bits", [16, 8, 4])
@pytest.mark.parametrize(("lanes", "kv_heads", "group", "exact"), [(1, 2, 1, 64), (3, 2, 4, 5)])
def test_exact_tokens_beside_packed_slots_are_seen_as_they_are(value_bits, lanes, kv_heads, group, exact):
    dtype, head_dim = DTYPES[0], 64
    query, keys, values, bias = slots_of(lanes, kv_heads, group, 300, head_dim, dtype)
    _, exact_keys, exact_values, exact_bias = slots_of(lanes, kv_heads, group, 300, head_dim, dtype, seed=1)
    beside = exact_keys[:, :, :exact], exact_values[:, :, :exact], exact_bias[..., :exact].clone()
    beside[2][..., 0] = -torch.inf
    beside[2][..., -1] = 0
    packed = PackedSlots()
    plain_keys, plain_values = keys, values
    if value_bits < 16:
        keys, key_scales, plain_keys = packed_8(keys)
        packed = PackedSlots(key_scales)
    if value_bits == 8:
        values, value_scales, plain_values = packed_8(values)
        packed = PackedSlots(key_scales, value_scales)
    if value_bits == 4:
        values, value_groups, plain_values = packed_4(values)
        packed = PackedSlots(key_scales, value_groups=value_groups)
    out = attend_slots(query, keys, values, bias, head_dim**-0.5, packed, beside)
    both = [
        torch.cat([one, other], axis)
        for one, other, axis in (
            (plain_keys, beside[0], 2),
            (plain_values, beside[1], 2),
            (bias, beside[2], 3),
        )
    ]
    wanted = plain(query, *both, head_dim**-0.5)
    error = (out.double().cpu() - wanted).norm() / wanted.norm()
    assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize("kv", ["plain", "int8", "k8v4"])
@pytest.mark.parametrize("exact", [0, 6])
def test_the_kernel_reads_a_layer_as_sdpa_reads_it_unpacked(tmp_path, kv, exact):
    """After evictions, with free slots and veiled ones."""
    loaded = loaded_tiny(tmp_path, "llama-32", torch.float32)
    opened = replace(loaded.opened, device=DEVICE)
    loaded = replace(loaded, model=loaded.model.to(DEVICE), opened=opened)
    prompt = torch.randint(0, 256, (1, 30), device=DEVICE)
    cut = {"budget": 16, "recent": 8, "interval": 5}
    cache, _ = cache_with(loaded, SHORT[kv], exact, prompt=30, tokens=41, ids=prompt, **cut)
    stepped(loaded, cache, torch.randint(0, 256, (40,), device=DEVICE))
    assert cache.reading().evictions > 0
    for layer in cache.layers:
        layer_query = torch.randn(1, layer.geometry.kv_heads, 2, 32, device=DEVICE)
        keys, values, bias = layer.seen()
        sdpa = torch.nn.functional.scaled_dot_product_attention
        wanted = sdpa(layer_query, keys, values, bias, scale=layer.scale)
        torch.testing.assert_close(attend_layer(layer_query, layer), wanted, rtol=1e-4, atol=1e-4)
