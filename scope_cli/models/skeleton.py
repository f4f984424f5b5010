"""A model without its weights: its modules, and the bytes that the weights will take."""

from copy import deepcopy

import torch
from transformers import PreTrainedConfig

from scope_cli.machine.setup import hushed
from scope_cli.models.architecture import auto_class
from scope_cli.models.formats import BITS, plain_bytes
from scope_cli.models.lean import PreTrainedModel
from scope_cli.models.model_folder import ModelFolder
from scope_cli.models.packed import packed_bytes


def skeleton(config: PreTrainedConfig, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
    """The model without its weights, which are on the meta device."""
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    with init_empty_weights(include_buffers=False), no_init_weights(), hushed():
        model = auto_class(config).from_config(
            deepcopy(config), dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()
    return model


def weight_bytes(
    folder: ModelFolder, config: PreTrainedConfig, dtype: torch.dtype, load_in: str | None = None
) -> int:
    """Bytes of the weights once loaded, from the headers of their files.

    Exact, but for bitsandbytes: there it takes every matrix outside embedding and lm_head for quantised.
    """
    if load_in in BITS:
        return packed_bytes(skeleton(config, dtype), BITS[load_in])
    if folder.random:
        return sum(weight.nbytes for weight in skeleton(config, dtype).parameters())
    return plain_bytes(folder.shapes.items(), dtype.itemsize, load_in)


def rope_frequencies(model: PreTrainedModel) -> torch.Tensor | None:
    """Inverse frequencies of the policy layers' rotary embedding, [rotated / 2]; None where there is none."""
    for module in model.modules():
        for name in ("full_attention_inv_freq", "inv_freq"):  # Gemma 3 has one for each kind of layer
            if (found := getattr(module, name, None)) is not None:
                return found
    return None
