"""Intervals cover, p-values are what they say, the same seed gives the same numbers."""

import json
import math

import numpy as np
import pytest

from eval.scores import Measure, accuracy, compare, distinct, mean, pearson, score, word_perplexity
from eval.scores.measure import linearized, one_hot
from train.config import UserError

pytestmark = pytest.mark.filterwarnings("error")


def coverage(make, truth, draws=400):
    generator = np.random.default_rng(0)
    intervals = [score(make(generator), resamples=300, seed=i) for i in range(draws)]
    return np.mean([result.low <= truth <= result.high for result in intervals])


def test_intervals_of_an_accuracy_cover_it():
    assert 0.92 <= coverage(lambda g: accuracy(list((g.random(200) < 0.8).astype(int)), [1] * 200), 0.8) <= 0.98


def test_intervals_of_a_mean_f1_cover_it():
    # Skewed as F1 is: many 0 and 1, some between.
    def values(generator, size=200):
        return np.clip(generator.normal(0.6, 0.5, size), 0, 1)

    truth = values(np.random.default_rng(1), 2_000_000).mean()
    assert 0.92 <= coverage(lambda g: mean("f1", values(g), ""), truth) <= 0.98


def test_intervals_of_other_widths_cover_as_often_as_they_say():
    generator = np.random.default_rng(0)
    hits = []
    for seed in range(300):
        result = score(mean("x", generator.normal(size=100), ""), resamples=300, seed=seed, confidence=0.5)
        hits.append(result.low <= 0 <= result.high)
    assert 0.4 < np.mean(hits) < 0.6


def test_p_values_are_uniform_where_there_is_no_difference_and_small_where_there_is():
    generator = np.random.default_rng(0)
    null, real = [], []
    for seed in range(300):
        shared, a, b = generator.normal(size=(3, 80))
        first = mean("x", shared + a, "")
        null.append(compare(first, mean("x", shared + b, ""), resamples=200, seed=seed).p_value)
        real.append(compare(first, mean("x", shared + b + 1, ""), resamples=200, seed=seed))
    for level in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(np.array(null) <= level) == pytest.approx(level, abs=0.07)
    assert np.mean([result.p_value < 0.05 for result in real]) > 0.99
    assert {result.better for result in real} <= {"second", "neither"}


def test_a_comparison_pairs_the_examples():
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 10, 300)
    first, second = mean("x", difficulty + 0.1, "p"), mean("x", difficulty, "p")
    result = compare(first, second)
    assert result.low == pytest.approx(0.1) and result.high == pytest.approx(0.1)
    assert result.p_value < 0.01 and result.better == "first"
    assert compare(second, first).better == "second"
    assert score(first).low < score(second).value  # alone, they could not be told apart


def test_a_system_is_not_better_than_itself():
    measure = word_perplexity([3.0, 4.0, 2.5], [1, 2, 1])
    result = compare(measure, measure)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    assert result.better == "neither"


def test_lower_perplexity_is_better():
    words = [10] * 60
    nats = np.random.default_rng(0).normal(50, 2, 60)
    assert compare(word_perplexity(nats, words), word_perplexity(nats + 1, words)).better == "first"


def test_the_same_seed_gives_the_same_numbers_and_large_sets_go_in_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=1000)
    measure = mean("x", values, "")
    once = score(measure, seed=3)
    assert once == score(measure, seed=3)
    assert once != score(measure, seed=4)
    monkeypatch.setattr("eval.scores.measure._MOST_CELLS", 7000)
    blocks = score(measure, seed=3)
    assert (blocks.low, blocks.high) == pytest.approx((once.low, once.high), rel=1e-12)


def test_quantiles_are_those_of_the_resamples():
    measure = Measure("x", "", one_hot(5), lambda counts: counts @ [0, 1, 2, 3, 4])
    draws = np.concatenate([np.random.default_rng(2).integers(5, size=(200, 5)).sum(1)])
    result = score(measure, resamples=200, seed=2, confidence=0.9)
    assert (result.low, result.high) == tuple(np.quantile(draws, [0.05, 0.95], method="nearest"))


def test_intervals_cover_a_score_that_repeated_examples_lower():
    """Resampled texts repeat each other and say less that is distinct, so that plain quantiles would lie below it."""

    def texts(generator):
        return [generator.zipf(1.5, size).clip(max=2000).tolist() for size in generator.integers(5, 15, 60)]

    generator = np.random.default_rng(1)
    truth = np.mean([distinct(texts(generator), 1).value for _ in range(300)])
    assert 0.9 <= coverage(lambda g: distinct(texts(g), 1), truth, draws=200) <= 0.99


def test_a_linearized_mean_is_the_mean():
    values = np.random.default_rng(0).normal(size=50)
    without = (values.sum() - values) / 49
    plain, influence = mean("x", values, ""), linearized("x", values.mean(), without, "")
    assert influence.value == pytest.approx(plain.value)
    one, other = score(plain), score(influence)
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_an_undefined_score_is_nan_says_so_and_is_null_in_json():
    result = score(pearson([1, 1, 1], [1, 2, 3]))
    assert math.isnan(result.value) and math.isnan(result.low) and math.isnan(result.high)
    assert result.protocol.endswith("undefined on these examples")
    assert json.loads(json.dumps(result.as_json(), allow_nan=False))["value"] is None
    assert math.isnan(compare(pearson([1, 1], [1, 2]), pearson([1, 2], [1, 2])).p_value)


def test_resamples_in_which_a_score_is_undefined_are_left_out_and_counted():
    result = score(pearson([1, 2, 3], [1, 2, 4]))
    assert np.isfinite([result.low, result.high]).all()
    assert "of them left out as undefined" in result.protocol


def test_perplexities_beyond_float64_are_infinite():
    result = score(word_perplexity([1e6, 2e6], [1, 1]))
    assert result.value == result.high == math.inf
    assert result.as_json()["value"] is None


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: mean("bleu", [], ""), "bleu: there are no examples"),
        (lambda: compare(mean("x", [1], ""), mean("x", [1, 2], "")), "the same examples only, not by 1 and 2"),
        (lambda: compare(mean("x", [1], ""), mean("y", [1], "")), "the same name only, not by 'x' and 'y'"),
        (lambda: compare(mean("x", [1], "a"), mean("x", [1], "b")), "the same protocol only"),
        (lambda: score(mean("x", [1], ""), resamples=0), "resamples: must be at least 1, not 0"),
        (lambda: score(mean("x", [1], ""), confidence=95), "confidence: must be between 0 and 1, not 95"),
    ],
)
def test_mistakes_are_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        call()
    assert len(caught.value.problems) == 1
