"""Tokenizers of every kind that models come with, small and made here."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SAMPLE = "The river rose. The river fell.\n\n水位上升。水位下降。 naïve e\u0301te\u0301 \U0001f30a\U0001f30a!"


def byte_level() -> PreTrainedTokenizerFast:
    """As SmolLM2 and Qwen have it; the merges come from SAMPLE, so other characters fall into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: ▁ is a space, dropped at the very front; what has no token is spelt in bytes."""
    merges = [("▁", "T"), ("▁T", "h"), ("▁Th", "e"), ("▁", "r"), ("i", "v"), ("▁r", "iv")]
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *sorted({*SAMPLE[:32]}), "水"]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


SPECIAL, ADDED = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"], ["<think>", "</think>"]


def with_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL[:2]])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """Whose vocabulary has the names of control tokens as ordinary pieces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"<s/>river"]
    vocab = [(piece, -float(at)) for at, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {"byte_level": with_tokens(byte_level()), "metaspace": with_tokens(metaspace()),
              "unigram": with_tokens(unigram())}  # fmt: skip


every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)
