"""What the host knows of a lane without asking the device."""

from dataclasses import dataclass

from scope_cli.policies.schedule import Schedule


@dataclass
class LaneCount:
    """Of one prompt and its output."""

    schedule: Schedule
    prompt: int = 0  # prompt tokens read
    kept: tuple[int, ...] | None = None  # of them, those kept in each layer, per KV head; None: all of them
    written: int = 0  # generated tokens written (n)
    held: int = 0  # held of what the schedule limits
    most_held: int = 0
    active: bool = False  # writes a token at every step: its prompt is read, and it has not ended
    evictions: int = 0
    evicted_tokens: int = 0
    aged_tokens: int = 0  # of them, those that left with every other candidate: the scorer had no choice
    moved_bytes: int = 0
    reference_moved_bytes: int = 0
    host_bytes: int = 0


TOTALS = ("evictions", "evicted_tokens", "moved_bytes", "reference_moved_bytes", "host_bytes")
