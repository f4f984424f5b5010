"""Bytes that people have in files: read as text, or told what they are and how to convert them."""

import pytest

from scope_cli import utf8

TEXTS = {
    "english": "The river rose.\nThe river fell.\n",
    "french": "L'été où l'eau monta, naïve.\r\n",
    "russian": "Вода ушла.\n",
    "greek": "το ποτάμι ανέβηκε\n",
    "hebrew": "הנהר עלה\n",
    "chinese": "水位上升。\n一切都好。\n",
    "emoji": "a \U0001f30a wave\n",
    "short": "hi",
}

ICONV = {"utf-16", "utf-16le", "utf-16be", "utf-32", "utf-32le", "utf-32be"}  # names that it knows


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
def test_utf8_is_read_with_or_without_a_mark(text, mark):
    assert utf8.decode((mark + text).encode()) == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
def test_wide_texts_are_named_and_the_hint_makes_them_utf8(text, name, mark):
    content = (mark + text).encode(name)
    for cut in (0, 1) if len(text) > 2 else (0,):
        with pytest.raises(utf8.NotText) as caught:
            utf8.decode(content[: len(content) - cut])
        assert caught.value.encoding in ICONV
        assert f"iconv -f {caught.value.encoding} -t utf-8 'my file'" in caught.value.hint("my file")
        assert content.decode(caught.value.encoding) == text
        assert name[:6].upper() in str(caught.value)


@pytest.mark.parametrize(
    "text", ["水位上升。万事都好。", "水が引いた。", "Вода", "ποτάμι", "הנהר", "강물이불었다", "水位🌊"]
)
@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be"])
def test_wide_texts_without_a_blank_or_a_mark_are_named_too(text, encoding):
    content = text.encode(encoding)
    assert b"\0" not in content
    with pytest.raises(utf8.NotText, match=f"looks like {encoding.upper()} without a mark") as caught:
        utf8.decode(content)
    assert caught.value.encoding == encoding


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((text, "latin1") for text in ("café", "naïve été", "Über", "où", "la rivière monta", "à la mer")),
        *((text, "cp1251") for text in ("Вода ушла", "Вода")),
        *(("水位上升。", encoding) for encoding in ("gbk", "big5", "shift_jis")),
        *(("강물이불었다", encoding) for encoding in ("euc_kr", "cp949")),
    ],
)
def test_other_encodings_are_not_taken_for_wide_ones(text, encoding):
    with pytest.raises(utf8.NotText) as caught:
        utf8.decode(text.encode(encoding, "replace"))
    assert caught.value.encoding == "latin1"


def test_control_characters_in_utf8_stay_text():
    assert utf8.decode(b"a bell\x07, \x01\x02") == "a bell\x07, \x01\x02"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"one\ntwo\0three", "offset 7, line 2"),
        (b"a.txt\0b.txt\0", "offset 5, line 1"),
        (b"foo\0bar\0", "offset 3, line 1"),
        ("水位\0上升".encode(), "offset 6, line 1"),
        (bytes(range(256)) * 3, "offset 0, line 1"),
        (b"\x7fELF\2\1\1\0\0\0\0\0\0\0\0\0\3\0>\0", "offset 7, line 1"),
        (b"\0", "offset 0, line 1"),
        (b"\0\0\0\0", "offset 0, line 1"),
    ],
)
def test_nul_bytes_of_no_text_are_told_with_their_place(content, place):
    with pytest.raises(utf8.NotText, match=f"NUL byte at {place}") as caught:
        utf8.decode(content)
    assert "iconv" not in caught.value.hint("f")


def test_another_byte_is_told_with_its_place_and_a_guess():
    with pytest.raises(utf8.NotText, match="byte 0xe9 at offset 8, line 2") as caught:
        utf8.decode(b"one\nna\xc3\xaf\xe9")
    assert "iconv -f latin1 -t utf-8 f" in caught.value.hint("f")


def test_prompts_and_system_messages_in_utf16_are_refused_with_the_hint(scope, tmp_path):
    (tmp_path / "p.txt").write_bytes("The river rose.".encode("utf-16"))
    (tmp_path / "le.txt").write_bytes("The river rose.".encode("utf-16-le"))
    for argv in (["-f", tmp_path / "p.txt"], ["hi", "--system-file", tmp_path / "p.txt"]):
        result = scope("generate", *argv)
        assert (result.code, result.stdout) == (2, "")
        assert f"iconv -f utf-16 -t utf-8 {tmp_path / 'p.txt'}" in result.stderr
    result = scope("generate", "-f", tmp_path / "le.txt")
    assert result.code == 2 and "iconv -f utf-16le" in result.stderr
