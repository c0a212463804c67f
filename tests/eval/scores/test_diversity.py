"""Counts by hand, and by a loop over resamples."""

import math

import numpy as np
import pytest

from eval.scores import distinct, repetition, score
from train.config import UserError

pytestmark = pytest.mark.filterwarnings("error")


def test_by_hand():
    texts = ["a b a b".split(), "a c".split(), []]
    assert distinct(texts, 1).value == pytest.approx(3 / 6)
    assert distinct(texts, 2).value == pytest.approx(3 / 6)  # ab, ba, ac over tokens
    assert repetition(["a b a b a".split(), "a b c".split(), []], 2).value == pytest.approx((1 - 2 / 4) / 3)
    assert repetition([[7] * 10]).value == pytest.approx(1 - 1 / 7)
    assert not repetition([[1, 2]]).higher_is_better


def test_leaving_a_text_out_is_counted_right():
    """The influence of a text is what the score loses without it, by counting again."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 6, generator.integers(1, 7)).tolist() for _ in range(12)]
    whole = distinct(texts, 2)
    without = np.array([distinct(texts[:i] + texts[i + 1 :], 2).value for i in range(12)])
    assert whole.value == pytest.approx(
        len({pair for text in texts for pair in zip(text, text[1:], strict=False)}) / sum(map(len, texts))
    )
    influence = whole.statistics[:, 0]
    np.testing.assert_allclose(influence, whole.value + 11 * (without.mean() - without))


def test_nothing_said_is_neither_varied_nor_repetitive():
    assert math.isnan(score(distinct([[], []], 1)).value)
    assert score(repetition([[], ["a"]])).value == 0


def test_characters_and_ids_are_tokens_too_but_a_string_is_a_mistake():
    assert distinct([list("好好学习")], 1).value == 0.75
    with pytest.raises(UserError, match="text 1 must be a list of tokens"):
        distinct([["a"], "a b"], 1)
    with pytest.raises(UserError, match="at least 1 token, not 0"):
        repetition([["a"]], 0)
    with pytest.raises(UserError, match="there are no examples"):
        distinct([], 1)
