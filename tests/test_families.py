"""Every family of transformers: the same text as `generate`, or a sentence; never another text."""

import pytest

from tests.families import rows, try_row

RIGHT = [
    "llama", "llama (longrope)", "llama (dynamic)", "phi3 (longrope)", "qwen2 (yarn)", "gemma3_text", "gpt2",
    "opt", "mistral", "mistral3", "olmoe", "qwen2_5_vl",
]  # fmt: skip
REFUSED = {
    "diffllama": "calls attention 2 times",
    "nemotron": "do not hand on",
    "moshi": "layer 0 attends to something else|do not hand on to attention",  # the latter in 5.19
    "paligemma": "layer 0 attends to something else",
    "falcon": "compute their attention by themselves",
    "mamba": "no attention",
    "bart": "compute their attention|encoder",
    "gemma2": "capped",
    "gpt_oss": "sinks",
    "deepseek_v3": "compressed together",
}


@pytest.mark.parametrize("row", RIGHT)
def test_a_family_writes_what_generate_writes(tmp_path, row):
    outcome = try_row(row, tmp_path, prompt_tokens=600, written=12)
    assert (outcome.verdict, outcome.why) == ("right", "")


@pytest.mark.parametrize("row", REFUSED)
def test_a_family_is_refused_with_the_reason(tmp_path, row):
    import re

    outcome = try_row(row, tmp_path, prompt_tokens=600, written=12)
    assert outcome.verdict == "refused" and re.search(REFUSED[row], outcome.why), outcome


@pytest.mark.long
@pytest.mark.parametrize("row", rows())
def test_no_family_writes_another_text(tmp_path, row):
    assert try_row(row, tmp_path).verdict in ("right", "refused", "not built")
