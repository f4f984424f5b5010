"""Token ids in, printable text out; holds back half-finished characters and what may become a stop text."""

import re
from codecs import getincrementaldecoder
from collections.abc import Sequence
from os.path import commonprefix

from transformers import PreTrainedTokenizerFast

BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not yet
PATIENCE = 32  # tokens that may wait for a character to be whole; after that the bytes are simply broken
_AS_THEY_ARE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_LEVEL = {chr(byte): byte for byte in _AS_THEY_ARE} | {  # GPT-2's letters for bytes
    chr(256 + at): byte for at, byte in enumerate(sorted({*range(256)} - {*_AS_THEY_ARE}))
}


class TextStream:
    """The text of one output, piece by piece; what was returned is never taken back.

    The tokens of the last piece are decoded again with every new one, because a token's text depends on
    the one before it (a leading space, the first bytes of a character). `tokenizers.decoders.DecodeStream`
    works likewise, but raises from the first broken byte after a byte-fallback character until the end.
    """

    _ids: list[int]  # those that are decoded with the next one
    _settled: int  # so many of them at the beginning have been returned

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[int], stop: tuple[str, ...] = ()
    ) -> None:
        self.stopped: str | None = None  # the stop text that was completed
        self._tokenizer = tokenizer.backend_tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {one for one, token in added.items() if token.special}
        self._stop = stop
        self._held = ""  # whole characters that may be the beginning of a stop text
        self._settle(self._end_of(list(prompt_ids)))

    def feed(self, token_id: int) -> str:
        """The text that is certain now, "" while it is not; nothing from a stop text on."""
        if self._silent(token_id):
            return ""
        self._ids = [*self._ids, token_id]  # a new list: a copy of the stream goes on by itself
        new = self._unsettled()
        waiting = self._ids[self._settled :]
        if not new or (new.endswith(BROKEN) and len(waiting) < PATIENCE):
            return ""
        self._settle(waiting)
        return self._until_stop(new)

    def flush(self) -> str:
        """What was held back when the output ends; an unfinished character at its end is dropped."""
        text = self._until_stop(self._finished())
        held, self._held = self._held, ""
        return text + held

    def _silent(self, token_id: int) -> bool:
        """Special, or one that the tokenizer does not know: it leaves no trace in the text."""
        return token_id in self._special or self._tokenizer.id_to_token(token_id) is None

    def _end_of(self, prompt_ids: list[int]) -> list[int]:
        """So much of a prompt as the next token's text depends on, from a whole character on."""
        for more in range(4):  # bytes of a character
            end = prompt_ids[-PATIENCE - more :]
            if not self._decode(end).startswith(BROKEN):
                return end
        return prompt_ids

    def _settle(self, ids: list[int]) -> None:
        """Go on from `ids`, whose text is known; what came before them is not needed any more."""
        self._ids = ids
        self._settled = len(ids)
        self._text = self._decode(ids)

    def _unsettled(self) -> str:
        text = self._decode(self._ids)
        return text[len(commonprefix([self._text, text])) :]  # noqa: RUF071 (a new byte can break old characters)

    def _finished(self) -> str:
        """What is not settled, up to the last whole character; one that really is U+FFFD stays."""
        text = self._unsettled()
        if not text.endswith(BROKEN):
            return text
        waiting = self._ids[self._settled :]
        decoder = getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(self._bytes_of(one) for one in waiting))
        unfinished = len(decoder.getstate()[0])  # bytes
        if unfinished and self._has(
            b"ByteFallback"
        ):  # a token each, and they break the whole ones before them
            self._ids = [*self._ids[: self._settled], *waiting[:-unfinished]]
            return self._unsettled()
        return text[:-1] if unfinished else text

    def _bytes_of(self, token_id: int) -> bytes:
        name = str(self._tokenizer.id_to_token(token_id))
        if self._has(b"ByteFallback") and (byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name)):
            return bytes.fromhex(byte[1])
        if self._has(b"ByteLevel") and all(char in BYTE_LEVEL for char in name):
            return bytes(BYTE_LEVEL[char] for char in name)
        return name.encode()

    def _has(self, decoder: bytes) -> bool:
        """Is this a part of how the tokenizer decodes?"""
        return self._tokenizer.decoder is not None and decoder in self._tokenizer.decoder.__getstate__()

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _until_stop(self, new: str) -> str:
        text = self._held + new
        starts = [(text.find(stop), stop) for stop in self._stop]
        found = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if found:  # the first to be complete, however the text was cut into tokens
            _, start, self.stopped = min(found)
            self._held = ""
            return text[:start]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
