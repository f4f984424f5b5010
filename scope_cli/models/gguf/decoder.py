"""What all decoders have in a GGUF file, read once: where each weight lies, and how.

Nothing is guessed: a tensor that the model needs and the file lacks, and a tensor or key that nobody asked
for, are refused by name.
"""

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


@dataclass
class Decoder:
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
