"""One function for each architecture: a decoder of a GGUF file in, config.json out; its weights are noted."""

from typing import Any

from scope_cli.models.gguf.decoder import IDS, Decoder, Form

NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # of most models


def _frame(model: Decoder, norms: dict[str, str] = NORMS, offset: bool = False, bias: bool = False) -> None:
    """Embedding, head and all norms of layers."""
    model.around(offset, bias)
    model.layer_norms(norms, offset, bias)


def _config(
    model: Decoder, model_type: str, class_name: str, rope: Any = None, **more: Any
) -> dict[str, Any]:
    """With a width of MLPs, RMS norms and rotary positions."""
    common = {"intermediate_size": model.inner, "rms_norm_eps": model.rms_eps()}
    return model.config(model_type, class_name, **common, rope_parameters=rope or model.rope(), **more)


def llama(model: Decoder) -> dict[str, Any]:
    """Llama and what llama.cpp calls so: Mistral, Mixtral, SmolLM2, ..."""
    fields = model.fields
    experts = fields.take("expert_count") or 0
    window = fields.take("attention.sliding_window") or None
    out_bias = model.has("attn_output.bias")
    qkv_bias = model.has("attn_q.bias")
    mlp_bias = model.has("ffn_gate.bias")
    if out_bias != qkv_bias:
        raise fields.refuse("has biases in a part of its attention")
    if (experts or window) and (qkv_bias or mlp_bias):
        raise fields.refuse("has biases where a Mistral has none")
    _frame(model)
    for n in range(model.layers):
        model.attention(n, qkv_bias, out_bias, halves=True)
        if experts:
            model.experts(n, fields.count("expert_count"), model.inner)
        else:
            model.gated(n, model.inner, mlp_bias)
    if experts:
        more = {"num_local_experts": experts, "num_experts_per_tok": fields.count("expert_used_count")}
        return _config(model, "mixtral", "MixtralForCausalLM", sliding_window=window, **more)
    if window:
        return _config(model, "mistral", "MistralForCausalLM", sliding_window=window)
    biases = {"attention_bias": qkv_bias, "mlp_bias": mlp_bias}
    return _config(model, "llama", "LlamaForCausalLM", hidden_act="silu", **biases)


def _llama_like(model: Decoder, **attention: Any) -> None:
    """Norms before attention and before a gated MLP, whose layers differ in their attention alone."""
    _frame(model)
    for n in range(model.layers):
        model.attention(n, **attention)
        model.gated(n, model.inner)


def qwen2(model: Decoder) -> dict[str, Any]:
    _llama_like(model, bias=True)
    return _config(model, "qwen2", "Qwen2ForCausalLM", use_sliding_window=False)


def qwen3(model: Decoder) -> dict[str, Any]:
    _llama_like(model, norms="head")
    return _config(model, "qwen3", "Qwen3ForCausalLM", use_sliding_window=False)


def qwen_moe(model: Decoder) -> dict[str, Any]:
    """Qwen2-MoE, whose experts stand beside one that is always asked, and Qwen3-MoE."""
    fields, shared = model.fields, model.fields.header.architecture == "qwen2moe"
    count, inner = fields.count("expert_count"), _expert_width(model)
    _frame(model)
    for n in range(model.layers):
        model.attention(n, bias=shared, norms="" if shared else "head")
        model.experts(n, count, inner)
        if shared:
            width = _width(model, "expert_shared_feed_forward_length", "blk.0.ffn_up_shexp.weight")
            model.gated(n, width, ours="mlp.shared_expert", theirs="_shexp")
            source = f"blk.{n}.ffn_gate_inp_shexp.weight"
            model.add(
                f"model.layers.{n}.mlp.shared_expert_gate.weight", (1, model.hidden), source, form=Form.ROW
            )
    more = {
        "intermediate_size": fields.count("feed_forward_length", inner),
        "moe_intermediate_size": inner,
        "num_experts": count,
        "num_experts_per_tok": fields.count("expert_used_count"),
        "norm_topk_prob": not shared,  # as llama.cpp computes the two
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rms_norm_eps": model.rms_eps(),
        "rope_parameters": model.rope(),
        "use_sliding_window": False,
    }
    if shared:
        return model.config("qwen2_moe", "Qwen2MoeForCausalLM", shared_expert_intermediate_size=width, **more)
    return model.config("qwen3_moe", "Qwen3MoeForCausalLM", **more)


