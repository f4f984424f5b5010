"""Token ids in, printable text out; holds back half-finished characters and what may become a stop text."""

from collections.abc import Sequence
from os.path import commonprefix

from transformers import PreTrainedTokenizerFast

BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not yet
PATIENCE = 32  # tokens that may wait for a character to be whole; after that the bytes are simply broken


class TextStream:
    """The text of one output, piece by piece; what was returned is never taken back.

    The tokens of the last piece are decoded again with every new one, because a token's text depends on
    the one before it (a leading space, the first bytes of a character). `tokenizers.decoders.DecodeStream`
    works likewise, but raises from the first broken byte after a byte-fallback character until the end.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[int], stop: tuple[str, ...] = ()
    ) -> None:
        self.stopped: str | None = None  # the stop text that was completed
        self._tokenizer = tokenizer.backend_tokenizer
        self._stop = stop
        self._held = ""  # whole characters that may be the beginning of a stop text
        self._settle(list(prompt_ids))

    def feed(self, token_id: int) -> str:
        """The text that is certain now, "" while it is not; nothing from a stop text on."""
        self._ids.append(token_id)
        new = self._unsettled()
        waiting = self._ids[self._settled :]
        if not new or (new.endswith(BROKEN) and len(waiting) < PATIENCE):
            return ""
        self._settle(waiting)
        return self._until_stop(new)

    def flush(self) -> str:
        """What was held back when the output ends; an unfinished character at its end is dropped."""
        text = self._until_stop(self._unsettled().rstrip(BROKEN))
        held, self._held = self._held, ""
        return text + held

    def _settle(self, ids: list[int]) -> None:
        """Go on from `ids`, whose text is known; what came before them is not needed any more."""
        self._ids = ids
        self._settled = len(ids)
        self._text = self._decode(ids)

    def _unsettled(self) -> str:
        text = self._decode(self._ids)
        return text[len(commonprefix([self._text, text])) :]  # noqa: RUF071 (a new byte can break old characters)

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
