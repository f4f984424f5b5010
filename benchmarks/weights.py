"""What does each form of the weights cost on this CPU, in quality, time and bytes?

    python benchmarks/weights.py                   # a few minutes; prints the table, keeps the numbers
    python benchmarks/weights.py --table           # prints the table of the numbers there are

Quality: the model's distributions over a known text of 1,000 tokens, compared with plain float32: mean KL in
nats, and how often both have the same most probable token. The text goes through once in pieces of 64, which
is what decoding computes with, and once whole, which is how a prompt is read. Speed: one token for 1 and for
8 sequences, without a cache; all forms take turns, so that they meet the same noise, and the ratio of the
medians to float32's is given. Bytes: of the loaded weights, and of those that a step reads.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import DynamicCache

from scope_cli.engine.roofline import step_weight_bytes
from scope_cli.models.model import open_model
from scope_cli.settings.schema import ModelSettings

HERE = Path(__file__).parent
NUMBERS = HERE / "results/weights.json"
FORMS = {  # name -> model settings
    "float32": {"dtype": "float32", "load_in": None},
    "bfloat16": {"dtype": "bfloat16", "load_in": None},
    "int8": {"dtype": "float32", "load_in": "int8"},
    "int4": {"dtype": "float32", "load_in": "int4"},
    "8bit": {"dtype": "float32", "load_in": "8bit"},
    "4bit": {"dtype": "float32", "load_in": "4bit"},
}
PIECE = 64
LANES = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", default="auto")
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    args = parser.parse_args()
    if not args.table:
        threads = int(args.threads) if args.threads.isdecimal() else "auto"
        numbers = measure(args.model, args.tokens, args.rounds, threads)
        NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
    print(table(json.loads(NUMBERS.read_text())))


@torch.no_grad()
def measure(name, tokens, rounds, threads) -> dict:
    text = json.loads((HERE / "results/texts/report.json").read_text())["text"]
    models, ids, expected, forms = {}, None, None, {}
    for form, keys in FORMS.items():
        opened = open_model(ModelSettings(name=name, device="cpu", threads=threads, **keys))
        began = time.perf_counter()
        models[form] = opened.load(attention="sdpa").model
        loading_s = time.perf_counter() - began
        if ids is None:
            ids = torch.tensor([opened.tokenizer(text)["input_ids"][:tokens]])
            expected = [in_pieces(models[form], ids), whole(models[form], ids)]
        numbers = {
            "loading_s": loading_s,
            "weight_bytes": opened.weight_bytes,
            "step_bytes": step_weight_bytes(models[form]),
            "decode": compare(expected[0], in_pieces(models[form], ids)),
            "reading": compare(expected[1], whole(models[form], ids)),
        }
        forms[form] = numbers
        print(form, numbers, file=sys.stderr, flush=True)
    for lanes in LANES:
        took = {form: [] for form in models}
        for turn in range(rounds + 1):
            for form, model in models.items():
                began = time.perf_counter()
                model(ids[:, :lanes].T, use_cache=False)
                if turn:  # the first turn warms up
                    took[form].append(time.perf_counter() - began)
        for form, times in took.items():
            forms[form][f"ms_{lanes}"] = 1000 * statistics.median(times)
    return {"tokens": ids.shape[1], "threads": torch.get_num_threads(), "forms": forms}


def in_pieces(model, ids):
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, past_key_values=cache).logits[0].float() for piece in ids.split(PIECE, 1)]
    return torch.cat(pieces).log_softmax(-1)


def whole(model, ids):
    return model(ids, use_cache=False).logits[0].float().log_softmax(-1)


def compare(expected, got) -> dict:
    return {
        "kl": float((expected.exp() * (expected - got)).sum(-1).mean()),
        "top1": float((expected.argmax(-1) == got.argmax(-1)).float().mean()),
    }


def table(numbers) -> str:
    forms = numbers["forms"]
    plain = forms["float32"]
    lines = [
        "| weights | KL decoding | top-1 | KL reading | 1 lane | 8 lanes | bytes | a step reads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for form, row in forms.items():
        speed = [f"{plain[f'ms_{lanes}'] / row[f'ms_{lanes}']:.2f}x" for lanes in LANES]
        size = [f"{row[key] / 2**20:.0f} MiB" for key in ("weight_bytes", "step_bytes")]
        decode, reading = row["decode"], row["reading"]
        quality = [f"{decode['kl']:.5f}", f"{decode['top1']:.3f}", f"{reading['kl']:.5f}"]
        lines.append(f"| {' | '.join([form, *quality, *speed, *size])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
