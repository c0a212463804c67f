"""Words of Chinese text begin where the segmenter says, all other tokens keep their own rule."""

import sys

import numpy as np
import pytest

from data.document import DataError
from data.words import chinese_word_starts


def words(pieces, starts=None):
    flags = chinese_word_starts(pieces, starts)
    assert flags.dtype == bool and len(flags) == len(pieces)
    return ["".join(part) for part in np.split(np.array(pieces, object), np.flatnonzero(flags)[1:])]


@pytest.fixture(autouse=True)
def _segmenter():
    pytest.importorskip("rjieba", reason="needs the chinese extra")


def test_characters_are_joined_to_words():
    assert words(list("我们去北京大学")) == ["我们", "去", "北京大学"]
    assert words(["我", "##们", "去", "北", "##京", "##大", "学"]) == ["我##们", "去", "北##京##大学"]


def test_other_tokens_end_a_run_and_keep_their_rule():
    assert words(["北", "京", "，", "大", "学", "play", "##ing"]) == ["北京", "，", "大学", "play##ing"]
    assert words(["大", "[SEP]", "学"]) == ["大", "[SEP]", "学"]
    own = np.array([True, False, True, False])
    assert words(["▁play", "ing", "▁大", "学"], own) == ["▁playing", "▁大学"]
    assert own.tolist() == [True, False, True, False]


def test_a_space_ends_a_word_and_longer_pieces_are_placed_by_their_first_character():
    assert words(["▁大", "▁学"]) == ["▁大", "▁学"]
    assert words(["▁我们去", "北京", "大学"]) == ["▁我们去", "北京大学"]


def test_the_first_token_begins_a_word():
    assert chinese_word_starts(["##们", "去"]).tolist() == [True, True]
    assert chinese_word_starts([]).tolist() == []


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(DataError, match=r"pip install 'quire\[chinese\]'"):
        chinese_word_starts(["我"])
