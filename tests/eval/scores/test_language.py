"""Perplexity by hand; the text's own words count, not those of the text the model saw."""

import math

import pytest

from data.cache import count_words
from data.detokenize import detokenize
from eval.evaluators import measures
from eval.scores import score, word_perplexity
from train.config import UserError

pytestmark = pytest.mark.filterwarnings("error")


def test_by_hand():
    nats, words = [2 * math.log(10), math.log(10)], [2, 1]
    assert word_perplexity(nats, words).value == pytest.approx(10)


def test_equal_to_the_evaluator_of_a_whole_text():
    nats, words = [812.5, 90.25, 0.0], [100, 13, 0]
    whole = measures(sum(nats), 1, num_words=sum(words))
    assert word_perplexity(nats, words).value == pytest.approx(whole["word_perplexity"])


def test_words_are_those_of_the_original():
    original = " Teddy 's Story , a two @-@ part episode . \n"
    assert count_words(original) == 11 > count_words(detokenize(original, "wikitext"))


def test_an_empty_corpus_has_no_perplexity():
    assert math.isnan(score(word_perplexity([0.0], [0])).value)


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="nats must not be negative, but document 1 has -2"):
        word_perplexity([1, -2], [1, 1])
    with pytest.raises(UserError, match="1 predictions do not go with 2"):
        word_perplexity([1], [1, 2])
