"""How many texts fit a card: KV bytes and lanes for 8B and 70B models, a budget against the full cache.

    python benchmarks/scale.py > docs/results/scale.md

Nothing is measured: `plan.py`'s arithmetic, to the byte, for Llama 3.1's shapes in bfloat16. Before a number
is printed, a cache of that size is made on PyTorch's `meta` device, which allocates nothing, and its tensors
are counted.
"""

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import CacheShape
from scope_cli.engine.plan import plan_run
from scope_cli.engine.run_plan import policy_of
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.settings.load import load_profile
from scope_cli.units import as_bytes

PROMPT = 4096
DTYPE_BYTES = 2  # bfloat16
CARDS = (24, 48, 80)  # GB as they are sold: 10**9 bytes
WORKSPACE = 1.5e9  # CUDA context, activations of a prompt's chunk, logits
BUDGETS = (1024, 2048, 4096, 8192)
OUTPUTS = (32_768, 131_072, 1_048_576)
CONTEXT = 2_000_000  # positions are taken as given: the question is what fits, not what a model can read
MODELS = {
    # published shapes: layers, heads, kv_heads, head_dim, hidden, vocabulary, parameters
    "8B": (32, 32, 8, 128, 4096, 128_256, 8_030_261_248),
    "70B": (80, 64, 8, 128, 8192, 128_256, 70_553_706_496),
}
WEIGHTS = {"bfloat16": 2.0, "4 bits": 0.5625}  # bytes per weight; 4 bits: half a byte, a float32 scale for 64


def geometry(model: str) -> Geometry:
    layers, heads, kv_heads, head_dim, hidden, vocab, _ = MODELS[model]
    layer = LayerGeometry("full", heads, kv_heads, head_dim)
    return Geometry((layer,) * layers, CONTEXT, hidden, vocab)


def lane_bytes(model: str, output: int, budget: int | None) -> int:
    """Everything that the cache of one lane allocates: keys, values, positions, masks, lists."""
    keys = {"sampling.max_new_tokens": output, "decode.recent": 256}
    settings = (
        load_profile("default", keys | {"decode.budget": budget}) if budget else load_profile("full", keys)
    )
    shape = plan_run(settings, geometry(model), PROMPT).shape
    planned = shape.cache_bytes(geometry(model), DTYPE_BYTES)
    assert planned == meta_bytes(model, shape, settings), "the plan is not what is allocated"
    return planned


def meta_bytes(model: str, shape: CacheShape, settings) -> int:
    """The same cache as tensors without memory."""
    import torch

    policy = policy_of(settings.profile.decode)
    cache = ScopeCache(geometry(model), shape, policy, dtype=torch.bfloat16, device="meta")
    return sum(tensor.nbytes for tensor in cache.tensors().values())


def lanes_on(card: int, weights: float, lane: int) -> int:
    """How many lanes fit beside weights and workspace."""
    return max(0, int((card * 10**9 - weights - WORKSPACE) // lane))


def table(model: str) -> list[str]:
    parameters = MODELS[model][-1]
    setups = [
        (card, name, parameters * each)
        for card in CARDS
        for name, each in WEIGHTS.items()
        if parameters * each + WORKSPACE < card * 10**9
    ]
    head = ["cache", "KV bytes of a lane", *(f"{card} GB, {name}" for card, name, _ in setups)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, lane in rows(model):
        cells = [name, as_bytes(lane), *(str(lanes_on(card, held, lane)) for card, _, held in setups)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def rows(model: str) -> list[tuple[str, int]]:
    bounded = [
        (f"budget {budget:,}, any output", lane_bytes(model, max(OUTPUTS), budget)) for budget in BUDGETS
    ]
    names = dict(zip(OUTPUTS, ("32k", "128k", "1M"), strict=True))
    full = [(f"full, {names[output]} output", lane_bytes(model, output, None)) for output in OUTPUTS]
    return bounded + full


INTRODUCTION = f"""# Scale on paper

<!-- Written by benchmarks/scale.py: python benchmarks/scale.py > docs/results/scale.md -->

Lanes (texts at once) that fit a card, for the shapes of Llama 3.1, a prompt of {PROMPT:,} tokens kept whole
in each lane, and a bfloat16 cache. Nothing here was measured on a card: it is the arithmetic of `plan.py`, to
the byte, checked against a cache on PyTorch's `meta` device. Beside the weights {WORKSPACE / 1e9:.1f} GB
are left for the rest: context, activations, logits. A card's GB are 10^9 bytes; `4 bits` counts 4.5 bits for
every weight. A lane's bytes include positions, masks and slot lists. `full` is scope's own full cache: the
same layout, so that only the number of tokens differs. A card whose column is not there does not hold the
weights.
"""

END = """
A bounded lane costs the same for every output longer than its budget. The model's own context is not looked
at: Llama 3.1 reads 131,072 tokens, and a budget does not stretch positions.
"""


def page() -> str:
    text = INTRODUCTION
    for model, (layers, heads, kv_heads, head_dim, *_) in MODELS.items():
        text += f"\n## {model}: {layers} layers, {heads} heads, {kv_heads} KV heads of {head_dim}\n\n"
        text += "\n".join(table(model)) + "\n"
    return text + END


if __name__ == "__main__":
    print(page(), end="")
