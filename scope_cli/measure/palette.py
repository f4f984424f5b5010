"""How lines and bars of every plot are told apart; one policy looks the same in all of them.

The first colours are Okabe and Ito's, the rest Paul Tol's: they keep apart for the colour-blind. Markers,
dashes and hatches do without any colour.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, count
from zlib import crc32

COLOURS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933",
    "#332288", "#888888", "#663300",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "*", "<", ">", "h", "d")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "xx", "\\\\\\", "--")
PARTS = COLOURS[1:5]  # of a stacked bar
POLICIES = (  # each has the colour of its place
    "full", "slide", "adaptive", "discontinuous", "rpc", "random", "recency", "window", "streamingllm", "h2o",
    "tova", "snapkv-decode",
)  # fmt: skip
SAME = {"default": "slide", "dynamic": "full", "attention": "slide"}
UNTOLD = re.compile(r"(decode\.)?(budget|recent|interval|lanes)=\S+|\d+|baselines/|scorer=|decode\.")


@dataclass(frozen=True)
class Style:
    place: int
    colour: str
    marker: str
    dashes: "str | tuple[int, tuple[int, ...]]"


def policy_of(name: str) -> str:
    """'default slide 128', 'slide budget=64' -> 'slide'; 'slide scorer=random' -> 'random'."""
    words = [SAME.get(word, word) for word in re.split(r"[\s,]+", UNTOLD.sub(" ", name).strip())]
    known = [word for word in words if word in POLICIES]
    rest = [word for word in words if word not in POLICIES and word]
    return " ".join([*known[-1:], *rest])


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each line of a picture: its policy's where no line before it has that, else a free one.

    Colours come again only where there are more lines than colours, and then with other markers and dashes.
    """
    places: dict[str, int] = {}
    every = list(dict.fromkeys(names))
    firsts = {policy_of(name): name for name in reversed(every) if policy_of(name) in POLICIES}
    for name in [*firsts.values(), *(name for name in every if name not in firsts.values())]:
        policy, taken = policy_of(name), set(places.values())
        first = POLICIES.index(policy) if policy in POLICIES else crc32(policy.encode())
        around = ((first + step) % len(COLOURS) for step in range(len(COLOURS)))
        places[name] = next(place for place in chain(around, count(len(COLOURS))) if place not in taken)
    return {name: style(places[name]) for name in every}


def style(place: int) -> Style:
    again = place // len(COLOURS)
    return Style(
        place, COLOURS[place % len(COLOURS)], MARKERS[(place + again) % len(MARKERS)],
        DASHES[(place + again) % len(DASHES)],
    )  # fmt: skip
