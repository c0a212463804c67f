"""Scores of language models: of the nats that each document costs."""

from __future__ import annotations

import math
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
    statistics = _per_document("word_perplexity", nats, "words", words)
    return Measure("word_perplexity", protocol, statistics, lambda sums: np.exp(ratio(sums)), higher_is_better=False)


def bits_per_byte(nats: Sequence[float], num_bytes: Sequence[int]) -> Measure:
    """nats / ln 2 / bytes of UTF-8 of a corpus, from both of each document."""
    protocol = "bits per byte of UTF-8 of the original text; resampled by document"
    statistics = _per_document("bits_per_byte", nats, "bytes", num_bytes)
    return Measure(
        "bits_per_byte", protocol, statistics, lambda sums: ratio(sums) / math.log(2), higher_is_better=False
    )


def _per_document(name: str, nats: Sequence[float], unit: str, counts: Sequence[int]) -> np.ndarray:
    """[documents, 2]; a document may be empty."""
    same_length(name, nats, counts)
    columns = [numbers(f"{name}: nats", nats), numbers(f"{name}: {unit}", counts)]
    for what, column in zip(("nats", unit), columns, strict=True):
        if (column < 0).any():
            i = int(np.argmax(column < 0))
            raise UserError(f"{name}: {what} must not be negative, but document {i} has {column[i]:g}")
    return np.column_stack(columns)
