"""A model's generation_config.json in, what its publisher wants it to be sampled with out."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from scope_cli.errors import ModelError
from scope_cli.settings.schema import SamplingSettings

PLAIN = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
}  # transformers' own
KEYS = (*PLAIN, "repetition_penalty")


def sampling_of(generation: Mapping[str, Any], name: str = "the model") -> dict[str, Any]:
    """By key of a profile's `sampling`; {} where the file says nothing about it.

    A file that has one key of sampling, or `do_sample: true`, says all of them: those that it leaves away are
    transformers' own. `do_sample: false` is the most probable token each time.
    """
    said = {key: generation[key] for key in KEYS if generation.get(key) is not None}
    samples = generation.get("do_sample")
    if samples is False:
        said = {key: value for key, value in said.items() if key not in PLAIN} | {"temperature": 0.0}
    elif samples or said.keys() & PLAIN:
        said = PLAIN | said
    try:
        checked = SamplingSettings(**said)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"][:1]))
        raise ModelError(
            f"generation_config.json of {name} has {key} {generation.get(key)!r}, which cannot be used",
            "correct the file, or fetch the model again",
        ) from error
    return {key: getattr(checked, key) for key in said}


def in_words(taken: Mapping[str, Any]) -> str:
    """'temperature 0.6, top-k 20'; without what changes nothing."""
    idle = {"top_p": 1.0, "min_p": None, "top_k": None, "repetition_penalty": 1.0}
    shown = {key: value for key, value in taken.items() if key not in idle or value != idle[key]}
    return ", ".join(f"{key.replace('_', '-')} {value:g}" for key, value in shown.items())
