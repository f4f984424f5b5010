"""Bytes in, text out; where they are no text in UTF-8, what they are instead, and how to convert them."""

import codecs
from shlex import quote

MARKS = (  # UTF-32's begin like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE = ("utf-32le", "utf-32be", "utf-16le", "utf-16be")


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
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x}"
        raise NotText(f"is not UTF-8: {byte} at {_place(content, error.start)}", "latin1") from error


def _with_nul(content: bytes) -> NotText:
    """No text has NUL bytes, unless it is written with two or four bytes a character."""
    wide = max(WIDE, key=lambda encoding: _everyday(content, encoding))
    nuls = content.count(0)
    stray = nuls < len(content) / 3 and _everyday(content.replace(b"\0", b""), "utf-8") > 0
    if _everyday(content, wide) > 0 and not stray:
        return NotText(f"is not UTF-8: it looks like {wide.upper()} without a mark", wide)
    return NotText(f"is no text: it has a NUL byte at {_place(content, content.index(0))}")


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
