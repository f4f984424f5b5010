"""Every architecture, type and scaling that a GGUF file can have: what scope writes, beside transformers.

`python -m tests.models.gguf.cases` prints the table of docs/how-to/gguf.md.
"""

import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import generate, new_work
from scope_cli.events import Token
from scope_cli.models.gguf.architectures import REFUSED
from scope_cli.models.model import open_model
from scope_cli.settings.load import LoadedProfile
from tests.helpers.plain import profile_of
from tests.models.gguf.files import ENDS, FIXED, Written, write

PROMPT_TOKENS, NEW_TOKENS = 700, 60
ORIGINAL = 256  # the context before it was stretched: a prompt of 700 is beyond it


@dataclass(frozen=True)
class Case:
    """One file. `config` is the source's; `metadata` and `factors` are how GGUF says the same."""

    architecture: str
    kind: str = "F32"
    scaling: str = "none"
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.kind}-{self.scaling}"

    def write(self, folder: Path) -> Written:
        more = {"metadata": self.metadata, "factors": self.factors}
        return write(folder / f"{self.name}.gguf", self.architecture, self.kind, **more, **self.config)


def llama3_divisors(theta: float, head_dim: int, factor: float, low: float, high: float, original: int):
    """What llama.cpp's converter writes as rope_freqs.weight: its formula, number by number."""
    divisors = []
    for n in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (n / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def rope(**said: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, **said}}


SCALING = "{arch}.rope.scaling."
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = [1.0 + n / 16 for n in range(32)]
SHORT = [1.0 + n / 64 for n in range(32)]
LINEAR = {
    "config": rope(rope_type="linear", factor=4.0),
    "metadata": {SCALING + "type": "linear", SCALING + "factor": 4.0},
}
OLD_LINEAR = {"config": LINEAR["config"], "metadata": {"{arch}.rope.scale_linear": 4.0}}
YARN = {
    "config": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=ORIGINAL),
    "metadata": {
        SCALING + "type": "yarn",
        SCALING + "factor": 4.0,
        SCALING + "original_context_length": ORIGINAL,
    },
}
YARN_ALL = {
    "config": rope(**{**YARN["config"]["rope_parameters"], "attention_factor": 1.3, "beta_fast": 16.0}) | {},
    "metadata": {
        **YARN["metadata"],
        SCALING + "yarn_attn_factor": 1.3,
        SCALING + "yarn_beta_fast": 16.0,
        SCALING + "yarn_beta_slow": 1.0,
    },
}
DIVIDED = {
    "config": rope(rope_type="llama3", original_max_position_embeddings=ORIGINAL, **LLAMA3),
    "factors": {"rope_freqs.weight": llama3_divisors(10_000.0, 64, 8.0, 1.0, 4.0, ORIGINAL)},
}
LONGROPE = {
    "config": {
        **rope(
            rope_type="longrope",
            long_factor=LONG,
            short_factor=SHORT,
            original_max_position_embeddings=2048,
            attention_factor=1.2,
        ),
        "max_position_embeddings": 4096,
    },
    "metadata": {
        SCALING + "type": "longrope",
        SCALING + "attn_factor": 1.2,
        SCALING + "original_context_length": 2048,
    },
    "factors": {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
}
PHI3_LONGROPE = {
    "config": {**LONGROPE["config"], "original_max_position_embeddings": 2048},
    "metadata": {**LONGROPE["metadata"], SCALING + "type": None},  # its converter leaves the type away
    "factors": LONGROPE["factors"],
}
PARTIAL = {"config": rope(rope_type="default", partial_rotary_factor=0.5)}
GEMMA3_LINEAR = {
    "config": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        }
    },
    "metadata": {SCALING + "type": "linear", SCALING + "factor": 8.0},
}
KINDS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
KINDS += ("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4")
CASES = [
    *(Case(architecture) for architecture in FIXED),
    *(
        Case(architecture, kind)
        for architecture in FIXED
        for kind in ("F16", "Q8_0", "Q4_K")
        if architecture != "llama"
    ),
    *(Case("llama", kind) for kind in KINDS),
    *(
        Case(architecture, scaling=name, **said)
        for architecture in ("llama", "qwen2", "qwen3", "qwen3moe", "mixtral", "granite", "smollm3", "olmo2")
        for name, said in (("linear", LINEAR), ("yarn", YARN), ("llama3", DIVIDED))
    ),
    Case("llama", scaling="linear, old key", **OLD_LINEAR),
    Case("llama", scaling="yarn, all keys", **YARN_ALL),
    Case("llama", "Q4_K", "llama3", **DIVIDED),
    Case("llama", scaling="longrope", **LONGROPE),
    Case("qwen2", scaling="longrope", **LONGROPE),
    Case("starcoder2", scaling="linear", **LINEAR),
    Case("gemma", scaling="linear", **LINEAR),
    Case("gemma3", scaling="linear", **GEMMA3_LINEAR),
    Case("phi3", scaling="longrope", **PHI3_LONGROPE),
    Case("phi3", scaling="half of each head", **PARTIAL),
    Case("minimax-m2", scaling="half of each head", **PARTIAL),
]


