"""A token's event in, what stands below the text out: how fast it is, and what it holds. Words only."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scope_cli.events import Reading, Started, Token
from scope_cli.settings.policy import CacheSettings
from scope_cli.units import as_bytes, as_duration, as_rate

RATE_WINDOW_S = 5.0
RATE_SHORTEST_S = 0.5  # over less than that a rate says nothing
BAR = 10  # cells
BLOCKS, LETTERS = ("\N{FULL BLOCK}", "\N{LIGHT SHADE}"), ("#", ".")


def pace_line(token: Token, planned: int, tokens_per_s: float | None) -> list[str]:
    """Parts of a line, the most important first."""
    left = as_duration((planned - token.n) / tokens_per_s) if tokens_per_s else "-"
    return [
        f"{token.n:,}/{planned:,} tokens",
        f"{as_rate(tokens_per_s) if tokens_per_s else '-'}".replace(" tokens", ""),
        f"{left} left",
    ]


def memory_line(
    reading: Reading, limit: "Limit | None", slots: str, blocks: tuple[str, str] = BLOCKS
) -> list[str]:
    """Parts of a line: what is held of what all tokens would take, and what a step reads of it."""
    held, full = reading.held_bytes, reading.full_bytes
    return [
        f"KV {bar(held, full, blocks)} {held / full if full else 1:.0%} of full",
        f"evicted {reading.evicted_tokens:,}",
        *([limit.in_words(reading)] if limit else []),
        slots,
        f"reads {as_bytes(reading.read_bytes)}/step",
        f"{as_bytes(held)} / {as_bytes(full)}",
    ]


def bar(part: float, whole: float, blocks: tuple[str, str] = BLOCKS) -> str:
    """BAR cells; one at least where there is anything."""
    filled = min(BAR, max(round(BAR * part / whole), int(part > 0))) if whole else BAR
    return blocks[0] * filled + blocks[1] * (BAR - filled)


def blocks_of(encoding: str) -> tuple[str, str]:
    """What a bar is drawn with where text is written in such an encoding."""
    try:
        "".join(BLOCKS).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return LETTERS
    return BLOCKS


def slots_of(started: Started) -> str:
    """How keys and values lie in their slots: 'float32 slots', 'int8/int4 slots'."""
    form = CacheSettings(**started.profile.get("cache", {"kv": "plain"})).form
    plain = str(started.model.get("dtype", ""))
    named = [plain if side == "plain" else side for side in (form.keys, form.values)]
    return f"{'/'.join(dict.fromkeys(named))} slots"


class RecentRate:
    """Tokens per second over the last few seconds; the first `leave_out` tokens do not count."""

    def __init__(self, leave_out: int = 0) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._leave_out = leave_out

    def add(self, n: int, elapsed_s: float) -> None:
        if self._leave_out > 0:
            self._leave_out -= 1
            return
        self._seen.append((elapsed_s, n))
        while len(self._seen) > 2 and elapsed_s - self._seen[1][0] >= RATE_WINDOW_S:
            self._seen.popleft()

    @property
    def tokens_per_s(self) -> float | None:
        if not self._seen:
            return None
        (since, first), (until, last) = self._seen[0], self._seen[-1]
        return (last - first) / (until - since) if until - since >= RATE_SHORTEST_S else None


@dataclass(frozen=True)
class Limit:
    """What the profile allows to be held."""

    tokens: int
    counts_prompt: bool

    @classmethod
    def of(cls, profile: dict[str, Any]) -> "Limit | None":
        """None where nothing limits it."""
        decode = profile.get("decode", {})
        if decode.get("strategy") in ("full", "rpc"):
            return None
        total = decode.get("total_budget")
        limit = total or decode.get("budget")
        return cls(limit, counts_prompt=total is not None) if limit else None

    def in_words(self, reading: Reading) -> str:
        held = reading.kept_generated + (reading.kept_prompt if self.counts_prompt else 0)
        return f"held {held:,}/{self.tokens:,}"


def fitting(parts: Iterable[str], width: int) -> str:
    """As many parts as one row holds, dropped from the right."""
    line, *rest = parts
    for part in rest:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line
