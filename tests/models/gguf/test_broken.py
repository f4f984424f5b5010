"""Broken GGUF files end in a sentence; what is still accepted is read as the gguf package reads it."""

import random
import struct

import gguf
import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file

from scope_cli.errors import ModelError
from scope_cli.models.gguf.convert import open_gguf
from scope_cli.models.registry import find
from tests.helpers.leftovers import nothing_in
from tests.models.gguf.files import write

CORRUPTIONS = 100


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small file: half of it is header."""
    folder = tmp_path_factory.mktemp("whole")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 32}
    path = write(folder / "tiny.gguf", "qwen2", "Q8_0", num_hidden_layers=1, **sizes).path
    return path.read_bytes()


def header_bytes(data):
    return data.index(b"output_norm.bias") if b"output_norm.bias" in data else data.rindex(b".weight") + 40


def corrupted(data, seed):
    """One of: cut, flipped bytes, a stretch emptied, two stretches swapped; three of four in the header."""
    chance = random.Random(seed)
    data = bytearray(data)
    end = header_bytes(data) if seed % 4 else len(data)
    at, other = chance.randrange(end), chance.randrange(end)
    length = chance.choice([1, 4, 8, 64, 500])
    kind = ("cut", "flip", "empty", "swap")[seed // 4 % 4]
    if kind == "cut":
        return bytes(data[:at])
    if kind == "flip":
        for _ in range(chance.choice([1, 3])):
            data[chance.randrange(end)] ^= 1 << chance.randrange(8)
    elif kind == "empty":
        data[at : at + length] = bytes(len(data[at : at + length]))
    else:
        first, second = sorted((at, other))
        length = min(length, second - first, len(data) - second)
        data[first : first + length], data[second : second + length] = (
            data[second : second + length],
            data[first : first + length],
        )
    return bytes(data)


def test_random_corruptions_end_in_a_sentence_or_are_read_as_the_file_says(whole, tmp_path, cache, scope):
    refused = taken = 0
    for seed in range(CORRUPTIONS):
        path = tmp_path / f"{seed}.gguf"
        path.write_bytes(corrupted(whole, seed))
        result = scope("models", "pull", path)
        assert "Traceback" not in result.stderr and result.code in (0, 2), (seed, result.stderr)
        if result.code == 2:
            refused += 1
            assert result.stderr.count("error:") == 1 and not list(cache.rglob("*.safetensors")), seed
        else:
            taken += 1
            same_as_the_gguf_package(path)
            generated = scope(
                "generate", "-m", path, "hi", "--temperature", "0", "--max-new-tokens", "2", "-q"
            )
            assert "Traceback" not in generated.stderr, (seed, generated.stderr)
            assert scope("models", "rm", path, "--yes").code == 0
    assert refused > 20 and taken > 20, "both kinds have been seen"


def same_as_the_gguf_package(path):
    """Every weight of the converted file, and the numbers of its config, beside GGUFReader's."""
    reader = GGUFReader(path)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 1)
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    converted = load_file(find(str(path)).ready().path / "model.safetensors")
    for name, values in converted.items():
        stem, _, suffix = name.rpartition(".")
        tensor = theirs.pop(f"{names.get_name(stem)}.{suffix}")
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(values, expected.reshape(values.shape))
    assert not theirs
    config = open_gguf(path).config
    for key, ours in (
        ("block_count", "num_hidden_layers"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("context_length", "max_position_embeddings"),
    ):
        assert reader.fields[f"qwen2.{key}"].contents() == config[ours]
    assert reader.fields["qwen2.rope.freq_base"].contents() == config["rope_parameters"]["rope_theta"]


def patched(data, before, change):
    """`change` packed in place of what follows `before`."""
    at = data.index(before) + len(before)
    return data[:at] + change + data[at + len(change) :]


HUGE = struct.pack("<Q", 1 << 62)


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda data: b"", "not a GGUF file"),
        (lambda data: b"GGU", "not a GGUF file"),
        (lambda data: b"GGUF", "cut off in its version"),
        (lambda data: b"hello" * 100, "not a GGUF file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "not a GGUF file"),
        (lambda data: b"GGUF" + bytes(60), "of version 0"),
        (lambda data: b"GGUF" + struct.pack(">I", 3) + data[8:], "big-endian"),
        (lambda data: data[:8] + HUGE + data[16:], "for its number of tensors, and holds fewer"),
        (lambda data: data[:16] + HUGE + data[24:], "for its number of keys, and holds fewer"),
        (lambda data: data[:24] + HUGE + data[32:], "is cut off in a key"),
        (lambda data: patched(data, b"tokenizer.ggml.tokens", b"\x09\0\0\0\x08\0\0\0" + HUGE), "holds fewer"),
        (
            lambda data: patched(data, b"tokenizer.ggml.tokens", b"\x09\0\0\0\x09\0\0\0"),
            "an array of the unknown type 9",
        ),
        (
            lambda data: patched(data, b"tokenizer.ggml.tokens", b"\x63\0\0\0"),
            "a value of the unknown type 99",
        ),
        (lambda data: patched(data, b"qwen2.rope.freq_base\6\0\0\0", b"\0\0\xc0\x7f"), "has nan for"),
        (lambda data: patched(data, b"qwen2.block_count\4\0\0\0", b"\xff\xff\xff\x7f"), "incomplete"),
        (lambda data: patched(data, b"blk.0.attn_q.weight", b"\xff\0\0\0"), "has 255 dimensions"),
        (lambda data: patched(data, b"blk.0.attn_q.weight\2\0\0\0", HUGE), "has the shape"),
        (lambda data: patched(data, b"blk.0.attn_q.weight\2\0\0\0", bytes(8)), "has the shape"),
        (lambda data: data.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "twice"),
        (lambda data: data.replace(b"qwen2.block_count", b"qwen2.block_cou\xff\xff"), "not UTF-8"),
        (lambda data: data[:-100], "is cut off: "),
        (lambda data: data[: len(data) // 3], "is cut off"),
    ],
)
def test_a_broken_file_is_refused_and_nothing_is_written(whole, tmp_path, cache, breaks, said):
    path = tmp_path / "broken.gguf"
    path.write_bytes(breaks(whole))
    with pytest.raises(ModelError) as caught:
        find(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value) and nothing_in(cache)


def test_two_tensors_in_one_place_are_refused(whole, tmp_path):
    path = tmp_path / "broken.gguf"
    entry = b"blk.0.attn_k.weight" + struct.pack("<IQQI", 2, 64, 64, 8)
    assert entry in whole
    path.write_bytes(patched(whole, entry, bytes(8)))
    with pytest.raises(ModelError, match=r"has .* where .* lies"):
        find(str(path))
