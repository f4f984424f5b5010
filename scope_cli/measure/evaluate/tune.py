"""A text and a limit in, the smallest budget whose gap stays below it out, and all that was measured.

The gap is the mean KL(full || profile) in nats. First a bisection over a grid of budgets, on the assumption
that more budget is never worse; then strategies and scorers at the budget that was found; then the best of
them at smaller budgets, as long as the limit holds; then the formats in which slots may lie.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scope_cli.settings.load import LoadedProfile

if TYPE_CHECKING:
    from scope_cli.measure.evaluate.fidelity import Fidelity, Reference

Load = Callable[[dict[str, Any]], LoadedProfile]
SMALLEST = 16
STRATEGIES = ("slide", "adaptive", "discontinuous")
SCORERS: tuple[Any, ...] = (
    "attention",
    {"name": "window", "window": 32, "queries": "max"},
    "expected",
    "rkv",
    "recency",
    "random",
)
FORMS = ("int8", "k8v4")


@dataclass(frozen=True)
class Tried:
    """One measured profile."""

    keys: dict[str, Any]  # overrides of the user's profile
    fidelity: "Fidelity"
    settings: LoadedProfile

    @property
    def budget(self) -> int:
        return int(self.keys["decode.budget"])

    @property
    def gap(self) -> float:
        mean = self.fidelity.kl[0]
        assert mean is not None
        return mean

    def within(self, limit: float, sure: bool) -> bool:
        """sure: also the upper end of the interval stays below the limit."""
        worst = self.fidelity.kl[2] if sure else None
        return (self.gap if worst is None else worst) <= limit


@dataclass(frozen=True)
class Tuned:
    best: Tried | None  # None: not even the largest budget stays below the limit
    tried: tuple[Tried, ...]  # in the order of the search
    grid: tuple[int, ...]


def grid(largest: int) -> tuple[int, ...]:
    """16, 24, 32, 48, 64, 96, ...: two steps to each doubling, up to what would hold the whole output."""
    powers = (SMALLEST * 2**power for power in range(largest.bit_length()))
    steps = sorted({step for power in powers for step in (power, power * 3 // 2)})
    return tuple(step for step in steps if step < largest)


def tune(
    reference: "Reference",
    load: Load,
    limit: float,
    *,
    strategies: Sequence[str] = STRATEGIES,
    scorers: Sequence[Any] = SCORERS,
    forms: Sequence[str] = FORMS,
    sure: bool = False,
    told: Callable[[Tried], None] = lambda tried: None,
) -> Tuned:
    """Search; `load` lays overrides over the user's profile, `told` hears of every measurement."""
    budgets = grid(len(reference.text.output_ids))
    search = _Search(reference, load, told)
    first = {"decode.strategy": strategies[0], "decode.scorer": scorers[0]}
    place = _smallest(budgets, lambda budget: search.at(budget, first).within(limit, sure))
    if place is None:
        # The first pair alone does not settle it: another may stay below the limit at the largest budget.
        place = len(budgets) - 1
    tried = [search.at(budgets[place], keys) for keys in pairs(strategies, scorers)]
    of_scorers, of_strategies = tried[: len(scorers)], [tried[0], *tried[len(scorers) :]]
    both = {
        "decode.strategy": min(of_strategies, key=_gap).keys["decode.strategy"],
        "decode.scorer": min(of_scorers, key=_gap).keys["decode.scorer"],
    }
    best = min([*tried, search.at(budgets[place], both)], key=_gap)
    if not best.within(limit, sure):
        return Tuned(None, tuple(search.tried), budgets)
    while place and (smaller := search.at(budgets[place - 1], _without_budget(best.keys))).within(
        limit, sure
    ):
        best, place = smaller, place - 1
    packed = [search.at(best.budget, {**_without_budget(best.keys), "cache.kv": form}) for form in forms]
    best = min([best, *(one for one in packed if one.within(limit, sure))], key=_held)
    return Tuned(best, tuple(search.tried), budgets)


def most_tried(tokens: int, strategies: Sequence[str], scorers: Sequence[Any], forms: Sequence[str]) -> int:
    """How many measurements a search makes at most, but for the last budgets down, which are rare."""
    return len(grid(tokens)).bit_length() + len(list(pairs(strategies, scorers))) + 2 + len(forms)


def pairs(strategies: Sequence[str], scorers: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every scorer with the first strategy, then the other strategies with the first scorer.

    The whole table would take too long; the best scorer meets the best strategy afterwards.
    """
    for scorer in scorers:
        yield {"decode.strategy": strategies[0], "decode.scorer": scorer}
    for strategy in strategies[1:]:
        yield {"decode.strategy": strategy, "decode.scorer": scorers[0]}


class _Search:
    """Measures what is asked for, and nothing twice."""

    def __init__(self, reference: "Reference", load: Load, told: Callable[[Tried], None]) -> None:
        self.reference, self.load, self.told = reference, load, told
        self.tried: list[Tried] = []

    def at(self, budget: int, keys: dict[str, Any]) -> Tried:
        wanted = {**keys, "decode.budget": budget, "decode.interval": "auto"}
        for one in self.tried:
            if one.keys == wanted:
                return one
        from scope_cli.measure.evaluate.fidelity import measure

        settings = self.load(wanted)
        found = Tried(wanted, measure(self.reference, settings), settings)
        self.tried.append(found)
        self.told(found)
        return found


def _smallest(budgets: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """The place of the smallest budget that holds, by bisection; None where the largest does not."""
    if not holds(budgets[-1]):
        return None
    low, high = 0, len(budgets) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(budgets[middle]) else (middle + 1, high)
    return low


def _gap(tried: Tried) -> float:
    return tried.gap


def _held(tried: Tried) -> float:
    return tried.fidelity.bytes.held_mean


def _without_budget(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in ("decode.budget", "decode.interval")}
