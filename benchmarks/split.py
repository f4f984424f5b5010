"""What does the default cost beside float32, and which part of it: the products, or the slots?

    python benchmarks/split.py              # three known texts of 2,048 tokens, a few minutes each
    python benchmarks/split.py --tokens 512
    python benchmarks/split.py --products   # which of a step's products could do with activations of 8 bits?

Nothing is evicted. The file's own weights in float32 and plain slots say what each token's distribution is;
against that stand products of packed weights (which keep the file's weights, and round a prompt's activations
to 8 bits and a step's to 16), int8 and k8v4 slots, both, and float32 with nothing but a step's activations
rounded, to 16 bits and to 8. KL in nats, mean over a text's output.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from quality import PROMPT_TOKENS, known_text
from torch import Tensor, nn

from scope_cli.engine.replay import read_once
from scope_cli.measure.evaluate.fidelity import Reference, measure
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.native.layout import BLOCK
from scope_cli.settings.load import load_profile
from scope_cli.settings.schema import ModelSettings


@dataclass(frozen=True)
class Part:
    """What differs from plain float32."""

    packs: bool = False
    kv: str = "plain"
    largest: int | None = None  # activations of a step become whole numbers up to it
    into: tuple[str, ...] = ("",)  # those that go into products whose names end so


PARTS = {
    "products of packed weights": Part(packs=True),
    "int8 slots": Part(kv="int8"),
    "k8v4 slots": Part(kv="k8v4"),
    "both: packed weights, int8 slots": Part(packs=True, kv="int8"),
    "activations of a step in 16 bits": Part(largest=32767),
    "activations of a step in 8 bits": Part(largest=127),
}

PRODUCTS = {  # into which 8 bits go
    "gate, up": Part(largest=127, into=("gate_proj", "up_proj")),
    "down": Part(largest=127, into=("down_proj",)),
    "attention's output": Part(largest=127, into=("o_proj",)),
    "all of these": Part(largest=127, into=("gate_proj", "up_proj", "down_proj", "o_proj")),
    "queries": Part(largest=127, into=("q_proj",)),
    "keys, values": Part(largest=127, into=("k_proj", "v_proj")),
    "head": Part(largest=127, into=("lm_head",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="KL(float32 || default), split into its parts.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, help="of each text's output; all where it is left out")
    parser.add_argument("--products", action="store_true", help="8 bits for some of a step's products alone")
    args = parser.parse_args()
    parts = PRODUCTS if args.products else PARTS
    plain, packed = load(args.model, "float32", None), load(args.model, "auto", "auto")
    assert packed.opened.load_in, "the default packs this model's weights"
    print(f"| KL(float32 \\|\\| ...) | {' | '.join(PROMPT_TOKENS)} |\n|---|{'--:|' * len(PROMPT_TOKENS)}")
    found: dict[str, list[float]] = {name: [] for name in parts}
    for prompt in PROMPT_TOKENS:
        text = known_text(prompt)
        text = replace(text, output_ids=text.output_ids[: args.tokens])
        reference = Reference.of(plain, text)
        own = replace(reference, loaded=packed, state=read_once(packed, text.prompt_ids))
        for name, part in parts.items():
            profile = load_profile("full", {"cache.kv": part.kv})
            with rounded(plain.model, part):
                kl, *_interval = measure(own if part.packs else reference, profile).kl
            found[name].append(kl)
    for name, kls in found.items():
        print(f"| {name} | {' | '.join(f'{kl:.2g}' for kl in kls)} |")


@contextmanager
def rounded(model: nn.Module, part: Part) -> Iterator[None]:
    """What goes into the model's products rounded, block by block, as native/rounding.h does it."""

    def in_steps(_module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        blocks = given[0].unflatten(-1, (-1, BLOCK))
        one = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / part.largest
        return (((blocks / one).round() * one).flatten(-2),)

    products = [
        module
        for name, module in model.named_modules()
        if part.largest and isinstance(module, nn.Linear) and name.endswith(part.into)
    ]
    hooks = [product.register_forward_pre_hook(in_steps) for product in products]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def load(model: str, dtype: str, load_in: str | None) -> LoadedModel:
    return open_model(ModelSettings(name=model, device="cpu", dtype=dtype, load_in=load_in)).load()


if __name__ == "__main__":
    main()
