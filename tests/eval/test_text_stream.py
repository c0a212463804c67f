"""Text is the same however its tokens were cut; nothing unfinished and no stop string comes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import tokenizer as tokenizers
from data.config import SentencePiece
from data.tokenizer import ByteTokenizer
from eval.text_stream import TextStream, printable

BYTES = ByteTokenizer()


def pieces(text: str | list[int], size: int, stop=(), tokenizer=BYTES, prompt: str = "") -> list[str]:
    ids = tokenizer.encode(text).tolist() if isinstance(text, str) else text
    stream = TextStream(tokenizer, tokenizer.encode(prompt).tolist(), stop)
    found = []
    for start in range(0, len(ids), size):
        found.append(stream.push(ids[start : start + size], last=start + size >= len(ids)))
        if stream.stopped:
            break
    return found


def test_unfinished_characters_are_held_back():
    assert pieces("aé😀b", 1) == ["a", "", "é", "", "", "", "😀", "b"]
    assert pieces(BYTES.encode("a😀").tolist()[:-1], 1) == ["a", "", "", "\ufffd"]  # the text ends inside it


@given(st.lists(st.integers(4, 259)) | st.text().map(lambda text: BYTES.encode(text).tolist()), st.integers(1, 9))
def test_any_bytes_in_any_pieces_decode_to_the_same_text(ids, size):
    assert "".join(pieces(ids, size)) == BYTES.decode(ids)


@pytest.fixture(scope="module")
def subwords():
    texts = ["The cat sat on the mat.\n  Indented text, and the café.\n" * 20]
    return tokenizers.train(SentencePiece(vocab_size=300, algorithm="unigram"), iter(texts))


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_subwords_keep_their_spaces(subwords, size):
    text = " cat  sat\n   on the café. 😀 the mat"
    assert "".join(pieces(text, size, tokenizer=subwords, prompt="The")) == text


@pytest.mark.parametrize("size", [1, 2, 3, 5, 50])
def test_stop_strings_never_come_out(size):
    def shown(text, *stop):
        return "".join(pieces(text, size, stop))

    assert shown("one two\n\nthree", "\n\n") == "one two"
    assert shown("one two three", "three", "two") == "one "
    assert shown("aaab", "ab") == "aa"
    assert shown("ends with a begun sto", "stop") == "ends with a begun sto"
    assert shown("café là", "é") == "caf"
    assert shown("stop", "stop") == ""


def test_a_begun_stop_string_is_held_back_until_it_is_none():
    assert pieces("a stu", 1, ["stop"]) == ["a", " ", "", "", "stu"]


def test_printable():
    assert printable("tab\t and\nline") == "tab\t and\nline"
    assert printable("\x1b[2J\r\x00\x9b31m\u202eabc\x7f") == r"\x1b[2J\r\x00\x9b31m\u202eabc\x7f"
