"""A GGUF header in, the same model as transformers describes it out: config.json and the list of its weights.

One function for each architecture. What llama.cpp's converter did to a weight is written beside it (`Form`);
its inverse is in weights.py. Nothing is guessed: a tensor that the model needs and the file lacks, and a
tensor or key that nothing here asked for, are refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from scope_cli.errors import ModelError
from scope_cli.models.gguf.fields import Fields
from scope_cli.models.gguf.header import BROKEN, Header
from scope_cli.models.gguf.rope import rope_parameters


class Form(Enum):
    """How a weight lies in the file."""

    PLAIN = "as it is"
    HALVES = "the two rotary halves of each head's rows interleaved"
    OFFSET = "one more than it is"
    TRANSPOSED = "rows and columns exchanged"
    ROW = "a row without its first axis"
    JOINED = "in several tensors, whose rows follow each other"


@dataclass(frozen=True)
class Weight:
    """A weight of the model, and the tensors of the file that it is made of."""

    name: str  # in transformers
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    form: Form = Form.PLAIN
    heads: int = 0  # of HALVES


@dataclass(frozen=True)
class Described:
    """A model as transformers knows it."""

    config: dict[str, Any]  # config.json
    weights: tuple[Weight, ...]


def describe(header: Header) -> Described:
    """Raises ModelError for what cannot be run, lacks, or says what nobody understands."""
    kind = header.metadata.get("general.type", "model")
    if kind != "model" or header.architecture == "clip":
        what = "an adapter" if kind == "adapter" else "a vision tower"
        raise ModelError(f"{header.name} is {what}, not a language model", "name the model's own file")
    make = ARCHITECTURES.get(header.architecture)
    if make is None:
        why = REFUSED.get(header.architecture, "scope does not read this architecture from GGUF")
        raise ModelError(
            f"{header.name} holds a {header.architecture} model, which cannot be run: {why}",
            f"what works as GGUF: {', '.join(sorted(ARCHITECTURES))}",
        )
    model = _Model(Fields(header))
    config = make(model)
    model.check()
    return Described(config, tuple(model.weights))


@dataclass
class _Model:
    """What all decoders have, read once; the weights are gathered here."""

    fields: Fields
    weights: list[Weight] = field(default_factory=list)

    def __post_init__(self) -> None:
        fields, self.tensors = self.fields, self.fields.header.tensors
        self.layers = fields.count("block_count")
        if self.layers > len(self.tensors):
            raise self.lacking([f"blk.{self.layers - 1}.attn_norm.weight"])
        self.hidden = fields.count("embedding_length")
        self.context = fields.count("context_length")
        self.heads = fields.count("attention.head_count")
        self.kv_heads = fields.count("attention.head_count_kv", self.heads)
        if self.heads % self.kv_heads:
            raise fields.cannot("attention.head_count_kv", self.kv_heads)
        if self.hidden % self.heads and not fields.has("attention.key_length"):
            raise fields.cannot("attention.head_count", self.heads)
        self.head_dim = fields.count("attention.key_length", self.hidden // self.heads)
        if (values := fields.count("attention.value_length", self.head_dim)) != self.head_dim:
            raise fields.refuse(f"has keys of {self.head_dim} and values of {values} numbers")
        if "token_embd.weight" not in self.tensors:
            raise self.lacking(["token_embd.weight"])
        self.vocab = self.tensors["token_embd.weight"].shape[0]
        self.tied = "output.weight" not in self.tensors

    @property
    def inner(self) -> int:
        return self.fields.count("feed_forward_length")

    def has(self, part: str) -> bool:
        """Whether the first layer has a tensor of that name."""
        return f"blk.0.{part}" in self.tensors

    def config(self, model_type: str, class_name: str, **more: Any) -> dict[str, Any]:
        """What is the same for nearly all; an id that the file does not name is null, no class's default."""
        ids = {name: self.fields.header.metadata.get(f"tokenizer.ggml.{key}") for name, key in IDS.items()}
        return {
            "architectures": [class_name],
            "model_type": model_type,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
            "dtype": dtype_of(self.fields.header),
            **ids,
            **more,
        }

    def rms_eps(self) -> float:
        return self.fields.number("attention.layer_norm_rms_epsilon")

    def rope(self, partial: bool = False) -> dict[str, Any]:
        """rope_parameters; `partial`: the model can turn a part of each head."""
        rotated = self.fields.count("rope.dimension_count", self.head_dim)
        if rotated % 2 or rotated > self.head_dim or (rotated != self.head_dim and not partial):
            raise self.fields.refuse(f"turns {rotated} of the {self.head_dim} dimensions of a head")
        said = rope_parameters(self.fields, rotated, self.context)
        return said | {"partial_rotary_factor": rotated / self.head_dim} if partial else said

    def add(self, name: str, shape: tuple[int, ...], *sources: str, form: Form = Form.PLAIN, heads: int = 0):  # type: ignore[no-untyped-def]
        self.weights.append(Weight(name, shape, sources, form, heads))

    def linear(
        self, name: str, source: str, rows: int, columns: int, bias: bool = False, halves: int = 0
    ) -> None:
        form = Form.HALVES if halves else Form.PLAIN
        self.add(f"{name}.weight", (rows, columns), f"{source}.weight", form=form, heads=halves)
        if bias:
            self.add(f"{name}.bias", (rows,), f"{source}.bias", form=form, heads=halves)

    def norm(
        self, name: str, source: str, width: int | None = None, offset: bool = False, bias: bool = False
    ) -> None:
        form = Form.OFFSET if offset else Form.PLAIN
        self.add(f"{name}.weight", (width or self.hidden,), f"{source}.weight", form=form)
        if bias:
            self.add(f"{name}.bias", (width or self.hidden,), f"{source}.bias")

    def around(self, offset: bool = False, bias: bool = False) -> None:
        """Embedding, last norm and head."""
        self.linear("model.embed_tokens", "token_embd", self.vocab, self.hidden)
        self.norm("model.norm", "output_norm", offset=offset, bias=bias)
        if not self.tied:
            self.linear("lm_head", "output", self.vocab, self.hidden)

    def attention(
        self, n: int, bias: bool = False, out_bias: bool = False, halves: bool = False, norms: str = ""
    ) -> None:
        """norms: "head", q and k have a norm for each head; "all", one for all heads together."""
        ours, theirs = f"model.layers.{n}.self_attn", f"blk.{n}.attn"
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for part, rows, heads in (("q", queries, self.heads), ("k", keys, self.kv_heads), ("v", keys, 0)):
            halved = heads if halves else 0
            self.linear(f"{ours}.{part}_proj", f"{theirs}_{part}", rows, self.hidden, bias, halved)
        self.linear(f"{ours}.o_proj", f"{theirs}_output", self.hidden, queries, out_bias)
        if norms:
            offset = self.fields.header.architecture.startswith("gemma")
            for part, rows in (("q", queries), ("k", keys)):
                width = self.head_dim if norms == "head" else rows
                self.norm(f"{ours}.{part}_norm", f"{theirs}_{part}_norm", width, offset)

    def gated(self, n: int, inner: int, bias: bool = False, ours: str = "mlp", theirs: str = "") -> None:
        """A gated MLP: gate, up, down."""
        for part, rows, columns in (
            ("gate", inner, self.hidden),
            ("up", inner, self.hidden),
            ("down", self.hidden, inner),
        ):
            source = f"blk.{n}.ffn_{part}{theirs}"
            self.linear(f"model.layers.{n}.{ours}.{part}_proj", source, rows, columns, bias)

    def experts(self, n: int, count: int, inner: int) -> None:
        ours, theirs = f"model.layers.{n}.mlp", f"blk.{n}.ffn"
        self.linear(f"{ours}.gate", f"{theirs}_gate_inp", count, self.hidden)
        sources = [f"{theirs}_{part}_exps.weight" for part in ("gate", "up")]
        shape = (count, 2 * inner, self.hidden)
        self.add(f"{ours}.experts.gate_up_proj", shape, *sources, form=Form.JOINED)
        self.add(f"{ours}.experts.down_proj", (count, self.hidden, inner), f"{theirs}_down_exps.weight")

    def layer_norms(self, names: dict[str, str], offset: bool = False, bias: bool = False) -> None:
        for n in range(self.layers):
            for ours, theirs in names.items():
                self.norm(f"model.layers.{n}.{ours}", f"blk.{n}.{theirs}", offset=offset, bias=bias)

    def check(self) -> None:
        """Every tensor and key is used, and everything that is needed is there, in its shape."""
        lacking = [one for weight in self.weights for one in weight.sources if one not in self.tensors]
        if lacking:
            raise self.lacking(lacking)
        for weight in self.weights:
            if (made := _made_shape(weight, [self.tensors[one].shape for one in weight.sources])) is not None:
                name = weight.sources[0]
                raise self.fields.refuse(
                    f"has {name} as {list(self.tensors[name].shape)}, which makes {made} of the "
                    f"{list(weight.shape)} that its keys ask for",
                    BROKEN,
                )
        used = {one for weight in self.weights for one in weight.sources} | self.fields.tensors_used
        for name in self.tensors:
            if name not in used and not name.endswith("attn_rot_embd.weight"):  # frequencies, written down
                raise self.fields.refuse(f"has a tensor {name}, which scope does not know how to use")
        self.fields.check_all_used()

    def lacking(self, names: list[str]) -> ModelError:
        more = f" and {len(names) - 1} other tensors" if len(names) > 1 else ""
        return ModelError(f"{self.fields.header.name} is incomplete: it lacks {names[0]}{more}", BROKEN)


