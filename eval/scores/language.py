"""Scores of language models: of the nats that each document costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.scores.inputs import numbers, same_length
from eval.scores.measure import Measure, ratio
from train.config import UserError


def word_perplexity(nats: Sequence[float], words: Sequence[int]) -> Measure:
    """exp(nats / words) of a corpus, from both of each document.

    So it compares between tokenizers, if the words are those of the text as it was published, before any
    `data.detokenize`: what stands between white space, plus one per line end (`data.cache.count_words`).
    """
    protocol = "exp(nats / words); words of the original text, each line end one; resampled by document"
    same_length("word_perplexity", nats, words)
    columns = {"nats": nats, "words": words}
    statistics = np.column_stack([numbers(f"word_perplexity: {name}", column) for name, column in columns.items()])
    for name, column in zip(columns, statistics.T, strict=True):
        if (column < 0).any():
            i = int(np.argmax(column < 0))
            raise UserError(f"word_perplexity: {name} must not be negative, but document {i} has {column[i]:g}")
    return Measure("word_perplexity", protocol, statistics, lambda sums: np.exp(ratio(sums)), higher_is_better=False)
