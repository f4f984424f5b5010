"""A text in, a file with the model's usual queries out: what the scorer `tri` needs.

Per layer and query head, over all tokens of the text, before the rotation: the mean of each pair of channels
as a complex number, and the mean of its size (TriAttention, arXiv 2604.04921).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from scope_cli.models.lean import AttentionInterface
from scope_cli.models.model import OpenedModel
from scope_cli.models.skeleton import rope_frequencies
from scope_cli.policies.rope import as_pairs, unrotate

CALIBRATE = "scope-calibrate"


@torch.no_grad()
def calibrate(opened: OpenedModel, ids: list[int], output: Path) -> int:
    """Write the statistics of one forward pass over `ids`; returns how many layers were seen."""
    loaded = opened.load(attention=CALIBRATE)
    inv_freq = rope_frequencies(loaded.model)
    positions = torch.arange(len(ids), device=loaded.device)
    found: dict[str, Tensor] = {}

    def look(layer: int, queries: Tensor) -> None:
        """queries: [1, heads, tokens, head_dim]"""
        if inv_freq is None or opened.geometry.layers[layer].kind != "full":
            return
        pairs = as_pairs(unrotate(queries[0].float(), positions, inv_freq), inv_freq)
        found[f"{layer}.mean"] = torch.view_as_real(pairs.mean(1)).contiguous().cpu()
        found[f"{layer}.size"] = pairs.abs().mean(1).contiguous().cpu()

    text = torch.tensor([ids], device=loaded.device)
    loaded.model(input_ids=text, logits_to_keep=1, use_cache=False, look=look)
    if found:
        save_file(found, output, metadata={"model": opened.name, "tokens": str(len(ids))})
    return len(found) // 2


def _attend(module: nn.Module, query: Tensor, *args: Any, look: Any, **kwargs: Any) -> tuple[Tensor, None]:
    look(module.layer_idx, query)
    return sdpa_attention_forward(module, query, *args, **kwargs)


AttentionInterface.register(CALIBRATE, _attend)