def _expert_width(model: Decoder) -> int:
    return _width(model, "expert_feed_forward_length", "blk.0.ffn_up_exps.weight")


def _width(model: Decoder, key: str, tensor: str) -> int:
    """A width that older files leave to the tensor's shape."""
    if not model.fields.has(key):
        if tensor not in model.tensors:
            raise model.lacking([tensor])
        return model.tensors[tensor].shape[-2]
    return model.fields.count(key)


def minimax_m2(model: Decoder) -> dict[str, Any]:
    fields = model.fields
    count, inner = fields.count("expert_count"), _expert_width(model)
    fields.take("feed_forward_length")  # the experts' width says it
    if fields.take("expert_gating_func") != 2:
        raise fields.refuse("does not choose its experts by a sigmoid (expert_gating_func)")
    _frame(model)
    for n in range(model.layers):
        model.attention(n, norms="all")
        model.experts(n, count, inner)
        bias = f"model.layers.{n}.mlp.e_score_correction_bias"
        model.add(bias, (count,), f"blk.{n}.exp_probs_b.bias")
    return model.config(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        intermediate_size=inner,
        num_local_experts=count,
        num_experts_per_tok=fields.count("expert_used_count"),
        rms_norm_eps=model.rms_eps(),
        rope_parameters=model.rope(partial=True),
    )


def gemma(model: Decoder) -> dict[str, Any]:
    _frame(model, offset=True)
    for n in range(model.layers):
        model.attention(n)
        model.gated(n, model.inner)
    return _config(model, "gemma", "GemmaForCausalLM")


GEMMA3_27B_LAYERS = 62  # llama.cpp knows by it that the 27B scales attention by hidden / heads


