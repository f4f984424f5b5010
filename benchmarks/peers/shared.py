"""What the peers have in common: the size of a token in a cache."""

import json
from pathlib import Path


def numbers_of_a_token(folder: str | Path) -> int:
    """Keys and values that a model holds of one token, all layers; `folder` has its config.json."""
    config = json.loads((Path(folder) / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * head_dim)
