"""Control tokens' names in other people's texts: marked, so that they stay text when it is tokenised."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from scope_cli.errors import UsageError

if TYPE_CHECKING:
    from scope_cli.models.chat import Chat

PRIVATE = range(0x10FF00, 0x10FFFE)  # characters that mean nothing to anybody


class Marks:
    """Signs around the names of control tokens in texts, so that they stay text when it is tokenised."""

    def __init__(self, chat: "Chat", texts: Any) -> None:
        """Raises UsageError where the texts are none. The signs are characters that no text has."""
        self._chat, self._tokenizer = chat, chat.tokenizer
        every = [text for text, _ in self._texts(texts, chat.special)]
        _check(every)
        free = (chr(code) for code in PRIVATE if not any(chr(code) in text for text in every))
        self._start, self._end, self.sign = islice(free, 3)

    def found_in(self, value: Any) -> Counter[str]:
        """How often each control token's name stands in the texts."""
        found = Counter[str]()
        for text, pattern in self._texts(value, self._pattern):
            found.update(pattern.findall(text))
        return found

    def around(self, value: Any, pattern: re.Pattern[str] | None = None) -> Any:
        """The same texts, with signs around every name."""
        pattern = pattern or self._pattern
        if isinstance(value, str):
            return pattern.sub(f"{self._start}\\g<0>{self._end}", value)
        if isinstance(value, dict):
            pattern = self._pattern_of(value, pattern)
            return {key: one if key == "role" else self.around(one, pattern) for key, one in value.items()}
        return [self.around(one, pattern) for one in value] if isinstance(value, list) else value

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which signs may be; nothing is put in front of it or behind."""
        names = self._chat.control.pattern
        signs = re.compile(f"{self._start}({names}){self._end}|[{self._start}{self._end}]")
        first, *rest = signs.split(text)
        ids = self._ids(first)
        for at, piece in enumerate(rest):
            if piece:
                ids += self._as_text(piece) if at % 2 == 0 else self._after(piece)
        return ids

    @property
    def _pattern(self) -> re.Pattern[str]:
        return self._chat.control

    def _pattern_of(self, value: Any, otherwise: re.Pattern[str]) -> re.Pattern[str]:
        """What the model wrote may hold `<think>` as the token that it was; special ones are never shown."""
        return self._chat.special if value.get("role") == "assistant" else otherwise

    def _texts(self, value: Any, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Pattern[str]]]:
        if isinstance(value, str):
            yield value, pattern
        elif isinstance(value, dict):
            pattern = self._pattern_of(value, pattern)
            for key, one in value.items():
                if key != "role":
                    yield from self._texts(one, pattern)
        elif isinstance(value, list):
            for one in value:
                yield from self._texts(one, pattern)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _after(self, piece: str) -> list[int]:
        """Ids of a piece from the middle: behind a line end no tokenizer puts a space of its own in front."""
        line_end, ids = self._ids("\n"), self._ids(f"\n{piece}")
        return ids[len(line_end) :] if ids[: len(line_end)] == line_end else self._ids(piece)

    def _as_text(self, name: str) -> list[int]:
        """Ids of a control token's name, which are not the token."""
        token = self._chat.id_of(name)
        for pieces in ([name], list(name)):
            ids = [number for piece in pieces for number in self._without_added(piece)]
            if token not in ids:
                return ids
        raise UsageError(
            f"{name} in the prompt cannot be text: the tokenizer knows it as a token alone",
            "--allow-control-tokens takes it as such",
        )

    def _without_added(self, text: str) -> list[int]:
        """Ids as if the tokenizer had no added tokens."""
        backend = self._tokenizer.backend_tokenizer
        if backend.normalizer is not None:
            line_end = backend.normalizer.normalize_str("\n")  # a space of its own would stand in front of it
            text = backend.normalizer.normalize_str(f"\n{text}").removeprefix(line_end)
        pieces = [text]
        if backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for piece in pieces for token in backend.model.tokenize(piece)]


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest name at a place. There may be thousands: what begins alike is looked at once."""
    known = sorted({name for name in names if name.strip()})
    return re.compile(_alternatives(known) if known else "(?!)")


def _alternatives(names: list[str]) -> str:
    """names: sorted"""
    branches = []
    for _, group in groupby([name for name in names if name], key=lambda name: name[0]):
        alike = list(group)
        shared = commonprefix(alike)  # noqa: RUF071  (of texts, not of paths)
        branches.append(re.escape(shared) + _alternatives([name[len(shared) :] for name in alike]))
    whole = f"(?:{'|'.join(branches)})" if branches else ""
    return f"{whole}?" if whole and "" in names else whole


def _check(texts: list[str]) -> None:
    """Half a character has no bytes in UTF-8: what was typed were other bytes."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the prompt is not UTF-8: {text[error.start]!r} at character {error.start}",
                "give it in a file in UTF-8, with --prompt-file",
            ) from error
