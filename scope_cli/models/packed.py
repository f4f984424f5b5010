"""A model's linear layers in, the same with 4 or 8 bits a weight out, for a CPU.

A row is cut into blocks of 32 weights; a block has a code of 4 or 8 bits for each weight, a scale, and with 4
bits a minimum, as in GGUF's Q4_0, Q4_1 and Q8_0. Weights that were read from such a file get their own codes
back. The products are torch's packed kernel `_weight_int4pack_mm_for_cpu`, whose rows, scales and results are
bfloat16. 8 bits are two planes of 4: code = 16 * high + low.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from scope_cli.models.choices import has_amx
from scope_cli.models.formats import BLOCK, ROWS, UNPACKED_FROM, Bits, linear_bytes, packs, table_bytes
from scope_cli.models.lean import PreTrainedModel

AT_ONCE = 4096  # rows of a matrix that are packed at once, which bounds the memory that packing takes
ON_GRID = 1e-3  # of a scale: so near to its code's value lies a weight that was read from a quantised file


def pack(model: PreTrainedModel, bits: Bits) -> float:
    """Replace the model's linear layers, one by one; those of a model on the meta device by empty ones.

    returns the loss: the root mean square of what that changed in the layers' weights, as a share of theirs
    """
    changed = total = 0.0
    head = model.get_output_embeddings()
    for name, module, own_bits in list(_targets(model, bits)):
        packed = PackedLinear(module, own_bits) if isinstance(module, nn.Linear) else PackedEmbedding(module)
        model.set_submodule(name, packed)
        if isinstance(packed, PackedLinear) and module is not head and not module.weight.is_meta:
            weight = module.weight.detach().float()
            total += float(weight.square().sum())
            changed += float((packed.weight - weight).square().sum())
            del packed.weight
    return (changed / total) ** 0.5 if total else 0.0


def packed_bytes(model: PreTrainedModel, bits: Bits) -> int:
    """Bytes of all weights of a model, maybe one on the meta device, once `pack` has been there."""
    targets = {module: own_bits for _, module, own_bits in _targets(model, bits)}
    plain: dict[int, int] = {}
    total = 0
    for module in model.modules():
        parameters = dict(module.named_parameters(recurse=False))
        if module in targets:
            weight = parameters.pop("weight")
            linear, count = isinstance(module, nn.Linear), weight.numel()
            total += linear_bytes(count, targets[module]) if linear else table_bytes(count)
        plain |= {id(parameter): parameter.nbytes for parameter in parameters.values()}  # tied ones once
    return total + sum(plain.values())


def _targets(model: PreTrainedModel, bits: Bits) -> Iterator[tuple[str, nn.Linear | nn.Embedding, Bits]]:
    """(name, module, bits) of what is packed.

    lm_head, and an embedding whose table it shares, get 8 bits: their error goes straight into the logits.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = isinstance(head, nn.Linear) and head.weight is getattr(table, "weight", None)
    for name, module in model.named_modules():
        shape = module.weight.shape if isinstance(module, nn.Linear | nn.Embedding) else ()
        if not packs(tuple(shape)):
            continue
        if isinstance(module, nn.Linear):
            yield name, module, 8 if module is head else bits
        elif (
            module is table and tied and type(module) is nn.Embedding
        ):  # one that scales is a class of its own
            yield name, module, 8


class PackedLinear(nn.Module):
    """A linear layer whose weight, [out, in], is packed."""

    packed: Tensor  # uint8 [out, planes * in / 2], in the kernel's order
    scales: Tensor  # bfloat16 [planes * in / BLOCK, out, 2]: scale, and the value of code 8
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bits: Bits) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.planes = bits // 4
        self.order = kernel_order()  # asked here: what is compiled finds constants
        self.plain_dtype = torch.bfloat16 if has_amx() else torch.float32
        codes, scales = _packed(linear.weight.detach(), bits)
        self.register_buffer("packed", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] to [..., out], in x's dtype."""
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] >= UNPACKED_FROM and self.order is not None:
            out = rows.to(self.plain_dtype) @ self.unpacked(self.plain_dtype)
        else:
            rows = rows.to(torch.bfloat16)
            if self.planes == 2:
                rows = torch.cat([rows, rows], 1)  # the kernel adds the planes up before it rounds
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, BLOCK, self.scales)
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The transposed weight, [in, out]."""
        assert self.order is not None
        tile = self.order.rows
        codes = self.order.codes(self.packed.view(-1, self.planes * self.in_features, tile // 2))
        codes = codes.view(torch.int8).sub_(8).to(dtype).view(codes.shape[0], self.planes, -1, BLOCK, tile)
        scales = self.scales.to(dtype).view(self.planes, -1, 1, codes.shape[0], tile, 2).unbind(-1)
        scale, zero = (part.permute(3, 0, 1, 2, 4) for part in scales)
        weight = torch.addcmul(zero[:, 0], codes[:, 0], scale[:, 0])  # [out / tile, in / BLOCK, BLOCK, tile]
        if self.planes == 2:
            weight = torch.addcmul(weight.add_(zero[:, 1]), codes[:, 1], scale[:, 1])
        return weight.permute(1, 2, 0, 3).reshape(self.in_features, self.out_features)

    @cached_property
    def weight(self) -> Tensor:
        """The plain weight, [out, in], for whoever computes with it; kept once somebody asked."""
        if self.order is not None:
            return self.unpacked(torch.float32).T.contiguous()
        return self(torch.eye(self.in_features)).T.contiguous()


class PackedEmbedding(nn.Module):
    """An embedding whose table, [tokens, hidden], has 8 bits a weight; rows are unpacked when asked for."""

    codes: Tensor  # int8 [tokens, hidden]
    scales: Tensor  # bfloat16 [tokens, hidden / BLOCK]

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.dtype = table.weight.dtype
        weight = table.weight.detach()
        if weight.is_meta:
            tokens, hidden = weight.shape
            codes = torch.empty(tokens, hidden, dtype=torch.int8, device="meta")
            scales = torch.empty(tokens, hidden // BLOCK, dtype=torch.bfloat16, device="meta")
        else:
            parts = [_blocks_of_8(rows) for rows in weight.split(AT_ONCE)]
            codes = torch.cat([codes.to(torch.int8) for codes, _ in parts])
            scales = torch.cat([scales for _, scales in parts])
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [...] to [..., hidden], in the dtype the table had."""
        codes = self.codes[ids].to(self.dtype).unflatten(-1, (-1, BLOCK))
        return (codes * self.scales[ids].to(self.dtype).unsqueeze(-1)).flatten(-2)


