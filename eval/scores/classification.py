"""Scores of classes, numbers and confidences, each as scikit-learn and SciPy compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from eval.scores import f1
from eval.scores.inputs import numbers, same_length
from eval.scores.measure import Measure, linearized, mean, one_hot
from train.config import UserError

Label = str | int
Labels = Sequence[str] | Sequence[int]


def accuracy(predictions: Labels, references: Labels) -> Measure:
    """The fraction of examples whose class is right."""
    _, predicted, actual = _classes("accuracy", predictions, references)
    return mean("accuracy", predicted == actual, "fraction right")


def macro_f1(predictions: Labels, references: Labels) -> Measure:
    """The mean of the classes' F1, over classes that are predicted or right somewhere."""
    return _of_classes("macro_f1", "unweighted mean of the classes' F1", f1.macro, predictions, references)


def micro_f1(predictions: Labels, references: Labels) -> Measure:
    """F1 of all classes' counts together: with one class per example, the accuracy."""
    return _of_classes("micro_f1", "F1 of all classes' counts together", f1.micro, predictions, references)


def class_f1(predictions: Labels, references: Labels, label: Label) -> Measure:
    """F1 of one class against all others: with the positive class, the F1 of MRPC and QQP. 0 where it has no case."""
    _classes("f1", predictions, references)
    predicted, actual = (np.array([other == label for other in labels], float) for labels in (predictions, references))
    statistics = np.column_stack([predicted * actual, predicted, actual])
    return Measure(f"f1[{label}]", f"F1 of class {label}", statistics, lambda sums: f1.micro(f1.by_class(sums)))


def matthews(predictions: Labels, references: Labels) -> Measure:
    """Matthews' correlation for any number of classes (Gorodkin 2004): CoLA's score. 0 where a side has one class."""
    protocol = "Matthews correlation, -1 to 1; 0 where all predictions or all references are one class"
    return _of_classes("matthews", protocol, _matthews, predictions, references)


def pearson(predictions: Sequence[float], references: Sequence[float]) -> Measure:
    """Pearson's correlation; undefined where either side is constant."""
    x, y = _number_pairs("pearson", predictions, references)
    return Measure("pearson", "Pearson correlation", one_hot(len(x)), lambda counts: _correlation(x, y, counts))


def spearman(predictions: Sequence[float], references: Sequence[float]) -> Measure:
    """Spearman's rank correlation, equal values sharing their mean rank; undefined where either side is constant."""
    x, y = _number_pairs("spearman", predictions, references)
    rank_x, rank_y = _ranker(x), _ranker(y)
    return Measure(
        "spearman",
        "Spearman rank correlation, mean ranks for ties",
        one_hot(len(x)),
        lambda counts: _correlation(rank_x(counts), rank_y(counts), counts),
    )


def confusion_matrix(predictions: Labels, references: Labels) -> tuple[list[Label], np.ndarray]:
    """The classes in order, and int [right class, predicted class]: how many examples of one were taken for another."""
    labels, predicted, actual = _classes("confusion_matrix", predictions, references)
    matrix = np.bincount(actual * len(labels) + predicted, minlength=len(labels) ** 2)
    return labels, matrix.reshape(len(labels), len(labels))


