"""A GGUF model in, its packed file out, without its weights ever being there in plain form."""

from collections.abc import Sequence

import torch

from scope_cli.models.formats import Bits
from scope_cli.models.gguf.header import parts_of
from scope_cli.models.gguf.packing import PACKED, Matrix, packed_entries
from scope_cli.models.lean import PreTrainedModel
from scope_cli.models.making import alone, making
from scope_cli.models.model_folder import ModelFolder
from scope_cli.models.packed import PackedEmbedding, PackedLinear, pack
from scope_cli.models.packed_file import PackedFile, weights_of
from scope_cli.models.tensor_file import Entry


def packed_file(folder: ModelFolder, bits: Bits, dtype: torch.dtype) -> PackedFile:
    """Where a model's packed weights are, or would be; config.json has to be there."""
    sources = parts_of(folder.gguf_file) if folder.gguf_file else None
    return PackedFile.of(folder.path, bits, dtype, sources)


def entries_of(folder: ModelFolder, skeleton: PreTrainedModel, bits: Bits) -> list[Entry] | None:
    """The tensors of the packed model; None where its weights have to be read by transformers.

    skeleton: the model on the meta device, which is packed here
    """
    if folder.gguf_file is None:
        return None
    head, table = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
    names = {module: name for name, module in skeleton.named_modules()}
    shared = {}
    if (
        head is not None and head.weight is table.weight
    ):  # what packing parts: a table that is scaled stays plain
        shared[f"{names[head]}.weight"] = f"{names[table]}.weight"
    pack(skeleton, bits)
    head = skeleton.get_output_embeddings()
    matrices = {}
    for name, module in skeleton.named_modules():
        if isinstance(module, PackedLinear):
            shape = module.out_features, module.in_features
            matrices[f"{name}{PACKED}"] = Matrix(module.kind, shape, module is not head)
        elif isinstance(module, PackedEmbedding):
            shape = module.num_embeddings, module.embedding_dim
            matrices[f"{name}{PACKED}"] = Matrix(module.kind, shape, False)
    return packed_entries(folder.gguf, dict(weights_of(skeleton)), matrices, shared)


def make_packed(folder: ModelFolder, file: PackedFile, entries: Sequence[Entry]) -> None:
    """Write the packed file of a GGUF model; what was killed meanwhile goes on. Raises ModelError."""
    needed = sum(entry.bytes for entry in entries)
    with alone(folder.path, folder.say):
        if file.weight_bytes is not None:  # another process has made it
            return
        what = f"packing {folder.gguf.header.name} to int{file.bits}"
        with making(needed, what, folder.say) as show:
            file.write(entries, lambda written, total: show(written))
