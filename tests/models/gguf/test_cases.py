"""What scope writes from a GGUF file is what transformers writes from the weights that it was made of."""

import pytest
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from scope_cli.models.gguf import header, tokenizer
from scope_cli.models.gguf.architectures import ARCHITECTURES
from tests.models.gguf.cases import CASES, NEW_TOKENS, compare
from tests.models.gguf.files import FIXED, IN_GGUF

QUICK = {
    "llama-Q4_K-llama3",
    "qwen2-F32-yarn",
    "phi3-F32-longrope",
    "gemma3-F32-linear",
    "qwen2moe-Q8_0-none",
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in QUICK else [pytest.mark.long])
        for case in CASES
    ],
)
def test_the_same_60_tokens_after_a_prompt_of_700(case, tmp_path):
    same, difference = compare(case.write(tmp_path))
    assert same == NEW_TOKENS and difference < 1e-4


def test_every_architecture_and_every_scaling_has_a_case():
    assert {IN_GGUF.get(name, name) for name in FIXED} == set(ARCHITECTURES)
    assert {case.name for case in CASES} >= QUICK


def test_the_types_that_can_be_read_are_those_of_the_gguf_package():
    from gguf.quants import _type_traits

    unread = {"NVFP4"}  # its scales lie in tensors of their own
    theirs = {kind.name for kind in _type_traits} | {"F32", "F16"}
    assert theirs - unread == header.READABLE


def test_the_ways_to_split_text_are_those_of_transformers():
    assert set(GGUF_PRE_TOKENIZER_SPLITS) == tokenizer.KNOWN_SPLITS
