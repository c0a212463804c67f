"""A score with its interval, and two systems compared, by resampling examples (Efron 1979; Koehn 2004)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from train.config import UserError

_MOST_CELLS = 1 << 21  # of one block of resamples: 16 MB of counts


@dataclass(frozen=True)
class Measure:
    """What a score is computed from: one row of statistics per example.

    The score of any multiset of the examples is `combine` of the sum of their rows. A score that is no function of
    sums, such as a rank correlation, has `one_hot(examples)` as its statistics: their sum says how often each example
    is there.

    Attributes:
      name: of the score, such as "accuracy" or "rouge2".
      protocol: library and version or signature, normalization, averaging, unit.
      statistics: float64 [examples, k], dense or sparse.
      combine: sums [resamples, k] → values [resamples]; nan where the score is undefined.
      higher_is_better: whether the larger of two values is the better one.
    """

    name: str
    protocol: str
    statistics: np.ndarray | sparse.sparray
    combine: Callable[[np.ndarray], np.ndarray]
    higher_is_better: bool = True

    def __post_init__(self):
        if not self.examples:
            raise UserError(f"{self.name}: there are no examples to score")

    @property
    def examples(self) -> int:
        return self.statistics.shape[0]

    def values(self, counts: np.ndarray) -> np.ndarray:
        """The score [resamples] of resamples that hold each example `counts` [resamples, examples] times."""
        with np.errstate(all="ignore"):
            return np.asarray(self.combine(counts @ self.statistics), np.float64)

    @property
    def value(self) -> float:
        """The score of the examples themselves."""
        return float(self.values(np.ones((1, self.examples)))[0])


@dataclass(frozen=True)
class Score:
    """A value with its interval. `low` and `high` are nan where the value is."""

    name: str
    value: float
    low: float
    high: float
    protocol: str
    examples: int

    def as_json(self) -> dict[str, Any]:
        """The fields, None in place of what is not finite."""
        return _as_json(self)


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same examples.

    Attributes:
      first, second: the values of each; difference: first - second, with its interval `low` to `high`.
      p_value: how often a difference as large as this would come of the choice of examples alone (two-sided).
      better: the system that is, or "neither" where the p-value is above 1 - confidence.
    """

    name: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    better: Literal["first", "second", "neither"]
    protocol: str
    examples: int

    def as_json(self) -> dict[str, Any]:
        """The fields, None in place of what is not finite."""
        return _as_json(self)


def score(measure: Measure, *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95) -> Score:
    """The score with its percentile bootstrap interval over examples."""
    _check(resamples, confidence)
    value = measure.value
    draws = np.concatenate([measure.values(counts) for counts in _resampled(measure.examples, resamples, seed)])
    low, high = _interval(draws, value, confidence)
    protocol = f"{measure.protocol}; {_bootstrap(resamples, seed, confidence)}{_undefined(draws, value)}"
    return Score(measure.name, value, low, high, protocol, measure.examples)


def compare(
    first: Measure, second: Measure, *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Paired bootstrap: both systems are scored on the same resamples (Koehn 2004, section 3).

    The p-value is that of Riezler & Maxwell 2005 (section 3): resampled differences are moved to the mean 0, and
    those at least as far from 0 as the observed one are counted, together with the observed one. Raises UserError
    unless both are the same score of the same number of examples by the same protocol.
    """
    _check(resamples, confidence)
    for what in ("name", "protocol", "examples"):
        a, b = getattr(first, what), getattr(second, what)
        if a != b:
            raise UserError(f"two systems can be compared by the same {what} only, not by {a!r} and {b!r}")
    difference = first.value - second.value
    blocks = _resampled(first.examples, resamples, seed)
    draws = np.concatenate([first.values(counts) - second.values(counts) for counts in blocks])
    low, high = _interval(draws, difference, confidence)
    p_value = math.nan
    defined = draws[np.isfinite(draws)]
    if math.isfinite(difference) and len(defined):
        slack = 1e-12 * (abs(first.value) + abs(second.value))  # rounding must not make a tie a difference
        as_far = np.abs(defined - defined.mean()) >= abs(difference) - slack
        p_value = (1 + int(np.count_nonzero(as_far))) / (1 + len(defined))
    better = "neither"
    if p_value <= 1 - confidence:
        better = "first" if (difference > 0) == first.higher_is_better else "second"
    protocol = f"{first.protocol}; paired {_bootstrap(resamples, seed, confidence)}{_undefined(draws, difference)}"
    return Comparison(
        first.name, first.value, second.value, difference, low, high, p_value, better, protocol, first.examples
    )


def mean(name: str, values: Sequence[float], protocol: str, *, higher_is_better: bool = True) -> Measure:
    """The mean of one value per example."""
    statistics = np.column_stack([np.asarray(values, np.float64), np.ones(len(values))])
    return Measure(name, protocol, statistics, ratio, higher_is_better)


def linearized(
    name: str, value: float, without: np.ndarray, protocol: str, *, higher_is_better: bool = True
) -> Measure:
    """A score that repeating an example changes, so that resamples of the examples would be biased.

    What is resampled is the influence of each example instead, the pseudo-values of the jackknife (Efron & Tibshirani
    1993, section 11.5), whose mean is moved to `value`.

    Args:
      value: the score of all examples.
      without: float64 [examples], the score when each one is left out.
    """
    without = np.where(np.isfinite(without), without, value)
    values = value + (len(without) - 1) * (np.mean(without) - without) if len(without) else without
    return mean(name, values, f"{protocol}; each example by its jackknife influence", higher_is_better=higher_is_better)


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first sum over the second: [..., 2] → [...]."""
    return sums[..., 0] / sums[..., 1]


def one_hot(examples: int) -> sparse.sparray:
    """The statistics [examples, examples] of a score that needs to know which examples are there, and how often."""
    return sparse.eye_array(examples, format="csr")


def _resampled(examples: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields blocks of counts, float64 [block, examples], of draws with replacement; the same for the same seed."""
    generator = np.random.default_rng(seed)
    block = max(1, _MOST_CELLS // examples)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(examples, size=(rows, examples))
        drawn += examples * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * examples)
        yield counts.reshape(rows, examples).astype(np.float64)


def _interval(draws: np.ndarray, value: float, confidence: float) -> tuple[float, float]:
    defined = draws[~np.isnan(draws)]
    if math.isnan(value) or not len(defined):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    # No interpolation, which two infinite perplexities would turn into nan.
    low, high = np.quantile(defined, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def _bootstrap(resamples: int, seed: int, confidence: float) -> str:
    return f"{confidence:.0%} percentile bootstrap over examples ({resamples} resamples, seed {seed})"


def _undefined(draws: np.ndarray, value: float) -> str:
    if math.isnan(value):
        return "; undefined on these examples"
    undefined = int(np.count_nonzero(np.isnan(draws)))
    return f", {undefined} of them left out as undefined" if undefined else ""


def _check(resamples: int, confidence: float) -> None:
    if resamples < 1:
        raise UserError(f"resamples: must be at least 1, not {resamples}")
    if not 0 < confidence < 1:
        raise UserError(f"confidence: must be between 0 and 1, not {confidence}")


def _as_json(result: Score | Comparison) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(result).items()
    }
