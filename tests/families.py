"""Every family of transformers that writes text, as a tiny model; what scope makes of it beside `generate`.

python -m tests.families            # the whole table, as docs/reference/models.md has it
python -m tests.families llama phi3 # some of it
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from scope_cli.engine.run import generate, new_work
from scope_cli.errors import ModelError, first_line
from scope_cli.events import Token
from scope_cli.machine.setup import hushed
from scope_cli.models.model import open_model
from scope_cli.settings.load import LoadedProfile
from tests.helpers.plain import profile_of
from tests.helpers.tiny import tiny_tokenizer

PROMPT, WRITTEN = 700, 60  # more than a chunk on a CPU; tokens
VOCAB = 300
SMALL: dict[str, Any] = {  # by whatever name a family calls it
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "model_dim"), 64),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "ffn_dim", "ffn_hidden_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "attention_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_length"), 2048),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window_size"), 64),
    **dict.fromkeys(("num_image_tokens", "image_seq_length", "num_labels"), 4),
    "shared_expert_intermediate_size": 32,
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "initializer_range": 0.2,
    "num_kv_shared_layers": 0,
    "image_size": 32,
    "patch_size": 16,
    "query_pre_attn_scalar": 16,
    "word_embed_proj_dim": 64,
    "embedding_size": 64,
    "num_key_value_groups": 2,
}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id")
DERIVED = (
    "mlp_layer_types",
    "no_rope_layers",
    "sliding_window_pattern",
    "layers_block_type",
    "per_layer_config",
)
EXTRA: dict[str, dict[str, Any]] = {  # what a family needs besides
    "reformer": {"is_decoder": True},
    "gemma3n_text": {"intermediate_size": [96, 96], "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
}
MOST_WEIGHTS = 20_000_000
SCALED = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
        "original_max_position_embeddings": 512,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # row -> family, what is different
    **{
        f"llama ({kind})": ("llama", {"rope_parameters": {"rope_theta": 1e4, **SCALED[kind]}})
        for kind in SCALED
    },
    "llama (biases)": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama (tied)": ("llama", {"tie_word_embeddings": True}),
    "phi3 (longrope)": (
        "phi3",
        {
            "rope_parameters": {"rope_theta": 1e4, **SCALED["longrope"]},
            "original_max_position_embeddings": 512,
        },
    ),
    "phimoe (longrope)": (
        "phimoe",
        {
            "rope_parameters": {
                "rope_theta": 1e4,
                **SCALED["longrope"],
                "short_mscale": 1.1,
                "long_mscale": 1.3,
            },
            "original_max_position_embeddings": 512,
        },
    ),
    "qwen2 (yarn)": ("qwen2", {"rope_parameters": {"rope_theta": 1e4, **SCALED["yarn"]}}),
    "qwen2 (sliding)": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    "mistral (full)": ("mistral", {"sliding_window": None}),
    "mixtral (full)": ("mixtral", {"sliding_window": None}),
    "phi3 (full)": ("phi3", {"sliding_window": None}),
}


VERDICTS = ("right", "refused", "wrong", "error", "not built")
TOP = """# Models

What scope makes of every family of transformers {transformers} that writes text, as a tiny random model in
float32: a prompt of 700 tokens is read, and 60 tokens are written, each the most probable one. *Right* is
the same 60 tokens as transformers' own `generate` writes of the same folder. {rows} rows; in brackets, other
configurations of a family. `python -m tests.families > docs/reference/models.md` prints this page.

Whatever model it is: when it is loaded for the first time, its self-test reads 20 tokens in two chunks and
writes three, through scope's attention and cache, and compares every attention layer with transformers' own,
given the same input; sliding windows are shortened for it, so that these few tokens outgrow them. Where one
differs the model is refused, with the layer. The result is remembered in the cache folder, for the model's
configuration, the dtype, the device and the versions of torch, transformers and scope. It costs two short
forwards, one of them in five parts; `--verbose` says how long they took.

## Right

{right} rows:
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a family."""

    row: str
    verdict: str  # right, refused, wrong, error, not built
    why: str = ""
    elapsed_s: float = 0.0


def rows() -> list[str]:
    """Every row of the table: the families, and some of them in other configurations."""
    names = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    return sorted({*names, *VARIANTS})


def small(values: dict[str, Any], ends: int | None, filled: bool) -> dict[str, Any]:
    """A configuration with small sizes. ends: the id of special tokens; filled: what is null gets a size."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key in DERIVED or (value is None and not (filled and key in SMALL and "window" not in key)):
            continue
        if key == "layer_types" and isinstance(value, list):
            made[key] = list(dict.fromkeys(value))  # a layer of each kind
            made["num_hidden_layers"] = len(made[key])
        elif key == "num_hidden_layers" and key in made:
            pass
        elif isinstance(value, dict) and "model_type" in value:
            made[key] = small(value, ends, filled)
        elif key in TOKENS:
            made[key] = ends
        elif key in SMALL:
            made[key] = SMALL[key] if value is None else type(value)(SMALL[key])
        else:
            made[key] = value
    if made.get("model_type", "").startswith(("qwen2_vl", "qwen2_5_vl", "paddleocr")):
        made["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    if "tie_word_embeddings" in made:
        made["tie_word_embeddings"] = False  # tied, a random model repeats its input
    return made


def config_of(row: str, ends: int | None = None, filled: bool = False) -> PreTrainedConfig:
    family, different = VARIANTS.get(row, (row, {}))
    kind = CONFIG_MAPPING[family]
    values = {**small(kind().to_dict(), ends, filled), **EXTRA.get(family, {}), **different}
    for key in ("transformers_version", "model_type", "architectures"):
        values.pop(key, None)
    return kind(**values)


def model_of(row: str) -> Any:
    """A row's tiny model, of the first small configuration that its class takes."""
    problem: Exception = ValueError("no configuration")
    for ends, filled in ((1, True), (1, False), (None, True), (None, False)):
        try:
            return random_model(config_of(row, ends, filled))
        except Exception as error:
            problem = error
    raise problem


def auto_of(config: PreTrainedConfig) -> Any:
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    raise ValueError("no class for text")


def random_model(config: PreTrainedConfig) -> Any:
    auto = auto_of(config)
    with torch.device("meta"):
        weights = sum(one.numel() for one in auto.from_config(config).parameters())
    if weights > MOST_WEIGHTS:
        raise ValueError(f"{weights:,} weights are not small")
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32).eval()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in model.parameters():
            if not one.is_floating_point():
                continue
            if one.dim() < 2:  # a bias or a norm: near what it was
                one.add_(torch.randn(one.shape, generator=chance) * 0.1)
            elif one.std() < 0.15 or not one.isfinite().all():
                one.copy_(torch.randn(one.shape, generator=chance) * 0.2)
    return model


