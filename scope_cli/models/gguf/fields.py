"""What a GGUF file says below its architecture's name, key by key, and what nobody asked for."""

from typing import Any

from scope_cli.errors import ModelError
from scope_cli.models.gguf.header import BROKEN, Header

LARGEST = 1 << 31  # of any count: a context, a width, a number of heads
HARMLESS = {  # keys that change nothing of what is computed
    "vocab_size",  # the table's rows count
    "tensor_data_layout",  # the order in which old converters met the weights
    "rope.scaling.finetuned",
    "feed_forward_length_shexp",
}
NEUTRAL: dict[str, tuple[Any, ...]] = {  # keys that change nothing with these values
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "expert_shared_feed_forward_length": (0,),
    "nextn_predict_layers": (0,),
    "leading_dense_block_count": (0,),
    "pooling_type": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "router_logit_softcapping": (0.0,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_scale": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.alpha": (0.0, 1.0),
}
ORIGINAL = "the model's safetensors files say all of it: use those"


class Fields:
    """The keys of one file below `{architecture}.`; each one that is asked for counts as used."""

    def __init__(self, header: Header) -> None:
        self.header = header
        start = f"{header.architecture}."
        self.values = {
            key.removeprefix(start): value for key, value in header.metadata.items() if key.startswith(start)
        }
        self.used: set[str] = set()
        self.tensors_used: set[str] = set()

    def has(self, key: str) -> bool:
        return key in self.values

    def take(self, key: str) -> Any:
        """The value, None where the file does not say."""
        self.used.add(key)
        return self.values.get(key)

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 on. A list, one for each layer, has to be the same for all."""
        value = self.take(key)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < LARGEST:
            raise self.cannot(key, value)
        return value

    def number(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        """A number above `least`."""
        value = self.take(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > least:
            raise self.cannot(key, value)
        return float(value)

    def check_all_used(self) -> None:
        """Raises ModelError for the first key that says something nobody understood."""
        for key, value in self.values.items():
            if key in self.used or key in HARMLESS or value in NEUTRAL.get(key, ()):
                continue
            raise self.refuse(f"says {key} = {_short(value)}, which scope does not know how to apply")

    def cannot(self, key: str, value: Any) -> ModelError:
        full = f"{self.header.architecture}.{key}"
        if value is None:
            return ModelError(f"{self.header.name} does not say its {full}", BROKEN)
        return ModelError(f"{self.header.name} says {full} = {_short(value)}, which cannot be", BROKEN)

    def refuse(self, why: str, hint: str = ORIGINAL) -> ModelError:
        return ModelError(f"{self.header.name} ({self.header.architecture}) {why}", hint)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
