"""What does the default cost beside float32, and which part of it: the products, or the slots?

    python benchmarks/split.py              # three known texts of 2,048 tokens, a few minutes each
    python benchmarks/split.py --tokens 500

Nothing is evicted. The file's own weights in float32 and plain slots say what each token's distribution is;
against that stand products of packed weights (which keep the file's weights and round activations to 16
bits), int8 and k8v4 slots, and both. KL in nats, mean over a text's output.
"""

import argparse
from dataclasses import replace

import torch
from quality import PROMPT_TOKENS, known_text

from scope_cli.engine.replay import read_once
from scope_cli.measure.evaluate.fidelity import Reference, measure
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import load_profile
from scope_cli.settings.schema import ModelSettings

PARTS = {  # name: whether the weights are packed, and the slots
    "products of packed weights": (True, "plain"),
    "int8 slots": (False, "int8"),
    "k8v4 slots": (False, "k8v4"),
    "both: packed weights, int8 slots": (True, "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="KL(float32 || default), split into its parts.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, help="of each text's output; all where it is left out")
    args = parser.parse_args()
    plain, packed = load(args.model, "float32", None), load(args.model, "auto", "auto")
    assert packed.opened.load_in, "the default packs this model's weights"
    print(f"| KL(float32 \\|\\| ...) | {' | '.join(PROMPT_TOKENS)} |\n|---|{'--:|' * len(PROMPT_TOKENS)}")
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for name in PROMPT_TOKENS:
        text = known_text(name)
        text = replace(text, output_ids=text.output_ids[: args.tokens])
        reference = Reference.of(plain, text)
        own = replace(reference, loaded=packed, state=read_once(packed, text.prompt_ids))
        for part, (packs, kv) in PARTS.items():
            profile = load_profile("full", {"cache.kv": kv})
            kl, *_interval = measure(own if packs else reference, profile).kl
            found[part].append(kl)
    for part, kls in found.items():
        print(f"| {part} | {' | '.join(f'{kl:.2g}' for kl in kls)} |")


@torch.no_grad()
def load(model: str, dtype: str, load_in: str | None) -> LoadedModel:
    return open_model(ModelSettings(name=model, device="cpu", dtype=dtype, load_in=load_in)).load()


if __name__ == "__main__":
    main()
