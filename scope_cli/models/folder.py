"""A model's folder in, its config.json and its weights' headers out, or what is wrong with it: no torch.

What people have are folders that were copied, cut off, fetched without git-lfs or made by other tools. All of
it is seen here, from a few kilobytes, before anything of size is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from scope_cli.console.safe import as_json
from scope_cli.errors import ModelError

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
MOST_JSON_BYTES = 200_000_000  # a tokenizer of 256,000 tokens has 33 MB
MOST_HEADER_BYTES = 100_000_000  # as safetensors itself
SIZES = (
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "hidden_size",
    "vocab_size",
    "head_dim",
    "max_position_embeddings",
)
BITS_OF = {  # of safetensors' types
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
AGAIN = "fetch or copy the model again"
LFS = "it was fetched without git-lfs: run `git lfs pull` in the folder, or fetch the model again"

Tensors = dict[str, tuple[str, tuple[int, ...]]]  # name of a tensor -> its type, its shape


def check_folder(folder: Path, name: str) -> dict[str, Any]:
    """The config.json of a folder whose files are whole. Raises ModelError."""
    refuse_adapters(folder, name)
    config = read_config(folder / "config.json")
    if (folder / "config.json").read_bytes().startswith(b"\xef\xbb\xbf"):
        raise ModelError(
            f"{folder / 'config.json'} begins with a byte order mark", "save it as UTF-8 without one"
        )
    if "quantization" in config and "quantization_config" not in config:
        raise ModelError(
            f"the weights of {name} are quantised by MLX, which runs on Apple's chips alone",
            "take the original model, or a GGUF file of it",
        )
    for file in weight_files(folder):
        for tensor, (kind, _) in header_of(file).items():
            if tensor.endswith(".weight") and kind[0] in "IUC" and "quantization_config" not in config:
                raise ModelError(f"{file} is broken: {tensor} has the type {kind}", AGAIN)
    return config


def refuse_adapters(folder: Path, name: str) -> None:
    """An adapter changes what a model writes; without it the text would be another model's."""
    there = [file for file in ADAPTERS if (folder / file).is_file()]
    if not there:
        return
    if not (folder / "config.json").is_file():
        base = ""
        if there[0].endswith(".json"):
            said = read_json(folder / there[0])
            base = f" for {said.get('base_model_name_or_path')}" if isinstance(said, dict) else ""
        raise ModelError(
            f"{name} is an adapter (LoRA){base}, not a model",
            "merge it into its base with peft's merge_and_unload, and save that with save_pretrained",
        )
    raise ModelError(
        f"{name} has an adapter beside the weights ({', '.join(there)}), which scope does not apply",
        "merge it with peft's merge_and_unload; or move these files elsewhere to run the base model alone",
    )


def read_config(file: Path) -> dict[str, Any]:
    """A config.json, with counts where counts belong."""
    config = read_json(file)
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object", "give a model's config.json")
    for part in (config, config.get("text_config")):
        for key in SIZES:
            value = part.get(key) if isinstance(part, dict) else None
            if value is not None and not _is_sizes(value):
                raise ModelError(f"{file} has {key}: {as_json(value)[:80]}, which is not a size", AGAIN)
    return config


def _is_sizes(value: Any) -> bool:
    """A positive whole number, or one for each layer."""
    if isinstance(value, list):
        return all(map(_is_sizes, value))
    return type(value) is int and value > 0


def read_json(file: Path) -> Any:
    """What a JSON file of a model holds; a byte order mark is none of it."""
    try:
        if file.stat().st_size > MOST_JSON_BYTES:
            raise ModelError(f"{file} is too large to be what its name says", AGAIN)
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read {file}: {error.strerror}", "give a model's folder or config.json"
        ) from error
    if is_pointer(content):
        raise ModelError(f"{file} is a pointer to the file, not the file", LFS)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        what = str(error) or "nested too deep"
        raise ModelError(
            f"{file} is not JSON: {what if content.strip() else 'it is empty'}", AGAIN
        ) from error


