"""Equal to scikit-learn and SciPy, on the examples and on every resample of them."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scores import (
    accuracy,
    calibration_error,
    class_f1,
    confidences,
    confusion_matrix,
    macro_f1,
    matthews,
    micro_f1,
    pearson,
    score,
    spearman,
)
from eval.scores.pictures import draw_confusion_matrix, draw_reliability
from train.config import UserError

pytestmark = pytest.mark.filterwarnings("error")
reference = pytest.importorskip("sklearn.metrics", reason="needs the eval extra")
stats = pytest.importorskip("scipy.stats")

LABEL_PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=12)
# Few values, so that there are ties and constants.
NUMBER_PAIRS = st.lists(st.tuples(st.sampled_from([0.1, 0.7, -2.0, 3e5]), st.integers(0, 3)), min_size=2, max_size=12)

OF_LABELS = [
    (accuracy, reference.accuracy_score),
    (macro_f1, lambda actual, predicted: reference.f1_score(actual, predicted, average="macro")),
    (micro_f1, lambda actual, predicted: reference.f1_score(actual, predicted, average="micro")),
    (matthews, reference.matthews_corrcoef),
]


def repeated(values, counts):
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]


def check_on_resamples(measure, expected, predictions, references):
    """The measure of a resample is the reference's score of the resampled lists."""
    n = len(references)
    counts = np.random.default_rng(0).multinomial(n, np.ones(n) / n, size=4)
    counts[0] = 1
    for row, value in zip(counts, measure.values(counts.astype(float)), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            right = expected(repeated(references, row), repeated(predictions, row))
        assert value == pytest.approx(right, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("ours, theirs", OF_LABELS)
@settings(max_examples=25, deadline=None)
@given(pairs=LABEL_PAIRS)
def test_class_scores_equal_scikit_learn(ours, theirs, pairs):
    predictions, references = map(list, zip(*pairs, strict=True))
    check_on_resamples(ours(predictions, references), theirs, predictions, references)


@settings(max_examples=25, deadline=None)
@given(pairs=LABEL_PAIRS)
def test_f1_of_a_class_equals_scikit_learn(pairs):
    predictions, references = map(list, zip(*pairs, strict=True))

    def binary(actual, predicted):
        return reference.f1_score([label == "a" for label in actual], [label == "a" for label in predicted])

    check_on_resamples(class_f1(predictions, references, "a"), binary, predictions, references)
    by_class = [class_f1(predictions, references, label).value for label in {*predictions, *references}]
    assert np.mean(by_class) == pytest.approx(macro_f1(predictions, references).value)


def correlation(function):
    def expected(actual, predicted):
        return function(predicted, actual).statistic if len(set(actual)) > 1 < len(set(predicted)) else math.nan

    return expected


@pytest.mark.parametrize("ours, theirs", [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
@settings(max_examples=40, deadline=None)
@given(pairs=NUMBER_PAIRS)
def test_correlations_equal_scipy(ours, theirs, pairs):
    predictions, references = map(list, zip(*pairs, strict=True))
    check_on_resamples(ours(predictions, references), correlation(theirs), predictions, references)


def test_correlations_do_not_depend_on_scale():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 50))
    for ours in (pearson, spearman):
        assert ours(1e8 + 1e-3 * x, y).value == pytest.approx(ours(x, y).value, abs=1e-4)
        assert ours(x, x).value == pytest.approx(1) and ours(-x, x).value == pytest.approx(-1)


def test_one_class_and_constant_predictions():
    assert matthews(["a", "a"], ["a", "a"]).value == 0
    assert matthews([0, 0, 0], [0, 1, 0]).value == 0
    assert score(macro_f1([1], [1])).value == 1
    assert class_f1(["no"], ["no"], "yes").value == 0
    assert math.isnan(pearson([0.1] * 7, list(range(7))).value) and math.isnan(spearman([2], [3]).value)


def test_confusion_matrix_equals_scikit_learn():
    generator = np.random.default_rng(0)
    predictions, references = generator.integers(0, 5, (2, 200)).tolist()
    labels, matrix = confusion_matrix(predictions, references)
    np.testing.assert_array_equal(matrix, reference.confusion_matrix(references, predictions))
    assert labels == [0, 1, 2, 3, 4]


def test_calibration_error_by_hand():
    # Bins of 15: (0.93, 1] holds three, 2/3 right at a mean confidence of 0.97; (0.53, 0.6] holds one, wrong.
    measure = calibration_error([0.95, 0.96, 1.0, 0.6], [True, False, True, False])
    assert measure.value == pytest.approx(3 / 4 * abs(2 / 3 - 0.97) + 1 / 4 * 0.6)
    assert not measure.higher_is_better


def test_calibration_error_from_probabilities_equals_a_loop_over_bins():
    generator = np.random.default_rng(0)
    probabilities, references = generator.dirichlet(np.ones(4), 500), generator.integers(0, 4, 500)
    confidence, correct = confidences(probabilities, references)
    error = 0.0
    for low in np.linspace(0, 1, 16)[:-1]:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    measure = calibration_error(confidence, correct)
    assert measure.value == pytest.approx(error, rel=1e-9)
    result = score(measure)
    assert result.low < result.value < result.high


def test_a_calibrated_model_has_no_calibration_error():
    confidence = np.repeat([0.5, 0.9], 1000)
    correct = np.r_[np.arange(1000) < 500, np.arange(1000) < 900]
    assert calibration_error(confidence, correct).value == pytest.approx(0, abs=1e-12)
    assert calibration_error([0.0, 1.0], [False, True]).value == 0


def test_pictures_are_written_whatever_the_labels(tmp_path, capfd):
    labels = ["体育", "a$b$", "🙂", "ordinary", ""]
    draw_confusion_matrix(labels * 3, labels[::-1] * 3, tmp_path / "confusion.png")
    draw_confusion_matrix(list(range(40)), list(range(40)), tmp_path / "many.png")
    draw_reliability([0.2, 0.9, 1.0], [False, True, True], tmp_path / "reliability.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 2000
    assert len(list(tmp_path.iterdir())) == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: accuracy(["a"], ["a", "b"]), "accuracy: 1 predictions do not go with 2 references"),
        (lambda: macro_f1([1, 0], ["1", "0"]), "classes must be all text or all whole numbers, not int, str"),
        (lambda: accuracy([], []), "accuracy: there are no examples"),
        (lambda: pearson(["x"], [1]), "pearson: predictions must be numbers"),
        (lambda: spearman([1, math.nan], [1, 2]), "spearman: predictions must be finite, but example 1 has nan"),
        (lambda: calibration_error([1.5], [True]), "from 0 to 1, but example 0 has 1.5"),
        (lambda: confidences([0.5, 0.5], [1, 0]), r"must be \[examples, classes\]"),
    ],
)
def test_mistakes_are_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        call()
    assert len(caught.value.problems) == 1
