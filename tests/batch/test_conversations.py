"""Rows with messages, in our format and in OpenAI's, write what `generate` writes after the same prompt."""

import json

import pytest
import torch

from scope_cli.batch.ledger import Ledger
from scope_cli.batch.work import unpacked
from tests.helpers.tiny import tiny_model, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}{{ '/' + m.name if m.name }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ 'hm ' if thinking }}{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture
def prompts_of(scope, model, tmp_path):
    """Lines in, the prompts that the model reads out, by id, as text; None where a line failed."""

    def run(*lines, more=()):
        file, out = tmp_path / "p.jsonl", tmp_path / "out"
        file.write_text("\n".join(map(json.dumps, lines)))
        argv = ("--model", model, "--max-new-tokens", 2, "--threads", 1, *more)
        result = scope("batch", file, "-o", out, *argv)
        assert "Traceback" not in result.stderr
        rows = Ledger(out).rows(bulky=True)
        return {
            row.id: bytes(unpacked(row.prompt_ids, row.prompt_tokens)).decode() if row.prompt_ids else None
            for row in rows
        }, result.stderr

    return run


def test_roles_parts_and_names_reach_the_template(prompts_of):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    found, _ = prompts_of(
        {"id": "x", "messages": messages}, {"custom_id": "y", "body": {"messages": messages}}
    )
    assert found["x"] == found["y"]
    assert found["x"] == "[developer]Be brief.\n[user/Ann]a\nb\n[assistant]\n[tool]42\n[assistant]"


def test_an_answer_that_was_begun_is_gone_on_with(prompts_of, scope, model, tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    found, _ = prompts_of({"id": "x", "messages": messages, "sampling": {"temperature": 0}})
    assert found["x"] == "[user]hi\n[assistant]Well, "
    alone = scope(
        "generate", "hi", "--continue-text", "Well, ", "--model", model, "--max-new-tokens", 2,
        "--temperature", 0, "-q", "--threads", 1,
    )  # fmt: skip
    (line,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert line["text"] == alone.stdout.removesuffix("\n") or line["text"] == alone.stdout


def test_a_line_has_template_arguments_of_its_own(prompts_of):
    messages = [{"role": "user", "content": "hi"}]
    found, said = prompts_of(
        {"id": "job's", "prompt": "hi"},
        {"id": "own", "prompt": "hi", "template_args": {"thinking": False}},
        {"id": "talk", "messages": messages},
        {"custom_id": "body", "body": {"messages": messages, "chat_template_kwargs": {"thinking": False}}},
        {"id": "unknown", "prompt": "hi", "template_args": {"thinkin": False}},
        more=("--template-arg", "thinking=true"),
    )
    assert found["job's"] == found["talk"] == "[user]hi\n[assistant]hm "
    assert found["own"] == found["body"] == "[user]hi\n[assistant]"
    assert found["unknown"] is None and "did you mean thinking?" in said


def test_what_there_is_to_say_of_prompts_is_said_once(prompts_of):
    body = {"model": "gpt-9", "messages": [{"role": "user", "content": "<eos>"}]}
    lines = [{"custom_id": str(number), "body": body} for number in range(3)]
    found, said = prompts_of(*lines)
    assert found["0"] == "[user]<eos>\n[assistant]"
    assert "note: 3 prompts: the prompt holds 1 control token (<eos>)" in said
    assert "note: 3 lines with the model gpt-9, which is not looked at" in said
