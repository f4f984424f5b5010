"""Pieces of text against decoding everything at once, for both families of tokenizers."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from scope_cli.engine.text import BROKEN, PATIENCE, TextStream
from tests.helpers.tokenizers import SAMPLE, byte_level, metaspace

TOKENIZERS = {"byte_level": byte_level(), "metaspace": metaspace()}
both = pytest.mark.parametrize("kind", TOKENIZERS)
texts = st.text([*SAMPLE, "é", "ß", "\u0e01", "\U0001f468", "\u200d", BROKEN], max_size=PATIENCE)


def ids_of(kind: str, text: str) -> list[int]:
    return TOKENIZERS[kind].backend_tokenizer.encode(text, add_special_tokens=False).ids


def decoded(kind: str, ids: list[int]) -> str:
    return TOKENIZERS[kind].backend_tokenizer.decode(ids, skip_special_tokens=True)


def byte_ids(kind: str, data: bytes) -> list[int]:
    """The tokens that stand for single bytes."""
    names = [f"<0x{byte:02X}>" if kind == "metaspace" else bytes_to_unicode()[byte] for byte in data]
    return TOKENIZERS[kind].convert_tokens_to_ids(names)


def streamed(kind: str, prompt_ids: list[int], output_ids: list[int], *stop: str) -> tuple[str, str | None]:
    """All the text there is, up to a stop text; and the stop text."""
    stream = TextStream(TOKENIZERS[kind], prompt_ids, stop)
    text = ""
    for token_id in output_ids:
        text += stream.feed(token_id)
        if stream.stopped is not None:
            break
    return text + stream.flush(), stream.stopped


def until_stop(text: str, *stop: str) -> tuple[str, str | None]:
    """The oracle: read character by character until some stop text is complete."""
    for end in range(len(text) + 1):
        for one in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(one):
                return text[: end - len(one)], one
    return text, None


@both
@given(
    text=texts,
    cut=st.integers(0, PATIENCE),
    stop=st.lists(st.text("The riv\n水", min_size=1, max_size=4), max_size=3),
)
def test_the_output_is_what_it_adds_to_the_decoded_prompt_up_to_a_stop_text(kind, text, cut, stop):
    ids = ids_of(kind, text)
    prompt = decoded(kind, ids[:cut])
    assume(not prompt.endswith(BROKEN))  # a prompt ends with a whole character
    added = decoded(kind, ids)[len(prompt) :]
    assert streamed(kind, ids[:cut], ids[cut:]) == (added, None)
    assert streamed(kind, ids[:cut], ids[cut:], *stop) == until_stop(added, *stop)


@both
@given(text=texts, more=st.sampled_from(["é", "水", "\U0001f468"]), stop=st.integers(1, 3))
def test_an_unfinished_character_at_the_end_is_dropped_and_a_real_replacement_character_is_not(
    kind, text, more, stop
):
    part = more.encode()[: min(stop, len(more.encode()) - 1)]
    prompt = ids_of(kind, "The")
    for end in ("", BROKEN, BROKEN * 2):
        output = [*byte_ids(kind, (text + end).encode()), *byte_ids(kind, part)]
        assert streamed(kind, prompt, output) == (text + end, None)
        assert streamed(kind, prompt, output[: -len(part)]) == (text + end, None)


@both
def test_bytes_that_begin_no_character_stay_broken_at_the_end(kind):
    output = [*ids_of(kind, " river"), *byte_ids(kind, b"\x80")]
    assert streamed(kind, ids_of(kind, "The"), output)[0].endswith(f"river{BROKEN}")


@both
def test_the_first_piece_keeps_its_leading_space(kind):
    prompt, whole = ids_of(kind, "The river"), ids_of(kind, "The river rose.")
    assert streamed(kind, prompt, whole[len(prompt) :]) == (" rose.", None)
    assert streamed(kind, [], whole) == ("The river rose.", None)


@both
def test_a_character_is_shown_when_its_last_byte_has_come(kind):
    stream = TextStream(TOKENIZERS[kind], ids_of(kind, "The"))
    shown = [stream.feed(token_id) for token_id in byte_ids(kind, "é\U0001f468".encode())]
    assert shown == ["", "é", "", "", "", "\U0001f468"]


@both
def test_an_unfinished_character_at_the_end_is_dropped(kind):
    assert streamed(kind, ids_of(kind, "The"), byte_ids(kind, "ee\U0001f30a".encode()[:-1])) == ("ee", None)


@both
def test_special_tokens_are_not_shown(kind):
    special = TOKENIZERS[kind].convert_tokens_to_ids("<s>")
    the, *river = ids_of(kind, "The river")[: 2 if kind == "metaspace" else None]
    without = decoded(kind, [the, *river])
    assert streamed(kind, [special], [special, the, special, *river, special]) == (without, None)


@both
def test_a_prompt_that_ends_with_the_replacement_character_is_not_shown_again(kind):
    prompt = ids_of(kind, f"The{BROKEN}")
    river = ids_of(kind, f"The{BROKEN} river")[len(prompt) :]
    assert streamed(kind, prompt, river) == (" river", None)


@both
@given(data=st.data())
def test_broken_bytes_stop_nothing(kind, data):
    prompt, the = ids_of(kind, "The river"), ids_of(kind, "The")
    output = data.draw(st.lists(st.integers(0, len(TOKENIZERS[kind]) - 1), max_size=PATIENCE - 2))
    text, _ = streamed(kind, prompt, [*output, *the])
    assert text.endswith("The")
    assert text.encode().decode() == text
    if kind == "byte_level":  # byte fallback breaks whole runs, also what was shown of them
        assert text == decoded(kind, [*prompt, *output, *the])[len("The river") :]


def test_a_broken_byte_after_a_shown_character_is_only_a_broken_byte():
    output = [*byte_ids("metaspace", b"\xc3\xa9\xff"), *ids_of("metaspace", "The river")]
    text, _ = streamed("metaspace", ids_of("metaspace", "The"), output)
    assert text == f"é{BROKEN * 3} The river"


@both
def test_endless_broken_bytes_are_shown_in_pieces_and_not_decoded_again_and_again(kind):
    stream = TextStream(TOKENIZERS[kind], ids_of(kind, "The"))
    shown = [stream.feed(token_id) for token_id in byte_ids(kind, b"\xff" * 5 * PATIENCE)]
    assert sum(map(bool, shown)) == 5
    assert len(stream._ids) < 2 * PATIENCE


@both
def test_what_may_become_a_stop_text_is_held_back_until_the_end(kind):
    stream = TextStream(TOKENIZERS[kind], [], stop=("river fell", "re"))
    shown = "".join(stream.feed(token_id) for token_id in ids_of(kind, "The river rose. The river f"))
    assert (shown, stream.flush(), stream.stopped) == ("The river rose. The ", "river f", None)


@pytest.mark.parametrize(
    ("stop", "shown", "stopped"),
    [
        (("h",), " T", "h"),
        (("The", "h"), " T", "h"),  # the first to be complete
        (("h", "Th"), " ", "Th"),  # complete together: the longer one
    ],
)
def test_nothing_from_a_stop_text_on_is_shown_even_of_the_same_token(stop, shown, stopped):
    the = TOKENIZERS["metaspace"].convert_tokens_to_ids("▁The")
    stream = TextStream(TOKENIZERS["metaspace"], [the], stop)
    assert (stream.feed(the), stream.stopped, stream.flush()) == (shown, stopped, "")


@both
def test_a_stop_text_may_span_tokens(kind):
    assert streamed(kind, ids_of(kind, "The"), byte_ids(kind, b"river"), "iv") == ("r", "iv")


def test_a_stop_text_in_front_of_an_unfinished_character_is_found_at_the_end():
    tokenizer = byte_level()
    tokenizer.add_tokens(["eæ"])  # b"e\xe6": a letter and the first byte of a Chinese character
    stream = TextStream(tokenizer, ids_of("byte_level", "The"), stop=("e",))
    assert stream.feed(len(tokenizer) - 1) == ""
    assert (stream.flush(), stream.stopped) == ("", "e")


@both
@pytest.mark.parametrize("silent", ["special", "unknown"])
def test_no_token_has_the_whole_prompt_decoded_again(kind, silent, monkeypatch):
    """Nor a long row of tokens that print nothing, as a model with random weights may write."""
    tokenizer, looked = TOKENIZERS[kind], []
    stream = TextStream(tokenizer, ids_of(kind, "The river is high. " * 500))
    decode = stream._decode
    monkeypatch.setattr(stream, "_decode", lambda ids: [looked.append(len(ids)), decode(ids)][1])
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    special = next(number for number, one in added.items() if one.special)
    nothing = special if silent == "special" else len(tokenizer) + 7
    text = "".join(stream.feed(one) for one in [nothing] * 200 + ids_of(kind, "The end") + [nothing] * 200)
    assert (text + stream.flush()).strip() == "The end"
    assert max(looked) <= PATIENCE + 8 and len(looked) < 40


@pytest.mark.parametrize("characters", [40, 41, 42])
def test_a_prompt_of_nothing_but_bytes_is_cut_where_a_character_begins(characters):
    ids = byte_ids("metaspace", ("ก" * characters).encode())
    cut = len(ids) - 6
    assert streamed("metaspace", ids[:cut], ids[cut:]) == ("กก", None)
