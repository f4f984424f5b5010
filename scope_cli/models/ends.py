"""Tokens that end a model's turn by their name, whatever its files say of ids."""

from collections.abc import Mapping

NAMES = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<end_of_utterance>",
    "<turn|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek's
)
MESSAGE_END, TURN_END = "<|end|>", "<|return|>"  # where there is the second, the first ends a part of a turn


def named_ends(special_tokens: Mapping[str, int]) -> list[int]:
    """The ids of those of a tokenizer's special tokens whose name ends a turn."""
    return [
        special_tokens[name]
        for name in NAMES
        if name in special_tokens and not (name == MESSAGE_END and TURN_END in special_tokens)
    ]