def is_pointer(content: bytes) -> bool:
    """What git leaves in place of a large file."""
    return content.startswith(b"version https://git-lfs")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder's weights, every one of which is there. Raises ModelError."""
    index = folder / INDEX
    names = {"model.safetensors"}
    if index.is_file():
        said = read_json(index)
        places = said.get("weight_map") if isinstance(said, dict) else None
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{index} does not say where the weights are (weight_map)", AGAIN)
        if odd := [one for one in places.values() if not isinstance(one, str) or Path(one).name != one]:
            raise ModelError(f"{index} names {odd[0]!r}, which is not a file of this folder", AGAIN)
        names = set(places.values())
        if pickles := sorted(one for one in names if one.endswith(PICKLES)):
            raise ModelError(
                f"{index} names {pickles[0]}: weights come from safetensors or GGUF, never from pickle",
                "a pickle can run any code; save the model with save_pretrained to get safetensors",
            )
    if lacking := sorted(one for one in names if not (folder / one).is_file()):
        which = lacking[0] if len(lacking) == 1 else f"{lacking[0]} and {len(lacking) - 1} more"
        of_how_many = f" of its {len(names)} files of weights" if len(names) > 1 else ", its weights"
        raise ModelError(f"{folder} lacks {which}{of_how_many}", AGAIN)
    return [folder / one for one in sorted(names)]


def header_of(file: Path) -> Tensors:
    """Type and shape of each tensor in a safetensors file that is whole. Raises ModelError.

    It starts with the length of a JSON header, 8 bytes, little-endian; the data of the tensors follows, one
    after the other, without gaps.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            start = content.read(64)
            length = int.from_bytes(start[:8], "little")
            if is_pointer(start):
                raise ModelError(f"{file} is a pointer to the weights, not the weights", LFS)
            if size < 8 or not start.strip(b"\0"):
                raise ModelError(f"{file} is {'empty' if not size else 'not a safetensors file'}", AGAIN)
            if length > MOST_HEADER_BYTES:
                raise ModelError(
                    f"{file} is not a safetensors file: its header would have {length:,} bytes", AGAIN
                )
            if 8 + length > size:
                raise ModelError(f"{file} is cut off: it ends at {size:,} bytes, within its header", AGAIN)
            content.seek(8)
            header = json.loads(content.read(length))
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}", AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not a safetensors file: its header is not JSON", AGAIN) from error
    try:
        tensors, end = _tensors(header)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the header of {file} is broken: {error}", AGAIN) from error
    if 8 + length + end != size:
        what = "cut off" if 8 + length + end > size else "longer than its header says"
        raise ModelError(f"{file} is {what}: it has {size:,} bytes of {8 + length + end:,}", AGAIN)
    return tensors


def _tensors(header: Any) -> tuple[Tensors, int]:
    """What a header lists, and where the last tensor ends."""
    tensors, places = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(one) is int and one >= 0 for one in (*shape, start, end)):
            raise ValueError(f"{name} has the shape {shape}")
        if (end - start) * 8 != prod(shape) * BITS_OF[kind]:
            raise ValueError(f"{name} has {end - start:,} bytes for the shape {shape}")
        tensors[name] = kind, shape
        places.append((start, end))
    last = 0
    for start, end in sorted(places):
        if start != last:
            raise ValueError("its tensors do not follow each other")
        last = end
    return tensors, last


def stored_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the weights of a folder, nothing where a file of them is not there."""
    try:
        files = weight_files(folder)
    except ModelError:
        return
    for file in files:
        for tensor, (_, shape) in header_of(file).items():
            yield tensor, shape


def is_complete(folder: Path) -> bool:
    """Config and every safetensors file that belongs to the weights are there."""
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except ModelError:
        return False


def refuse_pickles(where: str, files: list[str]) -> None:
    pickles = sorted(file for file in files if file.endswith(PICKLES))
    if pickles and not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{where} holds {pickles[0]}: weights come from safetensors or GGUF, never from pickle",
            "a pickle can run any code; save the model with save_pretrained to get safetensors",
        )
