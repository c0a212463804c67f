"""Precision, recall and F1 from counts [..., 3, classes]: found rightly, found, there to be found.

A class that is neither found nor there to be found is left out of macro averages, and what would be 0 / 0 is 0: so
do conlleval, scikit-learn and seqeval, the latter two with a warning.
"""

from __future__ import annotations

import numpy as np


def macro(counts: np.ndarray) -> np.ndarray:
    """The mean of the classes' F1: [..., 3, classes] → [...]."""
    occurs = counts[..., 1, :] + counts[..., 2, :] > 0
    return _quotient(f1(counts).sum(-1), occurs.sum(-1))


def micro(counts: np.ndarray) -> np.ndarray:
    """F1 of all classes' counts together: [..., 3, classes] → [...]."""
    return f1(counts.sum(-1, keepdims=True))[..., 0]


def precision(counts: np.ndarray) -> np.ndarray:
    """Of what is found, what is right, over all classes together: [..., 3, classes] → [...]."""
    return _quotient(counts[..., 0, :].sum(-1), counts[..., 1, :].sum(-1))


def recall(counts: np.ndarray) -> np.ndarray:
    """Of what is there, what is found, over all classes together: [..., 3, classes] → [...]."""
    return _quotient(counts[..., 0, :].sum(-1), counts[..., 2, :].sum(-1))


def f1(counts: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and recall of each class: [..., 3, classes] → [..., classes]."""
    return _quotient(2 * counts[..., 0, :], counts[..., 1, :] + counts[..., 2, :])


def by_class(sums: np.ndarray) -> np.ndarray:
    """Sums [..., 3 * classes] as counts [..., 3, classes]."""
    return sums.reshape(*sums.shape[:-1], 3, -1)


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
