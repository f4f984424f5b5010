"""All that travels from the prompts' reading to the sinks: plain values, one class per meaning.

A run is `Started`, and for each prompt some `PromptProgress`, `PromptRead`, a `Token` per step, `Finished`;
or `Failed`, where something ends it. `Busy` may come at any time, `TakenBack` between tokens.
Prompts run side by side in lanes; `lane` is the row that one has, `prompt` its number in the run, from 0.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "context", "loop", "time", "interrupted"]


@dataclass(frozen=True)
class Reading:
    """What the cache holds and has done, summed over its lanes; docs/reference/readings.md says it in full.

    Token counts are per KV head of a layer under the policy (every head holds equally many).
    """

    kept_prompt: int  # prompt tokens held, an average where layers or heads keep different numbers
    kept_generated: int  # generated tokens held
    slots: int  # places there are, live or not
    held_bytes: int  # keys and values of live slots
    overhead_bytes: int  # positions, bias, slot lists, query rings, memos
    allocated_bytes: int  # every buffer the cache owns
    full_bytes: int  # keys and values that an uncompressed cache would hold now
    read_bytes: int  # keys, values and bias that one step's attention reads now
    moved_bytes: int  # copied by cache management since the start; eviction itself copies nothing
    reference_moved_bytes: int  # what an implementation that gathers what it keeps would have copied
    host_bytes: int  # copied between host and device: prompt ids, then an id and a log-probability a token
    evictions: int  # times that something was evicted
    evicted_tokens: int  # generated (or unprotected prompt) tokens evicted, per KV head
    padding_bytes: int = 0  # allocated for the prompt and of no use: heads and lanes that keep fewer tokens


@dataclass(frozen=True)
class Audit:
    """Did the cache do what the profile promised? Counted from the slots themselves, at the end."""

    policy_active: bool | None  # None: everything fitted, nothing had to be evicted
    budget_held: bool  # generated tokens held never exceeded the budget and the current one
    bytes_accounted: bool  # live slots and buffers add up to the readings
    problems: tuple[str, ...] = ()
    evicted_by_score: int = 0  # tokens, per KV head: the scorer chose them among others that stayed
    evicted_by_age: int = 0  # every token went that was neither recent nor a sink: no score mattered

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Loop:
    """The longest stretch of the output that repeats itself."""

    period: int  # tokens
    start: int  # index of its first token in the output
    tokens: int  # its length, all copies together
    to_the_end: bool  # the output ended inside it
    near: bool = False  # its copies differ in a few tokens


@dataclass(frozen=True)
class Started:
    """Everything is known and nothing has been read: the settings in force and what was planned."""

    lanes: int
    prompt_tokens: tuple[int, ...]  # one per prompt
    max_new_tokens: int  # the most that any of them may write
    policy: str  # in words: "slide, budget 2048 (256 recent), every 64 tokens, scorer attention"
    profile: dict[str, Any]  # the complete profile in force
    model: dict[str, Any]  # name, source, dtype, device, layers, context
    versions: dict[str, str]
    seeds: tuple[int, ...] = ()  # one per prompt
    notes: tuple[str, ...] = ()  # what the user should know: a length that was cut, a policy without effect
    from_model: dict[str, Any] = field(
        default_factory=dict
    )  # of `profile`: sampling that the model's files say
    depends_on: dict[str, Any] = field(default_factory=dict)  # beside the profile: what the text depends on


@dataclass(frozen=True)
class Busy:
    """Something begins that takes seconds, and is neither reading nor writing."""

    what: str  # "compiling the step"


@dataclass(frozen=True)
class PromptProgress:
    lane: int
    read: int
    prompt_tokens: int
    prompt: int = 0


@dataclass(frozen=True)
class PromptRead:
    lane: int
    prompt_tokens: int
    elapsed_s: float
    peak_bytes: int  # of the device's allocator, or the process's resident set on a CPU
    reading: Reading  # of its lane
    prompt: int = 0


@dataclass(frozen=True)
class Token:
    lane: int
    n: int  # its number in the output, from 1
    token_id: int
    text: str  # may be empty: a character is shown when it is whole
    logprob: float  # natural logarithm, under the model's own distribution
    elapsed_s: float  # since its prompt was read
    reading: Reading  # of all lanes
    prompt: int = 0
    thinking: bool = False  # part of what the model thinks before it answers


@dataclass(frozen=True)
class TakenBack:
    """A loop was noticed and its copies go, which nobody was told of; the output goes on otherwise."""

    lane: int
    tokens: int
    n: int  # tokens of the output that stay
    period: int
    attempt: int  # at this loop, from 1
    prompt: int = 0

    @property
    def in_words(self) -> str:
        """'took back 140 tokens after token 412 (period 35), attempt 1'"""
        many = f"{self.tokens:,} token{'s' * (self.tokens != 1)}"
        return f"took back {many} after token {self.n:,} (period {self.period:,}), attempt {self.attempt}"


@dataclass(frozen=True)
class Finished:
    lane: int
    reason: FinishReason
    text: str  # what was still held back
    prompt_tokens: int
    read_tokens: int  # of them: fewer where it was interrupted, or some were copied
    output_tokens: int
    prefill_s: float
    decode_s: float
    prefill_peak_bytes: int
    decode_peak_bytes: int
    reading: Reading  # of its lane
    audit: Audit  # of its lane
    loop: Loop | None = None
    taken_back: tuple[TakenBack, ...] = ()
    stopped_by: str | None = None  # the stop text that ended it, or the text of the stop token
    prompt: int = 0
    reused_prompt_tokens: int = 0  # copied from another prompt that begins alike, or from a file
    thinking: bool = False  # it ended inside a thought, to which `text` belongs
    thinking_tokens: int = 0  # of output_tokens


@dataclass(frozen=True)
class Failed:
    """A prompt that could not be read or continued; the others go on, unless what ended it ends the run."""

    lane: int
    error: str
    prompt: int = 0
    hint: str = ""
    text: str = ""  # of its output, what was still held back
    thinking: bool = False  # that text is part of a thought


Event = Started | Busy | PromptProgress | PromptRead | Token | TakenBack | Finished | Failed
