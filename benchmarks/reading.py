# ruff: noqa: E402
"""How fast is a prompt read on this CPU: with the default weights, and with plain float32 ones?

    python benchmarks/reading.py                  # the embedded model, examples/report.txt, two threads
    python benchmarks/reading.py --threads 1
    ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 SCOPE_NATIVE=avx2 \\
        python benchmarks/reading.py              # as a CPU without AVX-512 computes

Both models are there, and take turns: a prompt each. Tokens a second are the median over the rounds, and
those of the least time of each chunk; CPU seconds are those of the whole process in a prompt, the median too.
The last column is the prompt's multiply-adds a second, those of its attention among them, over those of
PyTorch's own float32 product of 512 rows with the same threads, measured in turn with the prompts.
Nothing else may run meanwhile.
"""

import argparse
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from scope_cli.machine.setup import wait_briefly

wait_briefly()  # as `scope` does, before torch is imported

import torch

from scope_cli.engine.plan import shared_shape
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.run import new_cache
from scope_cli.engine.run_plan import make_plan
from scope_cli.machine.description import processor
from scope_cli.models.model import LoadedModel, open_model
from scope_cli.settings.load import load_profile

TEXT = Path(__file__).parent.parent / "examples" / "report.txt"
FORMS = ("auto", "none")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, help="the prompt's first ones; all where it is left out")
    args = parser.parse_args()
    models = {form: load(form, args.threads) for form in FORMS}
    products: list[float] = []
    chosen = os.environ.get("SCOPE_NATIVE", "the best there is")
    print(f"{processor()}; {args.threads} threads; instructions: {chosen}\n")
    taken: dict[str, list[list[float]]] = {form: [] for form in FORMS}
    spent: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(args.rounds):
        for form, loaded in models.items():
            ids = loaded.tokenizer(TEXT.read_text())["input_ids"][: args.tokens]
            began = time.process_time()
            taken[form].append(read(loaded, ids))
            spent[form].append(time.process_time() - began)
        products.append(product_rate(loaded.model.config))
    print(f"| weights | tokens/s, {len(ids):,} tokens | of the best chunks | CPU s | of the products' rate |")
    print("|---|--:|--:|--:|--:|")
    for form, loaded in models.items():
        name = loaded.opened.load_in or str(loaded.dtype).removeprefix("torch.")
        best_s = sum(min(times) for times in zip(*taken[form], strict=True))
        median_s = statistics.median(map(sum, taken[form]))
        cells = [f"{len(ids) / seconds:,.0f}" for seconds in (median_s, best_s)]
        share = multiply_adds(loaded, len(ids)) / median_s / statistics.median(products)
        print(f"| {name} | {' | '.join(cells)} | {statistics.median(spent[form]):.1f} | {share:.0%} |")


def load(form: str, threads: int) -> LoadedModel:
    asked = {"model.threads": threads, "model.load_in": None if form == "none" else form}
    return open_model(load_profile("default", asked).profile.model).load()


def multiply_adds(loaded: LoadedModel, tokens: int) -> int:
    """Of a prompt: its layers' matrices, queries with keys, weights with values; the head reads one row."""
    shape = loaded.model.config
    heads, kv_heads, hidden = shape.num_attention_heads, shape.num_key_value_heads, shape.hidden_size
    head_dim = hidden // heads
    matrices = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * shape.intermediate_size
    attention = heads * head_dim * tokens * (tokens + 1)  # half of the square, two products
    return shape.num_hidden_layers * (matrices * tokens + attention)


def product_rate(config: Any, rows: int = 512, turns: int = 200) -> float:
    """Multiply-adds a second of PyTorch's product of float32 rows with a matrix of the model's MLP."""
    hidden, inner = config.hidden_size, config.intermediate_size
    left, right = torch.rand(rows, hidden), torch.rand(inner, hidden)
    for _ in range(20):
        torch.nn.functional.linear(left, right)
    began = time.perf_counter()
    for _ in range(turns):
        torch.nn.functional.linear(left, right)
    return rows * hidden * inner * turns / (time.perf_counter() - began)


@torch.no_grad()
def read(loaded: LoadedModel, ids: list[int]) -> list[float]:
    """Seconds of each chunk."""
    settings = load_profile("full", {"cache.kv": "plain", "sampling.max_new_tokens": 1})
    plan = make_plan(settings, loaded.geometry, len(ids))
    cache = new_cache(loaded, settings.profile, shared_shape([plan], 1))
    ends = [time.perf_counter()]
    for _progress in read_prompt(
        loaded.model, cache, torch.tensor([ids]), plan.schedule, native=loaded.native
    ):
        ends.append(time.perf_counter())
    return [end - begin for begin, end in pairwise(ends)]


if __name__ == "__main__":
    main()