def written_by_scope(path: Path, prompt: str) -> list[Token]:
    profile = profile_of(
        {
            "model": {"name": str(path), "device": "cpu", "dtype": "float32", "load_in": None},
            "prompt": {"raw": True},
            "decode": {"strategy": "full"},
            "sampling": {"max_new_tokens": NEW_TOKENS, "ignore_eos": True, "temperature": 0},
        }
    )
    opened = open_model(profile.model, offline=True)
    ids = opened.tokenizer(prompt)["input_ids"]
    work = new_work(LoadedProfile(profile, "test", frozenset()), opened.geometry, ids)
    events = generate(opened.load(), profile, [work], shared_shape([work.plan], 1))
    return [event for event in events if isinstance(event, Token)]


def compare(written: Written) -> tuple[int, float]:
    """How many of the greedy tokens are transformers', and how far log-probabilities are apart until then."""
    ids = torch.randint(97, 123, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    got = written_by_scope(written.path, bytes(ids[0].tolist()).decode())
    out = written.source.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=list(ENDS),  # as ignore_eos has it
        output_logits=True,
        return_dict_in_generate=True,
    )
    theirs = out.sequences[0, PROMPT_TOKENS:].tolist()
    same = [token.token_id == id for token, id in zip(got, theirs, strict=True)]
    until = [*same, False].index(False)
    logprobs = torch.stack(out.logits, 1)[0].log_softmax(-1)[: until + 1]
    difference = max(
        abs(token.logprob - float(row[token.token_id])) for token, row in zip(got, logprobs, strict=False)
    )
    return sum(same), difference


def table(results: list[tuple[Case, int, float]]) -> Iterator[str]:
    """A row for each architecture and scaling: the types of its weights together, the worst of them."""
    rows: dict[tuple[str, str], list[tuple[Case, int, float]]] = {}
    for one in results:
        rows.setdefault((one[0].architecture, one[0].scaling), []).append(one)
    yield "| model | positions | weights | greedy tokens as transformers' | log-probability |"
    yield "|---|---|---|---|---|"
    for (architecture, scaling), ones in sorted(rows.items()):
        kinds = ", ".join(case.kind for case, _, _ in ones)
        same, difference = min(same for _, same, _ in ones), max(difference for _, _, difference in ones)
        yield f"| {architecture} | {scaling} | {kinds} | {same} of {NEW_TOKENS} | {difference:.0e} |"
    yield ""
    yield "| refused | because |"
    yield "|---|---|"
    yield from (f"| {architecture} | {why} |" for architecture, why in sorted(REFUSED.items()))


def main() -> None:
    results = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            results.append((case, *compare(case.write(Path(folder)))))
        print(case.name, results[-1][1:], file=sys.stderr, flush=True)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
