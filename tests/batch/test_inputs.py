"""Prompts as they are found: a directory, JSON lines, and everything that can be wrong with one."""

import io
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_cli import utf8
from scope_cli.batch.folder import MOST_BYTES, read_directory, read_inputs
from scope_cli.batch.inputs import PromptFrame
from scope_cli.batch.lines import read_lines
from scope_cli.errors import UsageError


def found(root, *globs, leave_out=None):
    return {one.id: one for one in read_inputs(str(root), globs, leave_out)}


def lines(*texts):
    content = [text if isinstance(text, bytes) else json.dumps(text).encode() for text in texts]
    return list(read_lines(io.BytesIO(b"\n".join(content)), "prompts.jsonl"))


def problem_of(line):
    (one,) = lines(line)
    return one.problem


def test_a_directory_is_read_to_its_depths_in_order_of_the_paths(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.md", "a.txt", ".hidden", ".git/config"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text of {name}")
    one = found(tmp_path)
    assert list(one) == ["a/b/c.md", "a/z.txt", "a.txt", "b.txt"]
    assert one["a/z.txt"].text == "text of a/z.txt"


def test_globs_look_at_names_and_with_a_slash_at_paths(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("x.txt", "a/x.txt", "a/y.md"):
        (tmp_path / name).write_text("text")
    assert set(found(tmp_path, "*.txt")) == {"x.txt", "a/x.txt"}
    assert set(found(tmp_path, "a/*")) == {"a/x.txt", "a/y.md"}
    assert set(found(tmp_path, "*.md", "x.*")) == {"x.txt", "a/x.txt", "a/y.md"}


def test_outputs_that_lie_among_the_prompts_are_none(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.txt").write_text("an output")
    (tmp_path / "x.txt").write_text("a prompt")
    assert set(found(tmp_path, leave_out=tmp_path / "out")) == {"x.txt"}


def test_the_hash_is_that_of_the_content(tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    one = found(tmp_path)
    assert one["a"].content_hash == one["b"].content_hash != one["c"].content_hash


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfhello")
    assert found(tmp_path)["a"].text == "hello"


def test_each_bad_file_has_its_own_reason(tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "blank").write_text(" \n\t\n")
    (tmp_path / "latin").write_bytes(b"one\ntwo \xe9 three")
    (tmp_path / "utf16").write_bytes("hello".encode("utf-16"))
    (tmp_path / "nowhere").symlink_to("not-there")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "loop").symlink_to("..")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    (tmp_path / "fine").write_text("text")
    problems = {name: one.problem for name, one in found(tmp_path).items()}
    assert problems.pop("fine") is None
    assert problems == {
        "empty": "is empty",
        "blank": "holds nothing but white space",
        "latin": "is not UTF-8: byte 0xe9 at offset 8, line 2; "
        "convert it, for example: iconv -f latin1 -t utf-8 latin",
        "utf16": "is not UTF-8: it is UTF-16; convert it, for example: iconv -f utf-16 -t utf-8 utf16",
        "nowhere": "cannot be read: No such file or directory",
        "itself": "cannot be read: Too many levels of symbolic links",
        "sub/loop": "is a link back to a folder that it lies in",
        "pipe": "is not a regular file",
        "huge": "is too large for a prompt: 256.00 MiB, at most 256.00 MiB",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_told(tmp_path):
    (tmp_path / "secret").write_text("text")
    (tmp_path / "secret").chmod(0)
    assert found(tmp_path)["secret"].problem == "cannot be read: Permission denied"


def test_a_name_that_is_no_utf8_is_told_and_shown(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"n\xe9.txt")).write_text("text")
    except OSError:
        pytest.skip("this disk takes no such names")
    (one,) = read_directory(tmp_path, ("*",))
    assert (one.id, one.problem) == ("n\\xe9.txt", "its name is not UTF-8")


def test_a_name_with_blanks_and_other_letters_is_like_any_other(tmp_path):
    (tmp_path / "mein Brief ёжик 夜.txt").write_text("text")
    assert found(tmp_path)["mein Brief ёжик 夜.txt"].problem is None


def test_a_line_says_all_that_a_prompt_may_say():
    first, second = lines(
        {"id": "a", "prompt": "hi", "system": "be brief", "sampling": {"seed": 7}, "meta": {"page": 3}},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
    )
    assert (first.id, first.text, first.system, first.sampling, first.meta) == (
        "a", "hi", "be brief", {"seed": 7}, {"page": 3},
    )  # fmt: skip
    assert second.id == "line-2" and second.messages[1]["content"] == "u"
    assert first.source == "prompts.jsonl, line 1"


def test_a_line_is_the_same_prompt_whatever_it_is_called_and_however_it_is_spelt():
    (one,) = lines({"id": "a", "prompt": "hi", "meta": 1})
    (again,) = lines(b'{ "meta":1, "prompt" : "hi","id":"b"}')
    (other,) = lines({"id": "a", "prompt": "hi", "meta": 2})
    assert one.content_hash == again.content_hash != other.content_hash


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "is not JSON"),
        (b'{"prompt": "caf\xe9"}', "is not UTF-8: byte 0xe9 at offset 15"),
        (b"[1]", "is a JSON list"),
        ({"promt": "hi"}, "unknown key 'promt'; did you mean prompt?"),
        ({"prompt": "hi", "temperature": 1}, 'write "sampling": {"temperature": ...}'),
        ({"id": "a"}, "neither prompt nor messages"),
        ({"prompt": " "}, "empty prompt"),
        ({"prompt": 3}, "a prompt that is not a text"),
        ({"prompt": "a", "messages": []}, "a prompt and messages"),
        ({"messages": []}, "no messages"),
        ({"messages": "a"}, "not a list of {role, content}"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "the role 'robot', and knows system, developer"),
        ({"messages": [{"role": "user"}]}, "neither a text nor a list of parts"),
        ({"messages": [{"role": "user", "content": "a", "nmae": "b"}]}, "did you mean name?"),
        ({"messages": [{"role": "user", "content": "a", "name": 3}]}, "name is not a text"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "no text: 'a'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "{type: text, text: ...}"),
        ({"messages": [{"role": "user", "content": []}]}, "empty last message"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "end with"),
        ({"prompt": "a", "sampling": {"stop": ""}}, "sampling.stop is ''"),
        ({"prompt": "a", "sampling": {"stop": 3}}, "sampling.stop is 3"),
        ({"custom_id": "a", "body": {}}, "no body.messages"),
        ({"custom_id": "a"}, "no body"),
        ({"custom_id": "a", "body": [1]}, "no body"),
        ({"custom_id": "a", "body": {"messages": []}}, "no messages"),
        ({"custom_id": "", "body": {"messages": []}}, "'' for an id"),
        ({"custom_id": "a", "bdy": {}}, "did you mean body?"),
        ({"custom_id": "a", "url": "/v1/embeddings", "body": {"input": "x"}}, "'/v1/embeddings', and only"),
        ({"body": {"messages": [{"role": "user", "content": "a"}], "n": 2}}, "body.n, which cannot be done"),
        ({"body": {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}}, "body.tools"),
        ({"body": {"messages": [{"role": "user", "content": "a"}], "temprature": 2}}, "body.temprature; did"),
        ({"body": {"messages": [{"role": "user", "content": "a"}], "top_p": 7}}, "sampling.top_p is 7"),
        (
            {"body": {"messages": [], "max_tokens": 3, "max_completion_tokens": 4}},
            "another body.max_completion_tokens",
        ),
        (b'{"prompt": "a", "meta": NaN}', "is not JSON: NaN"),
        (b'{"prompt": "a", "meta": [-Infinity]}', "is not JSON: -Infinity"),
        (b'{"prompt": "a", "meta": [1e999]}', "a number that is too large"),
        (b'{"prompt": "a", "meta": ' + b"7" * 5000 + b"}", "is not JSON"),
        (b'{"prompt": "a", "sampling": {"seed": ' + b"7" * 4000 + b"}}", "sampling.seed is 777"),
        (b'{"prompt": "a", "meta": {"\\udfff": 1}}', "half a character"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "empty last message"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty last message"),
        ({"messages": [{"role": "user", "content": "a"}], "system": "b"}, "put it first"),
        ({"prompt": "a", "system": 3}, "a system message that is not a text"),
        ({"prompt": "a", "sampling": 3}, "not an object"),
        ({"prompt": "a", "sampling": {"sed": 3}}, "did you mean seed?"),
        ({"prompt": "a", "sampling": {"top_p": 7}}, "sampling.top_p is 7"),
        ({"prompt": "a", "sampling": {"max_new_tokens": 3, "min_new_tokens": 5}}, "more than max_new_tokens"),
        ({"prompt": "a", "id": True}, "True for an id"),
        ({"prompt": "a", "id": ""}, "'' for an id"),
        (b'{"prompt": "\\ud800"}', "half a character"),
        (b'{"prompt": "a", "id": "\\udfff"}', "half a character"),
    ],
)
def test_each_bad_line_has_its_own_reason(line, problem):
    assert problem in problem_of(line)


def test_a_bad_line_harms_no_other_line():
    one, bad, two = lines({"id": 1, "prompt": "a"}, b"{", {"id": 2, "prompt": "b"})
    assert (one.id, one.problem, two.id, two.problem) == ("1", None, "2", None)
    assert bad.id == "line-2" and bad.problem


@pytest.mark.parametrize("depth", [99, 100_000, 5_000_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_line_that_is_nested_too_deep_fails_alone(begin, end, depth):
    inner = begin * depth + b"1" + end * depth
    one, bad, two = lines({"id": 1, "prompt": "a"}, b'{"prompt":"a","meta":%s}' % inner, {"prompt": "b"})
    assert bad.problem == "is nested more than 100 deep" and one.problem is two.problem is None
    inner = begin * 98 + b"1" + end * 98
    assert problem_of(b'{"prompt":"a","meta":%s}' % inner) is None


def test_a_line_as_openai_writes_it_is_a_conversation_with_its_sampling():
    (one,) = lines(
        {
            "custom_id": "request-1",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "gpt-4o-mini",
                "messages": [
                    {"role": "developer", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": t} for t in ("a", "b")],
                        "name": "x",
                    },
                    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "refusal": None},
                    {"role": "tool", "content": "42", "tool_call_id": "1"},
                ],
                "max_completion_tokens": 100,
                "temperature": 0.5,
                "top_p": 0.9,
                "seed": 7,
                "stop": "END",
                "n": 1,
                "logprobs": None,
            },
        }
    )
    assert one.problem is None and one.id == "request-1"
    assert one.messages == (
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "a\nb", "name": "x"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    )
    assert one.sampling == {
        "max_new_tokens": 100, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"],
    }  # fmt: skip


def test_a_stop_text_needs_no_list():
    (one,) = lines({"prompt": "a", "sampling": {"stop": "\n\n", "top_k": 3}})
    assert one.problem is None and one.sampling == {"stop": ["\n\n"], "top_k": 3}


GIVEN = [
    "a",
    "a-2",
    "line-1",
    "line-2",
    "line-3",
    "line-2 (a)",
    "line-3 (a)",
    "line-3 (a)-2",
    "line-2 (line-1)",
    7,
]


@given(st.lists(st.sampled_from([*GIVEN, None, b"{", b"\xff"]), max_size=8))
def test_every_line_is_one_input_with_an_id_of_its_own(ids):
    """Ids that look like those that are made up, lines without one, lines that cannot be read."""
    asked = [
        one if isinstance(one, bytes) else {"prompt": f"text {place}", **({} if one is None else {"id": one})}
        for place, one in enumerate(ids)
    ]
    inputs = lines(*asked)
    assert len(inputs) == len({one.id for one in inputs}) == len(ids)
    assert sorted(one.source for one in inputs) == sorted(
        f"prompts.jsonl, line {n + 1}" for n in range(len(ids))
    )
    good = {one.source: one for one in inputs if one.problem is None}
    for place, one in enumerate(ids):
        found = good.get(f"prompts.jsonl, line {place + 1}")
        if found is not None:  # under its own name, with its own text
            assert found.text == f"text {place}" and found.id == str(one or f"line-{place + 1}")
        elif not isinstance(one, bytes):  # only because somebody had the name before
            (told,) = [two for two in inputs if two.source == f"prompts.jsonl, line {place + 1}"]
            assert told.problem.startswith("has the id of line ")


NAMES = st.lists(
    st.sampled_from(
        [b"a", b"\xff", b"\xfe", b"\\xff", b"\\", b"x", b"ff", b"\xc3", b"\xa9", b"-2", b".txt", b"\n", b" "]
    ),
    min_size=1,
    max_size=4,
).map(b"".join)


@given(st.sets(NAMES.filter(lambda name: not name.startswith(b".")), max_size=8))
def test_every_file_is_one_input_with_an_id_of_its_own(names):
    """Bytes that are no UTF-8, beside names that spell them."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                (Path(folder) / os.fsdecode(name)).write_bytes(b"text of " + name.hex().encode())
            except OSError:
                pytest.skip("this disk takes no such names")
        inputs = list(read_directory(Path(folder), ("*",)))
    assert len(inputs) == len({one.id for one in inputs}) == len(names)
    good = {one.id: one.text for one in inputs if one.problem is None}
    assert good == {
        name.decode(): f"text of {name.hex()}"
        for name in names
        if name.decode(errors="ignore").encode() == name
    }
    for one in inputs:
        assert f"{one.id}{one.source}{one.problem}".encode()


def test_names_come_in_the_order_of_their_numbers(tmp_path):
    names = ["p1", "p2", "p2a", "p10", "p10a", "p010b", "q1-2", "q1-10", "q10-1", "x", "x0", "x00", "x1"]
    names += [f"y{10**60}", "z", "z²", "ё1", "ё2", "ё10"]
    for name in names:
        (tmp_path / name).write_text("text")
    assert list(found(tmp_path)) == names


def test_whatever_reading_one_raises_is_that_ones_problem(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("text")
    decode = utf8.decode

    def breaks(content):
        if b"b" in content:
            raise KeyError("nobody knows")
        return decode(content)

    monkeypatch.setattr(utf8, "decode", breaks)
    (tmp_path / "b").write_text("b")
    assert [bool(one.problem) for one in found(tmp_path).values()] == [False, True, False]
    one, bad, two = lines(b'{"prompt": "x"}', b'{"prompt": "b"}', b'{"prompt": "y"}')
    assert bad.problem == "cannot be read: KeyError: 'nobody knows'" and one.problem is two.problem is None


def test_an_id_that_comes_twice_is_the_second_ones_problem():
    first, _, second = lines(
        {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x"}, {"id": "a", "prompt": "y"}
    )
    assert first.problem is None
    assert (second.id, second.problem) == ("line-3 (a)", "has the id of line 1: a")


def test_standard_input_is_json_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "hi"}\n')))
    assert [one.text for one in read_inputs("-")] == ["hi"]


def test_standard_input_that_is_closed_or_breaks_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        read_inputs("-")

    class Breaking:
        def __init__(self):
            self.buffer = self.lines()

        def lines(self):
            yield b'{"prompt": "hi"}'
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", Breaking())
    with pytest.raises(UsageError, match="cannot read standard input: Input/output error"):
        list(read_inputs("-"))


def test_what_is_no_place_for_prompts_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "one.txt").write_text("hi")
    with pytest.raises(UsageError, match="neither a directory nor") as refused:
        read_inputs(str(tmp_path / "one.txt"))
    assert "scope generate --prompt-file" in refused.value.hint
    with pytest.raises(UsageError, match="there is no"):
        read_inputs(str(tmp_path / "two"))


def test_a_frame_puts_braces_and_all_around_a_text():
    assert (
        PromptFrame("Summarise {json}: {text}!", " Now.").around("a {b}") == "Summarise {json}: a {b}! Now."
    )
    assert PromptFrame().around("a") == "a"
