"""What a GGUF file says of its tokenizer in, transformers' tokenizer out, and the ids that end a text."""

import json
from typing import TYPE_CHECKING, Any

from scope_cli.errors import ModelError
from scope_cli.models.ends import named_ends
from scope_cli.models.gguf.header import BROKEN, Header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CONTROL = 3  # a token's type: never part of a text
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # in transformers, in GGUF
GPT2_SPLIT = {"gpt-2", "default", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "mellum"}
DIGITS_SPLIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
LIKE = {"stablelm2": "qwen2", "hunyuan": "qwen2", "chatglm-bpe": "llama-bpe", "glm4": "llama-bpe"}
KNOWN_SPLITS = {  # of transformers, which takes GPT-2's way for every other name without a word
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "dbrx", "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35",
    "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2",
}  # fmt: skip
KINDS = ("gpt2", "llama", "gemma4")  # byte-level BPE; sentencepiece's BPE, two spellings


def check(header: Header, vocab: int) -> None:
    """Raises ModelError where there is no tokenizer that can be made; `vocab` rows has the embedding."""
    say = _Said(header)
    kind, tokens = say("model"), say("tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise ModelError(f"{header.name} holds no tokenizer (tokenizer.ggml.tokens)", BROKEN)
    if kind not in KINDS:
        raise ModelError(
            f"{header.name} has a tokenizer of the kind {kind!r}; {', '.join(KINDS)} can be read",
            "the model's safetensors files come with its tokenizer: use those",
        )
    if len(tokens) > vocab:
        raise ModelError(f"{header.name} has {len(tokens):,} tokens, and weights for {vocab:,}", BROKEN)
    for name, letter in (("token_type", int), ("scores", float), ("merges", str)):
        values = say(name)
        if values is None:
            continue
        if not isinstance(values, list) or not all(type(value) is letter for value in values):
            raise ModelError(f"{header.name} has a tokenizer.ggml.{name} of another type", BROKEN)
        if name != "merges" and len(values) != len(tokens):
            raise ModelError(f"{header.name} has {len(values)} {name} for {len(tokens)} tokens", BROKEN)
    if say("merges") is None and (kind == "gpt2" or say("scores") is None):
        raise ModelError(f"{header.name} does not say how its tokens are merged", BROKEN)
    for name in (*END_KEYS, *(f"{theirs}_token_id" for theirs in SPECIAL.values())):
        number = say(name)
        if number is not None and (type(number) is not int or not 0 <= number < len(tokens)):
            raise ModelError(f"{header.name} says tokenizer.ggml.{name} = {number}", BROKEN)
    known = {None, *GPT2_SPLIT, *DIGITS_SPLIT, *LIKE, *KNOWN_SPLITS}
    if kind == "gpt2" and say("pre") not in known:
        raise ModelError(
            f"{header.name} splits its text as {say('pre')!r} (tokenizer.ggml.pre), which is not known",
            "the model's safetensors files come with its tokenizer: use those",
        )


def tokenizer_of(header: Header) -> "PreTrainedTokenizerFast":
    """The tokenizer, as the model's folder will have it."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    say = _Said(header)
    renamed = GGUF_TOKENIZER_MAPPING["tokenizer"]
    said = {
        ours: header.metadata[f"tokenizer.{theirs}"]
        for theirs, ours in renamed.items()
        if f"tokenizer.{theirs}" in header.metadata
    }
    pre = said.get("pre_tokenizer_type")
    said["pre_tokenizer_type"] = LIKE.get(str(pre), pre)
    tokens = said["tokens"]
    try:
        backend, _ = convert_gguf_tokenizer(header.architecture, said)
        if say("model") == "gpt2" and pre in DIGITS_SPLIT:
            _split_digits(backend)
        if (
            say("model") == "llama"
            and say("add_space_prefix") is False
            and "gemma" not in header.architecture
        ):
            _no_space_in_front(backend)
        backend = _only(backend, len(tokens))
        special = {
            f"{ours}_token": tokens[number]
            for ours, theirs in SPECIAL.items()
            if (number := say(f"{theirs}_token_id")) is not None
        }
        # older files do not say, and sentencepiece's vocabularies begin with a BOS where nothing else is said
        adds_bos = say("add_bos_token")
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=header.metadata.get("tokenizer.chat_template"),
            add_bos_token=say("model") == "llama" if adds_bos is None else bool(adds_bos),
            add_eos_token=bool(say("add_eos_token")),
            clean_up_tokenization_spaces=False,
            **special,
        )
    except Exception as error:  # what `tokenizers` raises is Exception itself
        raise ModelError(f"cannot make the tokenizer of {header.name}: {error}", BROKEN) from error


def end_ids(header: Header) -> list[int]:
    """The ids that end an output: those that the file names, and control tokens whose name says so."""
    say = _Said(header)
    named = [number for key in END_KEYS if (number := say(key)) is not None]
    tokens, types = say("tokens"), say("token_type")
    kinds = types or [CONTROL] * len(tokens)
    control = {token: n for n, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == CONTROL}
    return list(dict.fromkeys(named + named_ends(control)))


class _Said:
    """The values below tokenizer.ggml., None where there is none."""

    def __init__(self, header: Header) -> None:
        self.metadata = header.metadata

    def __call__(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")


def _split_digits(backend: "Tokenizer") -> None:
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _no_space_in_front(backend: "Tokenizer") -> None:
    from tokenizers import decoders, pre_tokenizers

    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )


def _only(backend: "Tokenizer", count: int) -> "Tokenizer":
    """Without the tokens that a class adds by itself: the model has no weights for them."""
    from tokenizers import Tokenizer

    if backend.get_vocab_size(with_added_tokens=True) <= count:
        return backend
    said = json.loads(backend.to_str())
    said["added_tokens"] = [token for token in said["added_tokens"] if token["id"] < count]
    said["post_processor"] = None
    if said["model"].get("unk_token") not in said["model"]["vocab"]:
        said["model"]["unk_token"] = None
    return Tokenizer.from_str(json.dumps(said, allow_nan=False))