def prompt_of(tokens: int) -> list[int]:
    return torch.randint(3, 250, (tokens,), generator=torch.Generator().manual_seed(1)).tolist()


@torch.no_grad()
def theirs(model: Any, prompt: list[int], written: int) -> list[int]:
    """What transformers' own `generate` writes."""
    ids = torch.tensor([prompt])
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=written,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def ours(folder: Path, prompt: list[int], written: int, **model: Any) -> list[int]:
    """What scope writes of a folder, through the door that every command takes."""
    profile = profile_of(
        {
            "model": {"name": str(folder), "device": "cpu", "load_in": None, "compile": "off", **model},
            "decode": {"strategy": "full"},
            "sampling": {"max_new_tokens": written, "ignore_eos": True},
        }
    )
    opened = open_model(profile.model, offline=True)
    settings = LoadedProfile(profile, "test", frozenset())
    work = new_work(settings, opened.geometry, prompt)
    events = list(generate(opened.load(), profile, [work]))
    return [event.token_id for event in events if isinstance(event, Token)]


def try_row(row: str, folder: Path, prompt_tokens: int = PROMPT, written: int = WRITTEN) -> Outcome:
    """Build it, write with both, compare."""
    began = perf_counter()

    def outcome(verdict: str, why: str = "") -> Outcome:
        return Outcome(row, verdict, why, perf_counter() - began)

    with warnings.catch_warnings(), hushed(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        try:
            model = model_of(row)
            for config in (model.config, model.config.get_text_config(decoder=True)):
                config.eos_token_id = model.generation_config.eos_token_id = None
            model.save_pretrained(folder)
            tiny_tokenizer_without_ends().save_pretrained(folder)
        except Exception as error:
            return outcome("not built", f"{type(error).__name__}: {first_line(error)}")
        prompt = prompt_of(prompt_tokens)
        try:
            again = auto_of(model.config).from_pretrained(folder, dtype=torch.float32)  # as everybody has it
            expected = theirs(again.eval(), prompt, written)
        except Exception as error:
            expected, broken = [], f"{type(error).__name__}: {first_line(error)}"
        try:
            got = ours(folder, prompt, written)
        except ModelError as error:
            return outcome("refused", first_line(error))
        except Exception as error:
            return outcome("error", f"{type(error).__name__}: {first_line(error)}")
    if not expected:
        return outcome("not built", f"generate: {broken}")
    same = next((i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b), written)
    if same < written:
        return outcome("wrong", f"token {same} differs")
    return outcome("right", "" if len(set(expected)) > 5 else f"{len(set(expected))} different tokens")


def tiny_tokenizer_without_ends() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.pad_token = None
    return tokenizer


def sweep(wanted: list[str], tell: Callable[[Outcome], None] = lambda outcome: None) -> Iterator[Outcome]:
    for row in wanted:
        with TemporaryDirectory() as folder:
            outcome = try_row(row, Path(folder))
        tell(outcome)
        yield outcome


def page(outcomes: list[Outcome]) -> str:
    """docs/reference/models.md, from what was found."""
    by_verdict = {name: [one for one in outcomes if one.verdict == name] for name in VERDICTS}
    right = ", ".join(f"`{one.row}`" for one in by_verdict["right"])
    lines = [
        TOP.format(rows=len(outcomes), right=len(by_verdict["right"]), transformers=transformers.__version__),
        right + ".",
        f"\n## Refused\n\n{len(by_verdict['refused'])} families, in the words that scope prints:\n",
        "| why | families |\n|---|---|",
    ]
    reasons: dict[str, list[str]] = {}
    for one in by_verdict["refused"]:
        why = one.why.partition("cannot be run: ")[2] or one.why.replace(f"{one.row}: ", "")
        reasons.setdefault(why.replace("|", " "), []).append(f"`{one.row}`")
    lines += [f"| {why} | {', '.join(names)} |" for why, names in sorted(reasons.items())]
    lines += [
        "\n## Not tried\n",
        "No tiny model of these could be made, or transformers' `generate` failed on it:\n",
    ]
    lines += [", ".join(f"`{one.row}`" for one in by_verdict["not built"]) + "."]
    for verdict in ("wrong", "error"):  # none, or this page says so
        lines += [f"\n{verdict}: `{one.row}`, {one.why}" for one in by_verdict[verdict]]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    def tell(outcome: Outcome) -> None:
        line = f"{outcome.elapsed_s:6.1f} s  {outcome.verdict:9}  {outcome.row:28} {outcome.why}"
        print(line, file=sys.stderr, flush=True)

    outcomes = list(sweep(argv or rows(), tell))
    print(page(outcomes), end="")
    return int(any(one.verdict in ("wrong", "error") for one in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