def confidences(probabilities: np.ndarray, references: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """From class probabilities [examples, classes]: that of the most likely class, and whether it is the right one."""
    probabilities, right = np.asarray(probabilities, np.float64), np.asarray(references)
    if probabilities.ndim != 2 or right.shape != probabilities.shape[:1]:
        raise UserError(
            f"probabilities must be [examples, classes] with one class number per example, not "
            f"{list(probabilities.shape)} with {list(right.shape)}"
        )
    return probabilities.max(-1), probabilities.argmax(-1) == right


def calibration_error(confidences: Sequence[float], correct: Sequence[bool], *, bins: int = 15) -> Measure:
    """Expected calibration error (Guo et al. 2017, section 2): mean distance of confidence and accuracy over bins."""
    rows = binned_confidences(confidences, correct, bins).toarray()

    def error(sums: np.ndarray) -> np.ndarray:
        count, right, confidence = np.moveaxis(f1.by_class(sums), -2, 0)
        return np.abs(right - confidence).sum(-1) / np.maximum(count.sum(-1), 1)

    total = rows.sum(0)
    protocol = f"expected calibration error, {bins} bins of equal width, closed on the right"
    return linearized("calibration_error", float(error(total)), error(total - rows), protocol, higher_is_better=False)


def binned_confidences(confidences: Sequence[float], correct: Sequence[bool], bins: int) -> sparse.sparray:
    """[examples, 3 * bins]: in the bin of each example's confidence a 1, whether it is correct, and the confidence."""
    same_length("calibration_error", confidences, correct)
    confidence, right = numbers("confidences", confidences), np.asarray(correct, np.float64)
    outside = np.flatnonzero((confidence < 0) | (confidence > 1))
    if len(outside):
        raise UserError(f"confidences must be from 0 to 1, but example {outside[0]} has {confidence[outside[0]]}")
    place = np.maximum(np.searchsorted(np.linspace(0, 1, bins + 1), confidence) - 1, 0)
    return _sparse([place, bins + place, 2 * bins + place], [np.ones(len(place)), right, confidence], 3 * bins)


def _classes(name: str, predictions: Labels, references: Labels) -> tuple[list[Label], np.ndarray, np.ndarray]:
    """The classes in order, and the number of each prediction and each reference among them."""
    same_length(name, predictions, references)
    found = {*predictions, *references}
    if not any(all(isinstance(label, kind) for label in found) for kind in (str, int | np.integer)):
        kinds = sorted({type(label).__name__ for label in found})
        raise UserError(f"{name}: classes must be all text or all whole numbers, not {', '.join(kinds)}")
    labels = sorted(found)
    number = {label: i for i, label in enumerate(labels)}
    predicted, actual = (np.array([number[label] for label in side], int) for side in (predictions, references))
    return labels, predicted, actual


def _of_classes(name: str, protocol: str, combine: Callable, predictions: Labels, references: Labels) -> Measure:
    """A score of counts [..., 3, classes]: rightly predicted, predicted, right."""
    labels, predicted, actual = _classes(name, predictions, references)
    columns = [actual, len(labels) + predicted, 2 * len(labels) + actual]
    ones = np.ones(len(actual))
    statistics = _sparse(columns, [(predicted == actual).astype(float), ones, ones], 3 * len(labels))
    return Measure(name, protocol, statistics, lambda sums: combine(f1.by_class(sums)))


def _sparse(columns: list[np.ndarray], values: list[np.ndarray], width: int) -> sparse.sparray:
    """[examples, width] with some values per row, each array holding one of every row."""
    rows = np.tile(np.arange(len(columns[0])), len(columns))
    entries = (np.concatenate(values), (rows, np.concatenate(columns)))
    return sparse.coo_array(entries, shape=(len(columns[0]), width)).tocsr()


def _matthews(counts: np.ndarray) -> np.ndarray:
    right, predicted, actual = np.moveaxis(counts, -2, 0)
    total = actual.sum(-1)
    covariance = right.sum(-1) * total - (predicted * actual).sum(-1)
    variances = (total**2 - (predicted**2).sum(-1)) * (total**2 - (actual**2).sum(-1))
    return np.where(variances > 0, covariance / np.sqrt(np.maximum(variances, 1)), 0.0)


def _number_pairs(name: str, predictions: Sequence[float], references: Sequence[float]) -> tuple[np.ndarray, ...]:
    same_length(name, predictions, references)
    return numbers(f"{name}: predictions", predictions), numbers(f"{name}: references", references)


def _correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's correlation [resamples] of x and y, [examples] or [resamples, examples], under counts; or nan."""
    total = counts.sum(-1, keepdims=True)
    constant = np.zeros(len(counts), bool)
    deviations = []
    for side in (x, y):
        side = np.broadcast_to(side, counts.shape)
        # Seen without the mean, whose rounding would leave a constant some variance.
        present = np.take_along_axis(side, counts.argmax(-1)[:, None], -1)
        constant |= ((counts == 0) | (side == present)).all(-1)
        deviations.append(side - (counts * side).sum(-1, keepdims=True) / total)
    dx, dy = deviations
    scale = np.sqrt((counts * dx**2).sum(-1)) * np.sqrt((counts * dy**2).sum(-1))
    return np.where(constant, np.nan, np.clip((counts * dx * dy).sum(-1) / scale, -1, 1))


def _ranker(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from counts [resamples, examples] to the rank of each example's value in each resample."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0][: len(order)])
    group = np.empty(len(values), int)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))

    def ranks(counts: np.ndarray) -> np.ndarray:
        equal = np.add.reduceat(counts[:, order], starts, axis=-1)
        return (np.cumsum(equal, -1) - (equal - 1) / 2)[:, group]

    return ranks
