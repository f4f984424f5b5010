"""What is to end an output in; the texts to look for and the token ids out, or why it cannot work."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from scope_cli.errors import UsageError
from scope_cli.settings.schema import SamplingSettings


@dataclass(frozen=True)
class Stops:
    texts: tuple[str, ...] = ()
    tokens: dict[int, str] = field(default_factory=dict)  # by id: its text, for the run's end


def stops_of(
    tokenizer: PreTrainedTokenizerBase, vocab: int, sampling: SamplingSettings, eos_ids: Sequence[int] = ()
) -> Stops:
    """A special token is looked for by its id: no output shows it. Raises UsageError for what never comes."""
    special = {
        str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    texts, tokens = list[str](), dict[int, str]()
    for text in sampling.stop:
        if text in special:
            tokens[special[text]] = text
            continue
        if inside := [name for name in special if name in text]:
            raise UsageError(
                f"the stop {text!r} never comes: {inside[0]} is a token that no text shows",
                f"--stop {inside[0]!r} alone ends at that token",
            )
        _check_writable(tokenizer, text)
        texts.append(text)
    for token in sampling.stop_tokens:
        number = _id_of(tokenizer, vocab, token)
        tokens[number] = token if isinstance(token, str) else str(tokenizer.convert_ids_to_tokens(number))
    if sampling.ignore_eos and (never := [tokens[one] for one in tokens if one in eos_ids]):
        raise UsageError(
            f"the stop {never[0]!r} never comes: it ends the model's turn, and --ignore-eos rules it out",
            "drop one of the two",
        )
    return Stops(tuple(texts), tokens)


def _check_writable(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """What comes back from its tokens otherwise, in no surroundings whole, is not written by this model."""
    backend = tokenizer.backend_tokenizer
    for whole in (text, f"a{text}a", f" {text}"):
        back = backend.decode(backend.encode(whole, add_special_tokens=False).ids)
        if text in back:
            return
    back = backend.decode(backend.encode(text, add_special_tokens=False).ids)
    raise UsageError(
        f"the stop {text!r} never comes: the model's tokens make {back!r} of it",
        f"try --stop {back!r}" if back.strip() else "see what the model writes without it",
    )


def _id_of(tokenizer: PreTrainedTokenizerBase, vocab: int, token: int | str) -> int:
    if isinstance(token, int):
        if not 0 <= token < vocab:
            raise UsageError(f"there is no token {token}: the model's are 0 to {vocab - 1:,}")
        return token
    number = tokenizer.backend_tokenizer.token_to_id(token)
    if number is not None:
        return int(number)
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UsageError(
            f"{token!r} is {len(ids):,} tokens for this model, not one", f"--stop {token!r} ends at the text"
        )
    return int(ids[0])
