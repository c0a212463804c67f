"""Scores of how varied generated text is, from its tokens: words, characters or ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain

import numpy as np

from eval.scores.measure import Measure, linearized, mean
from train.config import UserError

Tokens = Sequence[Hashable]


def distinct(predictions: Sequence[Tokens], n: int) -> Measure:
    """Distinct-n (Li et al. 2016, section 5.2): different n-grams of all texts over their number of tokens.

    Undefined where there is no token. It falls as there is more text, so it compares only between systems that
    answer the same prompts.
    """
    sets = [set(text) for text in _ngrams(predictions, n)]
    holders = Counter(chain.from_iterable(sets))
    tokens = np.array([len(text) for text in predictions], float)
    only_here = np.array([sum(holders[ngram] == 1 for ngram in ngrams) for ngrams in sets], float)
    with np.errstate(invalid="ignore"):
        value = np.float64(len(holders)) / tokens.sum()
        without = (len(holders) - only_here) / (tokens.sum() - tokens)
    return linearized(f"distinct_{n}", value, without, f"different {n}-grams of all texts / their tokens")


def repetition(predictions: Sequence[Tokens], n: int = 4) -> Measure:
    """seq-rep-n (Welleck et al. 2020, section 6): the mean over texts of 1 - different n-grams / n-grams.

    A text without an n-gram repeats nothing: 0.
    """
    values = [1 - len(set(text)) / len(text) if text else 0.0 for text in _ngrams(predictions, n)]
    protocol = f"1 - different {n}-grams / {n}-grams, mean over texts, 0 for texts of less than {n} tokens"
    return mean(f"repetition_{n}", values, protocol, higher_is_better=False)


def _ngrams(texts: Sequence[Tokens], n: int) -> list[list[tuple]]:
    if n < 1:
        raise UserError(f"n-grams have at least 1 token, not {n}")
    for i, text in enumerate(texts):
        if isinstance(text, str):
            raise UserError(f"text {i} must be a list of tokens, such as its words, not a string")
    return [[tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for text in texts]
