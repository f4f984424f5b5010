"""A model's linear layers in, the same with 4 or 8 bits a weight out, for a CPU.

A row is cut into blocks of 32 weights; a block has a code of 4 or 8 bits for each weight, a scale, and with 4
bits a minimum, as in GGUF's Q4_1 and Q8_0 (`native/products.h`). Products are the same bits whatever the
number of rows, threads and the kind of CPU.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

from torch import Tensor, nn

from scope_cli.models.formats import HEAD_KIND, KINDS, Bits, packs
from scope_cli.models.lean import PreTrainedModel
from scope_cli.native import layout
from scope_cli.native.layout import Kind
from scope_cli.native.products import product, rows_of
from scope_cli.native.weights import Change, pack_measured, unpack


def _its_own(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight


def pack(
    model: PreTrainedModel, bits: Bits, weight_of: Callable[[nn.Linear | nn.Embedding], Tensor] = _its_own
) -> float:
    """Replace the model's linear layers, one by one; those of a model on the meta device by empty ones.

    weight_of: what a layer's weight is, asked once for each when its turn comes
    returns the loss: the root mean square of what that changed in the layers' weights, as a share of theirs
    """
    change, head = Change(), model.get_output_embeddings()
    of_head: Tensor | None = None  # what an embedding that shares its table has made already
    for name, module, kind in list(_targets(model, bits)):
        weight = module.weight
        is_head = head is not None and weight is head.weight
        if of_head is not None and is_head:
            packed = of_head
        else:
            measured = isinstance(module, nn.Linear) and not is_head
            packed, own = pack_measured(weight_of(module), kind, measured)
            change += own
        if is_head:
            of_head = packed
        if isinstance(module, nn.Linear):
            model.set_submodule(name, PackedLinear(module, packed, kind))
        else:
            model.set_submodule(name, PackedEmbedding(module, packed, kind))
    return change.loss


def packed_bytes(model: PreTrainedModel, bits: Bits) -> int:
    """Bytes of all weights of a model, maybe one on the meta device, once `pack` has been there."""
    targets = {module: kind for _, module, kind in _targets(model, bits)}
    found: dict[tuple[int, bool], int] = {}  # tied ones once
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = targets.get(module) if name == "weight" else None
            size = parameter.nbytes if kind is None else layout.packed_bytes(kind, *parameter.shape)
            found[id(parameter), kind is None] = size
    return sum(found.values())


def _targets(model: PreTrainedModel, bits: Bits) -> Iterator[tuple[str, nn.Linear | nn.Embedding, Kind]]:
    """(name, module, kind) of what is packed."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    for name, module in model.named_modules():
        shape = module.weight.shape if isinstance(module, nn.Linear | nn.Embedding) else ()
        if not packs(tuple(shape)):
            continue
        if isinstance(module, nn.Linear):
            yield name, module, HEAD_KIND if module is head else KINDS[bits]
        elif module is table and type(module) is nn.Embedding:  # one that scales is a class of its own
            yield name, module, HEAD_KIND


class PackedLinear(nn.Module):
    """A linear layer whose weight, [out, in], is packed."""

    packed: Tensor  # uint8 [groups, blocks, bytes of a block]
    bias: Tensor | None  # [out]

    def __init__(self, linear: nn.Linear, packed: Tensor, kind: Kind) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.kind = kind
        self.register_buffer("packed", packed)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] to [..., out], in x's dtype."""
        bias = self.bias if self.bias is None else self.bias.float()
        return product(x, self.packed, bias, self.kind, self.out_features)

    @cached_property
    def weight(self) -> Tensor:
        """The plain weight, [out, in], for whoever computes with it; kept once somebody asked."""
        return unpack(self.packed, self.kind, self.out_features, self.in_features)


class PackedEmbedding(nn.Module):
    """An embedding whose table, [tokens, hidden], is packed; rows are unpacked when asked for."""

    packed: Tensor  # uint8 [groups, blocks, bytes of a block]

    def __init__(self, table: nn.Embedding, packed: Tensor, kind: Kind) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.weight.shape
        self.dtype = table.weight.dtype
        self.kind = kind
        self.register_buffer("packed", packed)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [...] to [..., hidden], in the dtype the table had."""
        return rows_of(self.packed, self.kind, self.embedding_dim, ids).to(self.dtype)
