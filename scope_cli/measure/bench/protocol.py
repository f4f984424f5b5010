"""What `scope bench` and a contender say to each other: JSON lines, a request on stdin, an answer on stdout.

Only the standard library and psutil are imported here: a peer lives in an environment of its own.

    {"op": "load", "job": {...}}         the fields of `Job`
        -> {"policy", "exact", "versions", "weight_bytes"}
    {"op": "read", "ids": [[...], ...]}  a prompt per lane, into an empty cache
        -> {"next", "elapsed_s", "peak_bytes"}
    {"op": "advance", "ids": ...}        text that is known, after what is there
        -> {"next", "elapsed_s", "peak_bytes"}
    {"op": "step", "count": 64}          write that many tokens in every lane, the most probable ones
        -> {"ids", "elapsed_s", "peak_bytes", and the fields of `Account`}

`next` are the most probable ids after what was read, one per lane; `peak_bytes` is what the process grew by
since its weights were loaded. A request that cannot be met is answered by {"error": "..."}.
"""

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Protocol

from scope_cli.machine.gauge import PeakMeter
from scope_cli.measure import child

Ids = list[list[int]]  # [lanes][tokens]


@dataclass(frozen=True)
class Job:
    """What every contender of a run is asked to do."""

    model: str  # as the user named it
    folder: str  # where its configuration, tokenizer and safetensors files are
    prompt_tokens: int  # of each lane
    most_tokens: int  # prompt and output of a lane together: what a cache of fixed size has to hold
    lanes: int = 1
    threads: int | None = None  # None: the library's own choice
    device: str = "auto"
    dtype: str = "auto"
    load_in: str | None = None


@dataclass(frozen=True)
class Loaded:
    """What a contender is, once its weights are there."""

    policy: str  # in words
    exact: bool  # plain weights and nothing forgotten: its tokens are those of every other exact contender
    versions: dict[str, str]
    weight_bytes: int = 0  # that a step reads


@dataclass(frozen=True)
class Account:
    """Bytes of the cache, all lanes; None where nobody counts them."""

    held_bytes: int | None = None  # keys and values of the tokens that are held
    read_bytes: int | None = None  # that one step's attention reads
    moved_bytes: int | None = None  # copied by cache management in the steps of this answer


class Contender(Protocol):
    device: Any  # something with a `type`: cpu, cuda

    def load(self, job: Job) -> Loaded: ...

    def read(self, ids: Ids) -> list[int]: ...

    def advance(self, ids: Ids) -> list[int]: ...

    def step(self, count: int) -> tuple[float, Ids]:
        """Seconds that `count` tokens per lane took, and their ids (empty where they are not known)."""
        ...

    def account(self) -> Account: ...


def serve(contender: Contender) -> None:
    """Answer requests until stdin ends; whatever else is printed goes to stderr."""
    meter = base = None

    def answer(request: dict[str, Any], tell: Any) -> dict[str, Any]:
        nonlocal meter, base
        if request["op"] == "load":
            loaded = asdict(contender.load(Job(**request["job"])))
            meter = PeakMeter(contender.device).start()
            base = meter.lap()
            return loaded
        assert meter is not None and base is not None, "load comes first"
        meter.lap()
        return _answer(contender, request) | {"peak_bytes": max(0, meter.lap() - base)}

    child.serve(answer)
    if meter is not None:
        meter.close()


def _answer(contender: Contender, request: dict[str, Any]) -> dict[str, Any]:
    if request["op"] == "step":
        took, ids = contender.step(request["count"])
        return {"elapsed_s": took, "ids": ids, **asdict(contender.account())}
    begin = perf_counter()
    following = {"read": contender.read, "advance": contender.advance}[request["op"]](request["ids"])
    return {"elapsed_s": perf_counter() - begin, "next": following}
