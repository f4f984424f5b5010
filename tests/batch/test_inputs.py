"""Prompts as they are found: a directory, JSON lines, and everything that can be wrong with one."""

import io
import json
import os
import sys

import pytest

from scope_cli.batch.inputs import MOST_BYTES, Frame, read_directory, read_inputs, read_lines
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
        ({"messages": [{"role": "robot", "content": "a"}]}, "not a list of {role, content}"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "end with the assistant's"),
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


def test_an_id_that_comes_twice_is_the_second_ones_problem():
    first, _, second = lines(
        {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x"}, {"id": "a", "prompt": "y"}
    )
    assert first.problem is None
    assert (second.id, second.problem) == ("line-3 (a)", "has the id of line 1: a")


def test_standard_input_is_json_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "hi"}\n')))
    assert [one.text for one in read_inputs("-")] == ["hi"]


def test_what_is_no_place_for_prompts_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "one.txt").write_text("hi")
    with pytest.raises(UsageError, match="neither a directory nor") as refused:
        read_inputs(str(tmp_path / "one.txt"))
    assert "scope generate --prompt-file" in refused.value.hint
    with pytest.raises(UsageError, match="there is no"):
        read_inputs(str(tmp_path / "two"))


def test_a_frame_puts_braces_and_all_around_a_text():
    assert Frame("Summarise {json}: {text}!", " Now.").around("a {b}") == "Summarise {json}: a {b}! Now."
    assert Frame().around("a") == "a"