def gemma3(model: Decoder) -> dict[str, Any]:
    fields = model.fields
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}
    names |= {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    _frame(model, names, offset=True)
    for n in range(model.layers):
        model.attention(n, norms="head")
        model.gated(n, model.inner)
    window = fields.take("attention.sliding_window") or 0
    pattern = fields.take("attention.sliding_window_pattern") or 6
    if isinstance(pattern, list):
        slides = [bool(one) for one in pattern]
    elif type(pattern) is int and pattern > 0:
        slides = [bool((n + 1) % pattern) for n in range(model.layers)]
    else:
        raise fields.cannot("attention.sliding_window_pattern", pattern)
    if len(slides) != model.layers:
        raise fields.cannot("attention.sliding_window_pattern", pattern)
    near = {"rope_type": "default", "rope_theta": fields.number("rope.freq_base_swa", 10_000.0)}
    scalar = model.hidden // model.heads if model.layers == GEMMA3_27B_LAYERS else model.head_dim
    return _config(
        model,
        "gemma3_text",
        "Gemma3ForCausalLM",
        query_pre_attn_scalar=scalar,
        sliding_window=window or model.context,
        layer_types=["sliding_attention" if window and one else "full_attention" for one in slides],
        final_logit_softcapping=fields.take("final_logit_softcapping") or None,
        rope={"sliding_attention": near, "full_attention": model.rope()},
    )


def phi3(model: Decoder) -> dict[str, Any]:
    _frame(model)
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    for n in range(model.layers):
        ours, theirs = f"model.layers.{n}", f"blk.{n}"
        if model.has("attn_qkv.weight"):
            model.linear(f"{ours}.self_attn.qkv_proj", f"{theirs}.attn_qkv", queries + 2 * keys, model.hidden)
        else:
            sources = [f"{theirs}.attn_{part}.weight" for part in "qkv"]
            shape = (queries + 2 * keys, model.hidden)
            model.add(f"{ours}.self_attn.qkv_proj.weight", shape, *sources, form=Form.JOINED)
        model.linear(f"{ours}.self_attn.o_proj", f"{theirs}.attn_output", model.hidden, queries)
        model.linear(f"{ours}.mlp.gate_up_proj", f"{theirs}.ffn_up", 2 * model.inner, model.hidden)
        model.linear(f"{ours}.mlp.down_proj", f"{theirs}.ffn_down", model.hidden, model.inner)
    rope = model.rope(partial=True)
    if rope["rope_type"] not in ("default", "longrope"):  # transformers knows no other for Phi-3
        raise model.fields.refuse(f"scales its positions by {rope['rope_type']!r}")
    config = _config(
        model,
        "phi3",
        "Phi3ForCausalLM",
        rope=rope,
        sliding_window=model.fields.take("attention.sliding_window") or None,
    )
    original = model.fields.count("rope.scaling.original_context_length", model.context)
    return config | {"original_max_position_embeddings": original}


def starcoder2(model: Decoder) -> dict[str, Any]:
    _frame(model, bias=True)
    for n in range(model.layers):
        model.attention(n, bias=True, out_bias=True)
        ours, theirs = f"model.layers.{n}.mlp", f"blk.{n}.ffn"
        model.linear(f"{ours}.c_fc", f"{theirs}_up", model.inner, model.hidden, bias=True)
        model.linear(f"{ours}.c_proj", f"{theirs}_down", model.hidden, model.inner, bias=True)
    return model.config(
        "starcoder2",
        "Starcoder2ForCausalLM",
        intermediate_size=model.inner,
        norm_epsilon=model.fields.number("attention.layer_norm_epsilon"),
        rope_parameters=model.rope(),
        sliding_window=model.fields.take("attention.sliding_window") or None,
    )


def gpt2(model: Decoder) -> dict[str, Any]:
    hidden, inner = model.hidden, model.inner

    def linear(name: str, source: str, rows: int, columns: int) -> None:
        model.add(f"{name}.weight", (columns, rows), f"{source}.weight", form=Form.TRANSPOSED)
        model.add(f"{name}.bias", (rows,), f"{source}.bias")

    model.linear("transformer.wte", "token_embd", model.vocab, hidden)
    model.linear("transformer.wpe", "position_embd", model.context, hidden)
    model.norm("transformer.ln_f", "output_norm", bias=True)
    if not model.tied:
        model.linear("lm_head", "output", model.vocab, hidden)
    for n in range(model.layers):
        ours, theirs = f"transformer.h.{n}", f"blk.{n}"
        model.norm(f"{ours}.ln_1", f"{theirs}.attn_norm", bias=True)
        model.norm(f"{ours}.ln_2", f"{theirs}.ffn_norm", bias=True)
        linear(f"{ours}.attn.c_attn", f"{theirs}.attn_qkv", 3 * hidden, hidden)
        linear(f"{ours}.attn.c_proj", f"{theirs}.attn_output", hidden, hidden)
        linear(f"{ours}.mlp.c_fc", f"{theirs}.ffn_up", inner, hidden)
        linear(f"{ours}.mlp.c_proj", f"{theirs}.ffn_down", hidden, inner)
    common = model.config("gpt2", "GPT2LMHeadModel")
    kept = ("architectures", "model_type", "vocab_size", "tie_word_embeddings", "dtype", *IDS)
    return {key: common[key] for key in kept} | {
        "n_positions": model.context,
        "n_embd": hidden,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": inner,
        "layer_norm_epsilon": model.fields.number("attention.layer_norm_epsilon"),
    }


def olmo2(model: Decoder) -> dict[str, Any]:
    names = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    _frame(model, names)
    for n in range(model.layers):
        model.attention(n, norms="all")
        model.gated(n, model.inner)
    return _config(model, "olmo2", "Olmo2ForCausalLM")


def granite(model: Decoder) -> dict[str, Any]:
    fields = model.fields
    _llama_like(model, halves=True)
    return _config(
        model,
        "granite",
        "GraniteForCausalLM",
        attention_multiplier=fields.number("attention.scale", model.head_dim**-0.5),
        embedding_multiplier=fields.number("embedding_scale", 1.0),
        residual_multiplier=fields.number("residual_scale", 1.0),
        logits_scaling=fields.number("logit_scale", 1.0),
    )


def smollm3(model: Decoder) -> dict[str, Any]:
    _llama_like(model, halves=True)
    return _config(
        model,
        "smollm3",
        "SmolLM3ForCausalLM",
        no_rope_layers=[int((n + 1) % 4 != 0) for n in range(model.layers)],  # llama.cpp has it built in
        use_sliding_window=False,
    )
