"""Numbers to text, at the edge: bytes, seconds, rates. 1 GiB = 2**30 bytes."""

import re

SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
DECIMAL_SIZES = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def as_bytes(count: float) -> str:
    """1536 -> '1.50 KiB'; whole bytes below one KiB."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if abs(count) < 1024:
            return f"{count:.2f} {unit}"
    return f"{count / 1024:.2f} TiB"


def as_duration(seconds: float) -> str:
    """4000 -> '1:06:40'; below a minute '12.3 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(count: int, thing: str) -> str:
    """1, 'prompt' -> '1 prompt'; 2000 -> '2,000 prompts'."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def as_rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.1f} tokens/s" if tokens_per_s < 100 else f"{tokens_per_s:,.0f} tokens/s"


def as_ratio(part: float, whole: float) -> str:
    """The share of `whole` that `part` is: '12.5%'; a dash where there is no whole."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def parse_bytes(text: str) -> int | None:
    """'24GiB', '24G' -> 24 * 2**30; '24GB' -> 24 * 10**9; '1e9', '512' -> bytes; None: no such thing."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGT]?)(I?B?)\s*", text, re.IGNORECASE)
    if not found:
        return None
    number, prefix, unit = float(found[1]), found[2].upper(), found[3].upper()
    if not prefix and unit == "IB":
        return None
    return int(number * (DECIMAL_SIZES if prefix and unit == "B" else SIZES)[prefix])
