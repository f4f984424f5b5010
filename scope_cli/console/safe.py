"""Text from outside in (ids, file names, messages), text that a terminal or a log can take out."""

import json
import re
from math import isfinite
from typing import Any

# What moves a cursor, changes colours, ends a line or turns the reading direction; half characters, which no
# file takes. Joiners (U+200C, U+200D) stay: Devanagari and Persian are written with them.
_C0, _OTHERS = "\x00-\x1f", "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROLS = re.compile(f"[{_C0}{_OTHERS}]")
_RAW_IN_JSON = re.compile(f"[{_OTHERS}]")  # json has escaped the others, and lays out by line ends


def printable(text: str, lines: bool = False) -> str:
    """`text` with every control character spelt out: ESC becomes `\\x1b`; `lines` keeps line ends.

    Printed or logged, it does nothing but be read. A name goes through it before it becomes part of a
    message, so that it cannot forge a line of its own.
    """
    return _CONTROLS.sub(lambda found: found[0] if lines and found[0] == "\n" else _spelt(found[0]), text)


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON that shows letters as they are, and nothing raw that a terminal would act on.

    A number that is none is null: NaN and Infinity are not JSON.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, indent=indent, allow_nan=False)
    return _RAW_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _spelt(char: str) -> str:
    return char.encode("unicode_escape").decode()
