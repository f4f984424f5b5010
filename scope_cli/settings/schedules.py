"""A profile's decode section in, the Schedule of a lane out, or why its scorer would decide nothing."""

from dataclasses import replace
from math import ceil

from scope_cli.policies.schedule import Schedule
from scope_cli.settings.policy import DecodeSettings

LONGEST_INTERVAL = 64  # that `auto` takes


def schedule_of(decode: DecodeSettings, planned: int, kept_prompt: int) -> Schedule:
    """For a lane that writes `planned` tokens after a prompt of which `kept_prompt` are held."""
    unified = not decode.protect_prompt
    schedule = Schedule(
        strategy=decode.strategy,
        budget=decode.budget,
        recent=decode.recent_tokens,
        interval=1,
        planned=planned,
        base=kept_prompt if unified else 0,
        floor=min(decode.sinks, kept_prompt) if unified else 0,
        total=decode.total_budget,
        ratio=decode.ratio,
    )
    return replace(schedule, interval=_interval(decode, planned, schedule.room))


def _interval(decode: DecodeSettings, planned: int, room: int) -> int:
    """discontinuous: ceil((T - R) / H), about H evictions in all (SCOPE, section 3.3).

    auto: the scorer keeps at least half of what it can choose among.
    """
    if decode.strategy == "discontinuous" or decode.interval == "discontinuous":
        return max(1, ceil((planned - decode.recent_tokens) / (decode.budget - decode.recent_tokens)))
    if decode.interval != "auto":
        return decode.interval
    return LONGEST_INTERVAL if decode.strategy == "rpc" else max(1, min(LONGEST_INTERVAL, room // 2))


def nothing_to_choose(
    decode: DecodeSettings, planned: int | None, kept_prompt: int | None = None
) -> str | None:
    """In words, where evictions leave the newest tokens (and sinks) alone, whatever the scorer says.

    planned, kept_prompt: tokens; None where they are not known
    """
    computed = "discontinuous" in (decode.strategy, decode.interval)
    if (
        decode.strategy in ("full", "rpc")
        or decode.scorer.name == "recency"
        or (computed and planned is None)
    ):
        return None
    if not decode.protect_prompt and decode.total_budget is None and kept_prompt is None:
        return None  # prompt tokens compete as well, nobody knows how many
    kept = decode.sinks if kept_prompt is None else kept_prompt
    schedule = schedule_of(decode, planned or 0, kept)
    if schedule.kept_by_score or (planned is not None and schedule.never_evicts):
        return None
    told = (
        f"{schedule.recent} recent tokens and an interval of {schedule.interval} leave the scorer nothing to "
        "choose"
    )
    if schedule.room < 1 or computed:
        return f"{told}; a larger budget would"
    shorter = schedule_of(decode.model_copy(update={"interval": "auto"}), 0, kept)
    return f"{told}; interval={shorter.interval} would"
