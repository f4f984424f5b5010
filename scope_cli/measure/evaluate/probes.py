"""A seed and a tokenizer in, texts with questions in them out: what a cache policy can fail.

Four kinds. `output-fact`: facts that the output states once and is asked for later. `prompt-fact`: facts that
stand in the prompt alone. `list`: numbered items of the prompt, written out in order. `copy`: a long passage
of the prompt, copied word for word. The text between is made of the same seed, so a probe has any length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from scope_cli.errors import UsageError

KINDS = ("output-fact", "prompt-fact", "list", "copy")
# ruff: noqa: SIM905  (lists of words are read more easily as text)
COLOURS = "red blue green yellow black white brown purple orange silver golden grey pink".split()
THINGS = (
    "box door key lamp boat house chair coat bottle bell clock ladder drum basket mirror piano wagon tower "
    "bridge letter candle barrel carpet kettle pillow shovel saddle lantern trumpet statue cradle curtain"
).split()
PEOPLE = (
    "Anna Peter Maria Thomas Laura David Julia Martin Sarah Robert Emma Frank Nora Paul Clara Henry"
).split()
PLACES = (
    "harbour market station garden library kitchen valley forest village mill school church river cellar"
).split()
DEEDS = (
    "walked to,looked at,waited near,talked about,came back from,painted,asked for directions to,"
    "stayed away from"
).split(",")
WHEN = (
    "In the morning,At noon,After the rain,Before supper,Late at night,On the next day,A week later,Soon,"
    "Without a word,As on every Monday,When the bell rang,While it snowed"
).split(",")


@dataclass(frozen=True)
class Question:
    """Tokens of the output that only who remembers can predict."""

    at: int  # what the answer's difficulty goes by: tokens since the fact, or the number of the item
    start: int  # index of the answer's first token in the output
    tokens: int
    stated: int  # output tokens that were written when the fact was complete; 0: it stands in the prompt

    @property
    def span(self) -> range:
        """Where the answer stands in the output."""
        return range(self.start, self.start + self.tokens)


@dataclass(frozen=True)
class Probe:
    kind: str
    seed: int
    prompt_ids: list[int]
    output_ids: list[int]
    questions: tuple[Question, ...]


Encode = Callable[[str], list[int]]


def make_probe(kind: str, seed: int, tokens: int, encode_prompt: Encode, encode: Encode) -> Probe:
    """A probe of about `tokens` output tokens; `encode_prompt` applies the chat template, `encode` none."""
    makers = {
        "output-fact": _output_fact,
        "prompt-fact": _prompt_fact,
        "list": _list,
        "copy": _copy,
    }
    return makers[kind](Random(f"{kind} {seed}"), seed, tokens, encode_prompt, encode)


def gaps_for(tokens: int) -> list[int]:
    """Distances between a fact and its question: halves of the length, the longest first, at least 32."""
    gaps, gap = [], int(tokens * 0.8)
    while gap >= 32:
        gaps.append(gap)
        gap //= 2
    if not gaps:
        raise UsageError(f"a probe of {tokens} tokens has no room for a gap", "give --tokens 64 or more")
    return gaps


def _output_fact(random: Random, seed: int, tokens: int, encode_prompt: Encode, encode: Encode) -> Probe:
    """Facts at several distances before the questions, in the output itself."""
    gaps = gaps_for(tokens)
    facts = _facts(random, len(gaps))
    prompt = encode_prompt(
        "Write a long diary. Now and then note the number of a thing, and ask for it later."
    )
    output = _Output(encode)
    # The questions stand at the end, in the order of their facts: every gap is about what it should be.
    end = tokens - sum(len(encode(f" {_question(fact)} {fact[1]}.")) for fact in facts)
    stated = []
    for fact, gap in zip(facts, gaps, strict=True):
        _fill(output, random, max(0, end - gap))
        output.add(f" {_question(fact)} {fact[1]}.")
        stated.append(len(output.ids))
    _fill(output, random, end)
    output.add("\n\nWhat were the numbers?\n")
    questions = []
    for fact, said in zip(facts, stated, strict=True):
        output.add(f" {_question(fact)}")
        questions.append(output.answer(fact[1], at=len(output.ids) - said, stated=said))
        output.add(".")
    return Probe("output-fact", seed, prompt, output.ids, tuple(questions))


def _prompt_fact(random: Random, seed: int, tokens: int, encode_prompt: Encode, encode: Encode) -> Probe:
    """Facts in the prompt, asked for after a filler of `tokens`, and in between."""
    gaps = gaps_for(tokens)[::-1]
    facts = _facts(random, len(gaps))
    stated = " ".join(f"{_question(fact)} {fact[1]}." for fact in facts)
    before, after = (" ".join(_sentence(random) for _ in range(10)) for _ in range(2))
    text = f"{before} {stated} {after}"
    prompt = encode_prompt(f"{text}\n\nGo on with this diary, and repeat the numbers now and then.")
    output = _Output(encode)
    questions = []
    for fact, gap in zip(facts, gaps, strict=True):
        _fill(output, random, gap)
        output.add(f" {_question(fact)}")
        questions.append(output.answer(fact[1], at=len(output.ids), stated=0))
        output.add(".")
    return Probe("prompt-fact", seed, prompt, output.ids, tuple(questions))


def _list(random: Random, seed: int, tokens: int, encode_prompt: Encode, encode: Encode) -> Probe:
    """As many items as fill the output; an item is asked for by its number."""
    items: list[str] = []
    output = _Output(encode)
    questions: list[Question] = []
    while len(output.ids) < tokens:
        item = f"{random.choice(COLOURS)} {random.choice(THINGS)}"
        items.append(item)
        output.add(f"{len(items)}.")
        questions.append(output.answer(item, at=len(items), stated=0))
        output.add("\n")
    numbered = "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    prompt = encode_prompt(f"This is a list:\n\n{numbered}\n\nWrite the same list out, in order.")
    return Probe("list", seed, prompt, output.ids, tuple(questions))


def _copy(random: Random, seed: int, tokens: int, encode_prompt: Encode, encode: Encode) -> Probe:
    """A passage of the prompt; every sentence of it is a question."""
    output = _Output(encode)
    sentences: list[str] = []
    questions: list[Question] = []
    while len(output.ids) < tokens:
        sentence = _sentence(random)
        first, rest = sentence.split(" ", 1)
        output.add(f" {first}" if sentences else first)
        sentences.append(sentence)
        questions.append(output.answer(rest, at=len(sentences), stated=0))
    prompt = encode_prompt(f"{' '.join(sentences)}\n\nCopy this text, word for word.")
    return Probe("copy", seed, prompt, output.ids, tuple(questions))


class _Output:
    """Tokens so far; an answer is tokenised by itself, so that its tokens are known."""

    def __init__(self, encode: Encode) -> None:
        self.ids: list[int] = []
        self._encode = encode

    def add(self, text: str) -> None:
        self.ids += self._encode(text)

    def answer(self, text: str, at: int, stated: int) -> Question:
        ids = self._encode(f" {text}")
        question = Question(at, len(self.ids), len(ids), stated)
        self.ids += ids
        return question


def _facts(random: Random, count: int) -> list[tuple[str, str]]:
    """(thing, number): different things, so that a question has one answer."""
    things = random.sample([f"{colour} {thing}" for colour in COLOURS for thing in THINGS], count)
    return [(thing, str(random.randrange(10_000, 100_000))) for thing in things]


def _question(fact: tuple[str, str]) -> str:
    return f"The number of the {fact[0]} is"


def _fill(output: _Output, random: Random, tokens: int) -> None:
    """Sentences until the output has that many tokens."""
    while len(output.ids) < tokens:
        output.add(f" {_sentence(random)}")


def _sentence(random: Random) -> str:
    who, whom = random.sample(PEOPLE, 2)
    deed, place = random.choice(DEEDS), random.choice(PLACES)
    return (
        f"{random.choice(WHEN)} {who} {deed} the {random.choice(COLOURS)} {place}, and {whom} was told of it."
    )
