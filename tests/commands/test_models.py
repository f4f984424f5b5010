"""scope models: what there is, where it comes from, what its cache costs."""

import json

import pytest

from scope_cli.commands.models import form_of
from scope_cli.models import catalogue


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"load_in": "int4", "dtype": "float32"}, "as int4, computing in float32"),
        ({"load_in": None, "dtype": "bfloat16"}, "as bfloat16"),
    ],
)
def test_the_form_of_the_weights_is_what_their_bytes_are(facts, said):
    assert form_of(facts) == said


def test_show_tells_the_shape_of_a_folders_model(scope, tiny_folder):
    result = scope("models", "show", tiny_folder, "--json")
    shown = json.loads(result.stdout)
    assert result.code == 0
    assert shown["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 4  # layers, K and V, KV heads, head_dim, float32
    assert (shown["layers"], shown["heads"], shown["kv_heads"], shown["context"]) == (2, 4, 2, 8192)


def test_list_names_the_embedded_model(scope):
    result = scope("models", "list")
    assert result.code == 0 and "smollm2-135m" in result.stdout


def test_list_says_what_open_models_ask_and_whether_they_fit(scope, monkeypatch):
    monkeypatch.setattr(catalogue, "here", lambda: ("cuda", 16 * 2**30))
    said = scope("models", "list").stdout
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in said.splitlines() if "\t" in line}
    assert rows["qwen3-4b"] == ["7.49 GiB", "262,144", "140.62 MiB", "yes", "Apache-2.0"]
    assert rows["gemma-3-12b"][3:] == ["as 4bit", "Gemma (gated)"]
    assert "none is recommended" in said and "Free on cuda: 16.00 GiB." in said
    facts = {row["name"]: row for row in json.loads(scope("models", "list", "--json").stdout)}
    assert facts["qwen3-4b"]["fits"] == "yes" and facts["qwen3-4b"]["tried"] is False
    assert facts["gemma-3-12b"]["fits"] == "packed" and facts["gemma-3-12b"]["gated"]


def test_an_unknown_model_is_told_with_what_was_tried(scope):
    result = scope("models", "show", "smollm2-135n", "--offline")
    assert (result.code, result.stdout) == (2, "")
    assert "smollm2-135m" in result.stderr
