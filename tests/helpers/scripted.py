"""A model in a folder that writes what it is told."""

from itertools import pairwise

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.tiny import SHAPE, tiny_tokenizer

EOS, END = 257, 259


def scripted(folder, *successors, chat_template=None):
    """A model that writes these one after the other, from wherever its prompt ends; each is there once."""
    ids = [one if isinstance(one, int) else ord(one) for part in successors
           for one in ([part] if isinstance(part, int) else part)]  # fmt: skip
    assert len({*ids}) == len(ids)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "hidden_size": 256}))
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    embedded = torch.nn.functional.normalize(torch.randn(260, 256), dim=-1)
    model.model.embed_tokens.weight.data.copy_(embedded)
    model.lm_head.weight.data.zero_()
    for token, successor in pairwise(ids):
        model.lm_head.weight.data[successor] = embedded[token]
    model.save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder
