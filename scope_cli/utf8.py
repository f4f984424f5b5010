"""Bytes in, text out; where they are no UTF-8, the place of the first byte that is wrong."""


def decode(content: bytes) -> str:
    """UTF-8, with or without a byte order mark."""
    return content.decode("utf-8-sig")


def place_of(error: UnicodeDecodeError) -> str:
    """'byte 0xe9 at offset 8, line 2'."""
    content = error.object
    line = content.count(b"\n", 0, error.start) + 1
    return f"byte 0x{content[error.start]:02x} at offset {error.start}, line {line}"
