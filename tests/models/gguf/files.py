"""Tiny models of every architecture, written as llama.cpp's converter writes them, beside their source.

Names come from the gguf package; what the converter does to a weight is done here a second time, slowly.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFWriter, TokenType
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

VOCAB = 320
CONTROL = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]  # ids 256 to 259
ENDS = (257, 259)  # the EOS, and the end of a turn by its name
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 256,  # a row of K-quants
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 256}
FIXED = {  # architecture in GGUF: model_type and what its config has beyond SHAPE
    "llama": ("llama", {}),
    "mixtral": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "mistral-window": ("mistral", {"sliding_window": 300}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen2moe": ("qwen2_moe", {**MOE, "num_experts": 3, "shared_expert_intermediate_size": 512}),
    "qwen3moe": ("qwen3_moe", {**MOE, "num_experts": 3, "norm_topk_prob": True}),
    "minimax-m2": ("minimax_m2", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "gemma": ("gemma", {}),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 6, "sliding_window": 100, "query_pre_attn_scalar": 64}),
    "phi3": ("phi3", {}),
    "starcoder2": ("starcoder2", {}),
    "gpt2": ("gpt2", {}),
    "olmo2": ("olmo2", {}),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.1,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
}
IN_GGUF = {"mixtral": "llama", "mistral-window": "llama"}
PERMUTED = ("llama", "granite", "smollm3")  # llama.cpp turns neighbouring numbers of a head, not halves
RANDOM_BLOCKS = {  # types that the gguf package only reads: where their float16 scales lie
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
    "IQ4_NL": (0,),
}


@dataclass
class Written:
    """A file and the model that it was made of."""

    path: Path
    source: PreTrainedModel
    tensors: dict[str, Any] = field(default_factory=dict)


def source_model(name: str, seed: int = 0, **more: Any) -> PreTrainedModel:
    """A random model, its weights so large that attention matters."""
    model_type, extra = FIXED[name]
    shape = {**SHAPE, **extra, **more}
    if model_type == "gpt2":
        shape = {
            "vocab_size": VOCAB,
            "n_embd": 256,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 2048,
            "bos_token_id": 256,
            "eos_token_id": 257,
            **more,
        }
    config = AutoConfig.for_model(model_type, initializer_range=0.08, **shape)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():  # norms, biases: not all one or nought
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
            if "embed" in weight_name or "wte" in weight_name:
                weight.mul_(0.1 if "gemma" in model_type else 3)  # Gemma scales it: it would repeat its input
            if "gemma" in model_type and weight_name == "model.norm.weight":
                weight.add_(15)
    return model.eval().requires_grad_(False)


def write(
    path: Path,
    name: str = "llama",
    kind: str = "F32",
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    factors: dict[str, list[float]] | None = None,
    drop: tuple[str, ...] = (),
    tokenizer: bool = True,
    parts: int = 1,
    but: dict[str, str] | None = None,
    **more: Any,
) -> Written:
    """metadata: further keys, {arch} stands for the architecture; a None takes a key away.

    kind: of the layers' matrices; but: of those whose name has that in it. more: goes into the source's
    config.
    """
    model = source_model(name, seed, **more)
    architecture = IN_GGUF.get(name, name)
    written = Written(path, model)
    tensors = _tensors(architecture, model)
    for tensor, values in list(tensors.items()):
        if kind != "F32" and tensor.startswith("blk.") and values.ndim >= 2 and "gate_inp" not in tensor:
            own = next((other for part, other in (but or {}).items() if part in tensor), kind)
            written.tensors[tensor] = _quantised(values, own, seed)
        else:
            written.tensors[tensor] = (values, None)
    if kind != "F32":
        _requantise_source(architecture, model, written.tensors)
    for tensor, values in (factors or {}).items():
        written.tensors[tensor] = (np.array(values, np.float32), None)
    for tensor in drop:
        del written.tensors[tensor]

    small = {"split_max_tensors": -(-len(written.tensors) // parts)} if parts > 1 else {}
    writer = GGUFWriter(path, architecture, **small)
    said = {key.format(arch=architecture): value for key, value in (metadata or {}).items()}
    for key, value in (_keys(architecture, model) | (_tokenizer() if tokenizer else {}) | said).items():
        _add(writer, key, value)
    for tensor, (values, raw) in written.tensors.items():
        writer.add_tensor(tensor, values, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if parts > 1:
        written.path = path.with_name(f"{path.stem}-00001-of-{parts:05}.gguf")
    return written


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _keys(architecture: str, model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    said: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
    }
    if architecture == "gpt2":
        said |= {"feed_forward_length": 4 * config.hidden_size}
        said |= {"attention.layer_norm_epsilon": config.layer_norm_epsilon}
        return {f"gpt2.{key}": value for key, value in said.items()}
    rope = config.rope_parameters
    full = rope["full_attention"] if architecture == "gemma3" else rope
    rotated = int(config.head_dim * full.get("partial_rotary_factor", 1.0))
    said |= {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.freq_base": float(full["rope_theta"]),
        "rope.dimension_count": rotated,
        "vocab_size": config.vocab_size,
    }
    if architecture == "starcoder2":
        said["attention.layer_norm_epsilon"] = config.norm_epsilon
    else:
        said["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    if experts:
        said |= {"expert_count": experts, "expert_used_count": config.num_experts_per_tok}
    if architecture in ("qwen2moe", "qwen3moe"):
        said["expert_feed_forward_length"] = config.moe_intermediate_size
    if architecture == "qwen2moe":
        said["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    if architecture == "minimax-m2":
        said |= {"expert_feed_forward_length": config.intermediate_size, "expert_gating_func": 2}
    if getattr(config, "sliding_window", None) and config.model_type != "qwen2_moe":
        said["attention.sliding_window"] = config.sliding_window
    if architecture == "phi3":
        said["rope.scaling.original_context_length"] = config.original_max_position_embeddings
        said.setdefault("attention.sliding_window", 0)
    if architecture == "granite":
        said |= {
            "attention.scale": config.attention_multiplier,
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling,
        }
    return {f"{architecture}.{key}": value for key, value in said.items()}


def _tokenizer() -> dict[str, Any]:
    """Bytes, and some control tokens, as GPT-2 spells them."""
    spelt = bytes_to_unicode()
    tokens = [spelt[byte] for byte in range(256)] + CONTROL + ["hi"]
    unused = [f"<unused{number}>" for number in range(len(tokens), VOCAB)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens + unused,
        "tokenizer.ggml.token_type": [TokenType.NORMAL] * 256
        + [TokenType.CONTROL] * len(CONTROL)
        + [TokenType.NORMAL]
        + [TokenType.UNUSED] * len(unused),
        "tokenizer.ggml.merges": ["h i"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
    }


def _tensors(architecture: str, model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The model's weights under GGUF's names, as the converter changes them."""
    config = model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found = {}
    tied = getattr(config, "tie_word_embeddings", True)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        values = tensor.float().numpy()
        if "experts.gate_up_proj" in name:
            layer = name.split(".")[2]
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                found[f"blk.{layer}.ffn_{part}_exps.weight"] = np.ascontiguousarray(half)
            continue
        if "experts.down_proj" in name:
            found[f"blk.{name.split('.')[2]}.ffn_down_exps.weight"] = values
            continue
        if "e_score_correction_bias" in name:
            found[f"blk.{name.split('.')[2]}.exp_probs_b.bias"] = values
            continue
        stem, _, suffix = name.rpartition(".")
        theirs = names.get_name(stem)
        assert theirs is not None, f"the gguf package does not know {stem} of {architecture}"
        if architecture in PERMUTED and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            shape = (heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            values = values + 1
        if architecture == "gpt2" and suffix == "weight" and stem.endswith(("c_attn", "c_proj", "c_fc")):
            values = values.T
        if stem.endswith("shared_expert_gate"):
            values = values[0]
        found[f"{theirs}.{suffix}"] = np.ascontiguousarray(values)
    return found


def _quantised(values: np.ndarray, kind: str, seed: int) -> tuple[np.ndarray, Any]:
    number = gguf.GGMLQuantizationType[kind]
    if kind == "F16":
        return values.astype(np.float16), None
    if kind not in RANDOM_BLOCKS:
        return gguf.quantize(values, number), number
    weights, block_bytes = gguf.GGML_QUANT_SIZES[number]
    rows = values.shape[:-1]
    blocks = np.random.default_rng(seed).integers(
        0, 256, (*rows, values.shape[-1] // weights, block_bytes), dtype=np.uint8
    )
    for place in RANDOM_BLOCKS[kind]:
        blocks[..., place : place + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    packed = blocks.reshape(*rows, -1)
    scale = np.float16(1e-3 * 0.06 / gguf.dequantize(packed, number).std())
    for place in RANDOM_BLOCKS[kind]:
        blocks[..., place : place + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(*rows, -1), number


def _requantise_source(architecture: str, model: PreTrainedModel, tensors: dict[str, Any]) -> None:
    """The source gets the weights that the file's types hold: what is compared is the reading alone."""
    plain = {
        name: values.astype(np.float32) if raw is None else gguf.dequantize(values, raw)
        for name, (values, raw) in tensors.items()
    }
    config = model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        layer = [*name.split("."), "", ""][2]
        if "experts.gate_up_proj" in name:
            halves = [plain[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up")]
            values = np.concatenate(halves, 1)
        elif "experts.down_proj" in name:
            values = plain[f"blk.{layer}.ffn_down_exps.weight"]
        elif ".layers." not in name and ".h." not in name:
            continue
        else:
            stem, _, suffix = name.rpartition(".")
            values = plain.get(f"{names.get_name(stem)}.{suffix}", np.zeros(0))
            if values.ndim < 2:
                continue
            if architecture in PERMUTED and stem.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
                shape = (heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
                values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
            if architecture == "gpt2":
                values = values.T
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)))