def _made_shape(weight: Weight, shapes: list[tuple[int, ...]]) -> list[int] | None:
    """What the tensors would make where that is not the weight's shape."""
    first = shapes[0]
    if weight.form is Form.TRANSPOSED:
        made = first[::-1]
    elif weight.form is Form.ROW:
        made = (1, *first) if len(first) == 1 else first
    elif weight.form is Form.JOINED and len({(shape[:-2], shape[-1]) for shape in shapes}) == 1:
        made = (*first[:-2], sum(shape[-2] for shape in shapes), first[-1])
    else:
        made = first
    return None if made == weight.shape else list(made)


IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id",
}


def dtype_of(header: Header) -> str:
    """The dtype that holds the layers' matrices without loss."""
    return {"F16": "float16", "BF16": "bfloat16"}.get(header.quantised, "float32")


def _llama(model: _Model) -> dict[str, Any]:
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
    model.around()
    model.layer_norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})
    for n in range(model.layers):
        model.attention(n, qkv_bias, out_bias, halves=True)
        if experts:
            model.experts(n, fields.count("expert_count"), model.inner)
        else:
            model.gated(n, model.inner, mlp_bias)
    more = {
        "intermediate_size": model.inner,
        "rms_norm_eps": model.rms_eps(),
        "rope_parameters": model.rope(),
    }
    if experts:
        more |= {"num_local_experts": experts, "num_experts_per_tok": fields.count("expert_used_count")}
        return model.config("mixtral", "MixtralForCausalLM", sliding_window=window, **more)
    if window:
        return model.config("mistral", "MistralForCausalLM", sliding_window=window, **more)
    biases = {"attention_bias": qkv_bias, "mlp_bias": mlp_bias}
    return model.config("llama", "LlamaForCausalLM", hidden_act="silu", **biases, **more)


