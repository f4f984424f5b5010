"""A prompt read in C++ against transformers' layers, for every row of the table; its bits in any chunks."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from scope_cli.cache.cache import ScopeCache
from scope_cli.formats.base import SHORT
from scope_cli.models import attention
from scope_cli.models.attention import ATTENTION
from scope_cli.models.decoders import NotInTable
from scope_cli.models.native_prompt import NativePrompt, reader_of
from scope_cli.native.layout import Kind
from tests.families import random_model
from tests.helpers.packed_linear import pack_linears
from tests.helpers.rounding import attended, rounded
from tests.native.test_step import FAMILIES, Run, distance, model_for, prompt_of

PROMPT = prompt_of(150, 5)


def packed_model(row: str, kind: Kind = Kind.INT4) -> Any:
    model = model_for(row)
    pack_linears(model, kind)
    return model


def rounds_to_bytes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers' layers and attention multiply is rounded as a prompt's is."""

    def attend_rounded(
        query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, scale: float, **_: Any
    ) -> Tensor:
        all_before = torch.ones(query.shape[-2], keys.shape[-2], dtype=torch.bool).tril()
        return attended(query, keys, values, all_before if mask is None else mask, scale).float()

    def round_given(_module: Any, given: tuple[Tensor]) -> Tensor:
        return rounded(given[0], 8).float()

    for name, module in model.named_modules():
        if name.endswith(("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj")):
            module.register_forward_pre_hook(round_given)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", attend_rounded)


@torch.no_grad()
def read(
    model: Any, library: Any, chunks: tuple[int, ...] = (150,), form: str = "plain"
) -> tuple[Tensor, ScopeCache]:
    """The logits of PROMPT's last token, and the cache; by transformers where there is no library."""
    cache = Run(model, [[1]], budget=None, room=200, form=SHORT[form]).cache
    cache.start_prompt(0, cache.count(0).schedule)
    forward, first = reader_of(model, cache, library), 0
    assert library is None or isinstance(forward, NativePrompt)
    for tokens in chunks:
        positions = cache.start_chunk(0, tokens)
        logits = forward(torch.tensor([PROMPT[first : first + tokens]]), positions, cache)
        cache.end_chunk()
        first += tokens
    return logits, cache


@pytest.mark.parametrize(
    ("row", "form"), [*((row, "plain") for row in FAMILIES), ("llama", "int8"), ("gemma3_text", "int8")]
)
def test_a_prompt_gives_what_transformers_layers_give(native, row, form, monkeypatch):
    model = packed_model(row)
    logits, ours = read(model, native.library, (70, 80), form)
    rounds_to_bytes(model, monkeypatch)
    expected, theirs = read(model, None, (70, 80), form)
    apart = 0.1 if row.startswith("phi3") else 0.03  # a hair decides to which side a number is rounded
    assert distance(logits, expected) < apart
    for (name, got), held in zip(ours.tensors().items(), theirs.tensors().values(), strict=True):
        numbers = got.is_floating_point() or got.dtype == torch.int8
        assert torch.equal(got, held) or (numbers and distance(got.float(), held.float()) < 0.03), name


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ("llama", "plain"), ("gemma3_text", "plain"), ("olmo2", "plain"), ("qwen3", "plain"),
        ("llama (biases)", "plain"), ("llama", "int8"), ("gemma3_text", "int8"),
    ],
)  # fmt: skip
def test_a_token_has_the_same_bits_in_any_chunk_and_on_any_cpu(native, row, form):
    model = packed_model(row, Kind.INT8 if row == "qwen3" else Kind.INT4)

    def all_of(chunks: tuple[int, ...], instructions: str, threads: int) -> list[Tensor]:
        native.use(instructions)
        native.threads(threads)
        logits, cache = read(model, native.library, chunks, form)
        return [logits, *(part for layer in cache.layers for part in (layer.keys, layer.values))]

    windowed = row == "gemma3_text"  # whose keys begin where the window of a chunk's first token does
    expected = all_of((150,), "plain", 1)
    for instructions in native.all_instructions():
        for chunks, threads in (((150,), 3), ((1, 4, 140, 5), 2), ((64, 86), 16)):
            if chunks == (150,) or not windowed:
                assert all(map(torch.equal, all_of(chunks, instructions, threads), expected))


def test_sizes_that_fill_no_block_are_right(native, monkeypatch):
    sizes = {"hidden_size": 72, "intermediate_size": 300, "head_dim": 24, "vocab_size": 301}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 2}
    model = random_model(LlamaConfig(**sizes, **heads))
    model.set_attn_implementation(ATTENTION)
    pack_linears(model, Kind.INT4)
    logits, _ = read(model, native.library)
    rounds_to_bytes(model, monkeypatch)
    expected, _ = read(model, None)
    assert distance(logits, expected) < 0.03


def test_who_is_read_by_transformers(native):
    plain = model_for("llama")
    cache = Run(plain, [[1]]).cache
    with pytest.raises(NotInTable, match="not packed"):
        NativePrompt(plain, cache, native.library)
    cache.dtype = torch.bfloat16
    with pytest.raises(NotInTable, match="float32"):
        NativePrompt(packed_model("llama"), cache, native.library)
