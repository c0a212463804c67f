"""Scores of the field: each a function from predictions and references to a `Measure`, to be scored or compared.

```
result = score(bleu(predictions, references))
print(result.value, result.low, result.high, result.protocol)
compare(bleu(ours, references), bleu(theirs, references)).p_value
```
"""

from eval.scores.answers import cmrc_exact_match, cmrc_f1, squad_exact_match, squad_f1
from eval.scores.classification import (
    accuracy,
    calibration_error,
    class_f1,
    confidences,
    confusion_matrix,
    macro_f1,
    matthews,
    micro_f1,
    pearson,
    spearman,
)
from eval.scores.diversity import distinct, repetition
from eval.scores.entities import entity_f1, entity_f1_by_type, entity_macro_f1, entity_precision, entity_recall
from eval.scores.language import word_perplexity
from eval.scores.measure import Comparison, Measure, Score, compare, mean, score
from eval.scores.text import bleu, chrf, compound_split_bleu, exact_match, rouge, token_f1

__all__ = [
    "Comparison",
    "Measure",
    "Score",
    "accuracy",
    "bleu",
    "calibration_error",
    "chrf",
    "class_f1",
    "cmrc_exact_match",
    "cmrc_f1",
    "compare",
    "compound_split_bleu",
    "confidences",
    "confusion_matrix",
    "distinct",
    "entity_f1",
    "entity_f1_by_type",
    "entity_macro_f1",
    "entity_precision",
    "entity_recall",
    "exact_match",
    "macro_f1",
    "matthews",
    "mean",
    "micro_f1",
    "pearson",
    "repetition",
    "rouge",
    "score",
    "spearman",
    "squad_exact_match",
    "squad_f1",
    "token_f1",
    "word_perplexity",
]