def _qwen2(model: _Model) -> dict[str, Any]:
    model.around()
    model.layer_norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})
    for n in range(model.layers):
        model.attention(n, bias=True)
        model.gated(n, model.inner)
    return model.config(
        "qwen2",
        "Qwen2ForCausalLM",
        intermediate_size=model.inner,
        rms_norm_eps=model.rms_eps(),
        rope_parameters=model.rope(),
        use_sliding_window=False,
    )


def _qwen3(model: _Model) -> dict[str, Any]:
    model.around()
    model.layer_norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})
    for n in range(model.layers):
        model.attention(n, norms="head")
        model.gated(n, model.inner)
    return model.config(
        "qwen3",
        "Qwen3ForCausalLM",
        intermediate_size=model.inner,
        rms_norm_eps=model.rms_eps(),
        rope_parameters=model.rope(),
        use_sliding_window=False,
    )


def _qwen_moe(model: _Model) -> dict[str, Any]:
    """Qwen2-MoE, whose experts stand beside one that is always asked, and Qwen3-MoE."""
    fields, shared = model.fields, model.fields.header.architecture == "qwen2moe"
    count, inner = fields.count("expert_count"), _expert_width(model)
    model.around()
    model.layer_norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})
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


def _expert_width(model: _Model) -> int:
    return _width(model, "expert_feed_forward_length", "blk.0.ffn_up_exps.weight")


def _width(model: _Model, key: str, tensor: str) -> int:
    """A width that older files leave to the tensor's shape."""
    if not model.fields.has(key):
        if tensor not in model.tensors:
            raise model.lacking([tensor])
        return model.tensors[tensor].shape[-2]
    return model.fields.count(key)


def _minimax_m2(model: _Model) -> dict[str, Any]:
    fields = model.fields
    count, inner = fields.count("expert_count"), _expert_width(model)
    fields.take("feed_forward_length")  # the experts' width says it
    if fields.take("expert_gating_func") != 2:
        raise fields.refuse("does not choose its experts by a sigmoid (expert_gating_func)")
    model.around()
    model.layer_norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})
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


def _gemma(model: _Model) -> dict[str, Any]:
    model.around(offset=True)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    model.layer_norms(names, offset=True)
    for n in range(model.layers):
        model.attention(n)
        model.gated(n, model.inner)
    return model.config(
        "gemma",
        "GemmaForCausalLM",
        intermediate_size=model.inner,
        rms_norm_eps=model.rms_eps(),
        rope_parameters=model.rope(),
    )


