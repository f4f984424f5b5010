"""Bytes in, text out; where they are no text in UTF-8, what they are instead, and how to convert them."""

import codecs
import re
from contextlib import suppress
from shlex import quote

MARKS = (  # UTF-32's begin like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE = ("utf-32le", "utf-32be", "utf-16le", "utf-16be")
# Without blanks and Latin letters a text in UTF-16 has no NUL bytes: scripts that are written so, and signs.
NO_NUL = (
    (0x0370, 0x06FF),  # Greek to Arabic
    (0x0E01, 0x0E5B),  # Thai
    (0x2010, 0x203B),  # dashes, quotes
    (0x3000, 0x30FF),  # signs, kana
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7A3),  # Hangul
    (0xFF01, 0xFFEF),  # wide forms
    (0x1F300, 0x1FAFF),  # emoji
)
LATIN_LETTERS = re.compile(rb"[A-Za-z \n]")
CONTROLS = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f]")


class NotText(ValueError):
    """What is wrong with the bytes, as what follows "FILE "; `encoding` is what iconv may read them as."""

    def __init__(self, message: str, encoding: str = "") -> None:
        super().__init__(message)
        self.encoding = encoding

    def hint(self, file: str = "FILE") -> str:
        if not self.encoding:
            return "give a text file in UTF-8"
        command = f"iconv -f {self.encoding} -t utf-8"
        return f"convert it, for example: {command} {quote(file)}" if file else f"convert it: {command}"


def decode(content: bytes) -> str:
    """UTF-8, with or without a byte order mark. Raises NotText."""
    for mark, encoding in MARKS:
        if content.startswith(mark):
            raise NotText(f"is not UTF-8: it is {encoding.upper()}", encoding)
    if b"\0" in content:
        raise _with_nul(content)
    try:
        text = content.decode("utf-8-sig")
        if CONTROLS.search(text) and (wide := _wide_without_nul(content)):
            raise _unmarked(wide)
        return text
    except UnicodeDecodeError as error:
        if wide := _wide_without_nul(content):
            raise _unmarked(wide) from error
        byte = f"byte 0x{content[error.start]:02x}"
        raise NotText(f"is not UTF-8: {byte} at {_place(content, error.start)}", "latin1") from error


def _with_nul(content: bytes) -> NotText:
    """No text has NUL bytes, unless it is written with two or four bytes a character."""
    wide = max(WIDE, key=lambda encoding: _everyday(content, encoding))
    nuls = content.count(0)
    stray = nuls < len(content) / 3 and _everyday(content.replace(b"\0", b""), "utf-8") > 0
    if _everyday(content, wide) > 0 and not stray:
        return _unmarked(wide)
    return NotText(f"is no text: it has a NUL byte at {_place(content, content.index(0))}")


def _unmarked(wide: str) -> NotText:
    return NotText(f"is not UTF-8: it looks like {wide.upper()} without a mark", wide)


def _wide_without_nul(content: bytes) -> str:
    """The UTF-16 in which all of it is of such scripts; nothing for what may be in an older encoding.

    That are Latin letters with accents (of the bytes of Han in UTF-16 some 45 % are those of Latin letters),
    and two bytes a character, which begin at 0x81 or later.
    """
    latin = len(LATIN_LETTERS.findall(content)) > 0.7 * len(content)
    if latin or len(content) % 2 or min(content) >= 0x80:
        return ""
    found = {}
    for encoding in ("utf-16le", "utf-16be"):
        with suppress(UnicodeDecodeError):
            text = [ord(char) for char in content.decode(encoding)]
            known = all(any(first <= code <= last for first, last in NO_NUL) for code in text)
            if known and len(text) > 1 and not all(0x8100 <= code <= 0x9FFF for code in text):
                found[encoding] = len({code >> 8 for code in text})
    return min(found, key=found.__getitem__, default="")  # a script's letters lie together


def _everyday(content: bytes, encoding: str) -> int:
    """Its letters, blanks and signs of everyday use; 0 where it cannot be a text in this encoding."""
    whole = len(content) // 4 * 4 if "32" in encoding else len(content) // 2 * 2 if "16" in encoding else None
    try:
        text = content[:whole].decode(encoding)
    except UnicodeDecodeError:
        return 0
    if not all(char.isprintable() or char.isspace() for char in text):
        return 0
    return sum(char < "\u0250" for char in text)


def _place(content: bytes, at: int) -> str:
    """'offset 8, line 2'."""
    line = content.count(b"\n", 0, at) + 1
    return f"offset {at}, line {line}"
