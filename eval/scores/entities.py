"""Scores of entities: spans of a type that are right only as a whole, as conlleval counts (Tjong Kim Sang 2003)."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import numpy as np

from eval.scores import f1
from eval.scores.inputs import same_length
from eval.scores.measure import Measure

Spans = Sequence[Set[tuple[str, int, int]]]
"""(type, start, end) of each sentence, as `data.tagging.spans_from_tags` gives them."""


def entity_f1(predictions: Spans, references: Spans) -> Measure:
    """F1 over the entities of all types together: the score of CoNLL-2003. 0 where there is no entity at all."""
    return _measure("entity_f1", "F1 over entities of all types together", f1.micro, predictions, references)


def entity_precision(predictions: Spans, references: Spans) -> Measure:
    """The fraction of the predicted entities that are right; 0 where none is predicted."""
    return _measure("entity_precision", "right of predicted entities", f1.precision, predictions, references)


def entity_recall(predictions: Spans, references: Spans) -> Measure:
    """The fraction of the entities that are found; 0 where there is none."""
    return _measure("entity_recall", "found of the references' entities", f1.recall, predictions, references)


def entity_macro_f1(predictions: Spans, references: Spans) -> Measure:
    """The mean of the types' F1, over types that occur on either side."""
    return _measure("entity_macro_f1", "unweighted mean of the types' F1", f1.macro, predictions, references)


def entity_f1_by_type(predictions: Spans, references: Spans) -> dict[str, Measure]:
    """F1 of each type that occurs on either side."""

    def of_type(kind: str) -> Measure:
        sides = ([{span for span in spans if span[0] == kind} for spans in side] for side in (predictions, references))
        return _measure(f"entity_f1[{kind}]", f"F1 over entities of type {kind}", f1.micro, *sides)

    return {kind: of_type(kind) for kind in _types(predictions, references)}


def _types(*sides: Spans) -> list[str]:
    return sorted({kind for side in sides for spans in side for kind, _, _ in spans})


def _measure(name: str, protocol: str, combine: Callable, predictions: Spans, references: Spans) -> Measure:
    same_length(name, predictions, references)
    column = {kind: i for i, kind in enumerate(_types(predictions, references) or [""])}
    counts = np.zeros((len(references), 3, len(column)))
    for row, predicted, actual in zip(counts, predictions, references, strict=True):
        predicted, actual = set(predicted), set(actual)
        for i, spans in enumerate((predicted & actual, predicted, actual)):
            for kind, _, _ in spans:
                row[i, column[kind]] += 1
    protocol += ", which are right only if type, start and end are; resampled by sentence"
    statistics = counts.reshape(len(references), 3 * len(column))
    return Measure(name, protocol, statistics, lambda sums: combine(f1.by_class(sums)))