GEMMA3_27B_LAYERS = 62  # llama.cpp knows by it that the 27B scales attention by hidden / heads


def _gemma3(model: _Model) -> dict[str, Any]:
    fields = model.fields
    model.around(offset=True)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}
    names |= {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    model.layer_norms(names, offset=True)
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
    return model.config(
        "gemma3_text",
        "Gemma3ForCausalLM",
        intermediate_size=model.inner,
        rms_norm_eps=model.rms_eps(),
        query_pre_attn_scalar=scalar,
        sliding_window=window or model.context,
        layer_types=["sliding_attention" if window and one else "full_attention" for one in slides],
        final_logit_softcapping=fields.take("final_logit_softcapping") or None,
        rope_parameters={"sliding_attention": near, "full_attention": model.rope()},
    )


def _phi3(model: _Model) -> dict[str, Any]:
    model.around()
    model.layer_norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})
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
    config = model.config(
        "phi3",
        "Phi3ForCausalLM",
        intermediate_size=model.inner,
        rms_norm_eps=model.rms_eps(),
        rope_parameters=rope,
        sliding_window=model.fields.take("attention.sliding_window") or None,
    )
    original = model.fields.count("rope.scaling.original_context_length", model.context)
    return config | {"original_max_position_embeddings": original}


def _starcoder2(model: _Model) -> dict[str, Any]:
    model.around(bias=True)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    model.layer_norms(names, bias=True)
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


def _gpt2(model: _Model) -> dict[str, Any]:
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


def _olmo2(model: _Model) -> dict[str, Any]:
    model.around()
    names = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    model.layer_norms(names)
    for n in range(model.layers):
        model.attention(n, norms="all")
        model.gated(n, model.inner)
    return model.config(
        "olmo2",
        "Olmo2ForCausalLM",
        intermediate_size=model.inner,
        rms_norm_eps=model.rms_eps(),
        rope_parameters=model.rope(),
    )


def _granite(model: _Model) -> dict[str, Any]:
    fields = model.fields
    model.around()
    model.layer_norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})
    for n in range(model.layers):
        model.attention(n, halves=True)
        model.gated(n, model.inner)
    return model.config(
        "granite",
        "GraniteForCausalLM",
        intermediate_size=model.inner,
        rms_norm_eps=model.rms_eps(),
        rope_parameters=model.rope(),
        attention_multiplier=fields.number("attention.scale", model.head_dim**-0.5),
        embedding_multiplier=fields.number("embedding_scale", 1.0),
        residual_multiplier=fields.number("residual_scale", 1.0),
        logits_scaling=fields.number("logit_scale", 1.0),
    )


def _smollm3(model: _Model) -> dict[str, Any]:
    model.around()
    model.layer_norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})
    for n in range(model.layers):
        model.attention(n, halves=True)
        model.gated(n, model.inner)
    return model.config(
        "smollm3",
        "SmolLM3ForCausalLM",
        intermediate_size=model.inner,
        rms_norm_eps=model.rms_eps(),
        rope_parameters=model.rope(),
        no_rope_layers=[int((n + 1) % 4 != 0) for n in range(model.layers)],  # llama.cpp has it built in
        use_sliding_window=False,
    )


Make = Callable[[_Model], dict[str, Any]]
ARCHITECTURES: dict[str, Make] = {
    "gemma": _gemma,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "granite": _granite,
    "llama": _llama,
    "minimax-m2": _minimax_m2,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen2moe": _qwen_moe,
    "qwen3": _qwen3,
    "qwen3moe": _qwen_moe,
    "smollm3": _smollm3,
    "starcoder2": _starcoder2,
}
_OWN = "it computes its attention by itself"
_HYBRID = "some of its layers are no attention"
_ENCODER = "an encoder reads the prompt, there is no prompt in the decoder's cache"
REFUSED = {
    "bert": "it is an encoder, it writes nothing",
    "bloom": _OWN,
    "deepseek2": "keys and values are compressed together (MLA)",
    "falcon": _OWN,
    "falcon-h1": _HYBRID,
    "gemma2": "attention logits are capped",
    "gpt-oss": "attention has learned sinks",
    "jamba": _HYBRID,
    "lfm2": _HYBRID,
    "mamba": _HYBRID,
    "mamba2": _HYBRID,
    "mpt": _OWN,
    "nemotron_h": _HYBRID,
    "qwen3next": _HYBRID,
    "qwen35": _HYBRID,
    "qwen35moe": _HYBRID,
    "rwkv6": _HYBRID,
    "rwkv7": _HYBRID,
    "stablelm": _OWN,
    "t5": _ENCODER,
    "t5encoder": _ENCODER,
}
