"""From the scores of first and last tokens to the text of an answer, over the windows of a long context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Window:
    """The part of a context that one example holds.

    first: number of its first token among the tokens of the context.
    starts, ends: float [tokens], logits of being the first and the last token of the answer.
    null: the sum of both logits at the first token of the row, which stands for "no answer here".
    """

    first: int
    starts: np.ndarray
    ends: np.ndarray
    null: float


class Span(NamedTuple):
    """First and last token of the context, and the sum of their logits."""

    first: int
    last: int
    score: float


def best_span(windows: Sequence[Window], max_length: int) -> Span:
    """The span of at most `max_length` tokens with the highest sum of logits (Devlin et al. 2019, section 4.2).

    All spans within a window are compared, not only those of some best starts and ends. A token that several
    windows hold can start an answer only in the one that shows it with the most context. Among equals the earliest
    and shortest span is taken. Windows without tokens have no span; there must be one that has.
    """
    owner = _windows_of_most_context(windows)
    best = Span(0, 0, -np.inf)
    for number, window in enumerate(windows):
        size = len(window.starts)
        places = owner[window.first : window.first + size]
        starts = np.where(places == number, window.starts.astype(np.float64), -np.inf)
        for extra in range(min(max_length, size)):
            scores = starts[: size - extra] + window.ends[extra:]
            first = int(scores.argmax())
            if scores[first] > best.score:
                best = Span(window.first + first, window.first + first + extra, float(scores[first]))
    return best


def no_answer_score(windows: Sequence[Window]) -> float:
    """The lowest score of "no answer here": one window that has an answer is enough (BERT's rule for SQuAD 2.0)."""
    return min(window.null for window in windows)


def _windows_of_most_context(windows: Sequence[Window]) -> np.ndarray:
    """Token of the context → number of the window that shows it best, by BERT's rule: int [tokens of the context].

    The context of a token is the smaller of what stands before and after it in the window, and a hundredth of
    the window's length decides between equals, then the earlier window.
    """
    total = max((window.first + len(window.starts) for window in windows), default=0)
    most, owner = np.full(total, -np.inf), np.full(total, -1)
    for number, window in enumerate(windows):
        size = len(window.starts)
        places = np.arange(size)
        context = np.minimum(places, size - 1 - places) + 0.01 * size
        part = slice(window.first, window.first + size)
        is_better = context > most[part]
        most[part] = np.where(is_better, context, most[part])
        owner[part] = np.where(is_better, number, owner[part])
    return owner