def _packed(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Codes and scales of a PackedLinear; weight: [out, in]"""
    if weight.is_meta:
        (rows, width), planes = weight.shape, bits // 4
        codes = torch.empty(rows, planes * width // 2, dtype=torch.uint8, device="meta")
        return codes, torch.empty(planes * width // BLOCK, rows, 2, dtype=torch.bfloat16, device="meta")
    parts = [_pack_rows(some, bits) for some in weight.split(AT_ONCE)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts], 1)


def _pack_rows(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """weight: [out, in] to codes in the kernel's order, and scales and zeros as the kernel takes them."""
    if bits == 4:
        codes, scale, zero = _blocks_of_4(weight)
        planes = [(codes, scale, zero)]
    else:
        codes, scale = _blocks_of_8(weight)
        codes = codes + 128  # 1 to 255
        planes = [(codes // 16, 16 * scale, torch.zeros_like(scale)), (codes % 16, scale, 8 * scale)]
    joined = torch.cat([codes for codes, _, _ in planes], 1)
    scales = torch.cat([torch.stack([scale, zero], 2) for _, scale, zero in planes], 1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(joined.int().contiguous(), 1)
    return packed, scales.transpose(0, 1).contiguous()  # [in / BLOCK, out, 2]


def _blocks_of_4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes from 0 to 15, [out, in]; scale and value of code 8, [out, in / BLOCK].

    weight: [out, in]
    """
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    scale = _spacing(blocks.flatten(0, 1)).view(*blocks.shape[:2], 1)
    scale, zero = scale.bfloat16(), (blocks.amin(2, keepdim=True) + 8 * scale).bfloat16()
    codes = ((blocks - zero) / scale).nan_to_num_().round_().add_(8).clamp_(0, 15)
    return codes.flatten(1), scale.squeeze(2), zero.squeeze(2)


def _spacing(blocks: Tensor) -> Tensor:
    """How far apart the values of each block are, [blocks]; blocks: [blocks, BLOCK].

    A 15th of its range, except where the block comes from a file and uses neither its lowest nor its highest
    code: its weights are equally spaced all the same, and the number of spaces is found by trying.
    """
    low, high = blocks.aminmax(dim=1, keepdim=True)
    scale = (high - low).squeeze(1) / 15
    for some in (slice(256), slice(None)):  # a look at a few tells weights that were never quantised
        off = _off_grid(blocks[some], low[some], scale[some, None]).nonzero().squeeze(1)
        tried_all = len(off)
        for spaces in range(14, 0, -1):
            tried = (high[off] - low[off]) / spaces
            fits = ~_off_grid(blocks[off], low[off], tried)
            scale[off[fits]] = tried[fits].squeeze(1)
            off = off[~fits]
        if len(off) > tried_all / 2:
            return scale
    return scale


def _off_grid(blocks: Tensor, low: Tensor, scale: Tensor) -> Tensor:
    """Which blocks have a weight that is no whole number of scales above the lowest."""
    steps = ((blocks - low) / scale).nan_to_num_()
    return ((steps - steps.round()).abs() > ON_GRID).any(1)


def _blocks_of_8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight: [out, in] to codes from -127 to 127, [out, in], and scales, [out, in / BLOCK]."""
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    scale = (blocks.abs().amax(2, keepdim=True) / 127).bfloat16()
    codes = (blocks / scale.float()).nan_to_num_().round_().clamp_(-127, 127)
    return codes.flatten(1), scale.squeeze(2)


@dataclass(frozen=True)
class Order:
    """How torch lays the codes out: `rows` of the matrix together, column by column, two codes in a byte.

    A byte holds row i and row i + rows / 2, or, where they are `neighbours`, rows 2 i and 2 i + 1.
    """

    rows: int
    neighbours: bool = False

    def codes(self, tiles: Tensor) -> Tensor:
        """tiles: uint8 [tiles, in, rows / 2] to [tiles, in, rows]"""
        halves = tiles & 15, tiles >> 4
        return torch.stack(halves, 3).flatten(2) if self.neighbours else torch.cat(halves, 2)


ORDERS = [  # a CPU with AVX-512, one with AVX2, another one
    Order(64),
    Order(32),
    Order(32, neighbours=True),
    Order(16, neighbours=True),
]


@lru_cache
def kernel_order() -> Order | None:
    """The order on this CPU, found by looking; None: one that we do not know.

    There, long inputs go through the packed kernel too.
    """
    codes = torch.randint(16, (2 * ROWS, BLOCK), generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    for order in ORDERS:
        tiles = order.codes(packed.view(-1, BLOCK, order.rows // 2))  # [tiles, in, rows]
        if torch.equal(tiles.transpose(1, 2).flatten(0, 1), codes.to(torch.uint8)):
            return order
    return None
