"""From a task's predictions to its scores. Nothing else is needed, so stored predictions can be scored again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data.task_config import Classification, Dialogue, Regression, SpanAnswering, Tagging, Task, TextToText
from eval.scores import answers, classification, diversity, entities, language, text
from eval.scores.measure import Measure, mean, ratio

_WORDS = "words between white space, a Chinese character is one"

Prediction = dict[str, Any]
"""What was asked and what came out of one record, as JSON has it; which fields there are, `predictions.py` says."""


def measures(objective: Task, predictions: Sequence[Prediction]) -> list[Measure]:
    """The scores of a task, the most important first. Raises UserError where there is nothing to score."""
    predicted = [prediction.get("predicted") for prediction in predictions]
    expected = [prediction.get("expected") for prediction in predictions]
    match objective:
        case Classification():
            return _of_labels(objective, predictions, predicted, expected)
        case Regression():
            squares = np.square(np.subtract(predicted, expected))
            error = mean("squared_error", squares, "mean squared error", higher_is_better=False)
            return [classification.pearson(predicted, expected), classification.spearman(predicted, expected), error]
        case Tagging():
            sides = [[{tuple(span) for span in spans} for spans in side] for side in (predicted, expected)]
            total = [entities.entity_f1, entities.entity_precision, entities.entity_recall, entities.entity_macro_f1]
            return [measure(*sides) for measure in total] + [*entities.entity_f1_by_type(*sides).values()]
        case SpanAnswering(language="chinese"):
            kinds = {"exact_match": answers.cmrc_exact_match, "f1": answers.cmrc_f1}
            return [replace(kind(predicted, expected), name=name) for name, kind in kinds.items()]
        case SpanAnswering():
            version = "2.0" if objective.may_have_no_answer else "1.1"
            kinds = {"exact_match": answers.squad_exact_match, "f1": answers.squad_f1}
            return [replace(kind(predicted, expected, version=version), name=name) for name, kind in kinds.items()]
        case TextToText():
            return _of_texts(objective, predicted, expected)
        case Dialogue():
            return _of_replies(predictions)


def _of_labels(
    objective: Classification, predictions: Sequence[Prediction], predicted: list[str], expected: list[str]
) -> list[Measure]:
    found = [classification.accuracy(predicted, expected)]
    if len(objective.labels) == 2:
        found.append(replace(classification.class_f1(predicted, expected, objective.labels[-1]), name="f1"))
    found += [
        classification.macro_f1(predicted, expected),
        classification.micro_f1(predicted, expected),
        classification.matthews(predicted, expected),
    ]
    if all("probabilities" in prediction for prediction in predictions):  # a baseline may have none
        found.append(classification.calibration_error(*confidences(objective, predictions)))
    return found


def confidences(objective: Classification, predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each predicted label, and whether it is the right one."""
    probabilities = [[prediction["probabilities"][label] for label in objective.labels] for prediction in predictions]
    right = [objective.labels.index(prediction["expected"]) for prediction in predictions]
    return classification.confidences(np.array(probabilities).reshape(-1, len(objective.labels)), right)


def _of_texts(objective: TextToText, predicted: list[str], expected: list[list[str]]) -> list[Measure]:
    is_chinese = objective.language == "chinese"
    units = "characters" if is_chinese else "words"
    found: list[Measure] = []
    for name in objective.scores:
        match name:
            case "bleu":
                found.append(text.bleu(predicted, expected, tokenize="zh" if is_chinese else "13a"))
            case "compound_split_bleu":
                found.append(text.compound_split_bleu(predicted, expected))
            case "chrf":
                found.append(text.chrf(predicted, expected))
            case "rouge":
                tokens = "stems" if objective.language == "english" else units
                kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
                found += [text.rouge(predicted, expected, kind=kind, tokenize=tokens) for kind in kinds]
            case "exact_match":
                found.append(text.exact_match(predicted, expected))
            case "token_f1":
                found.append(text.token_f1(predicted, expected, tokenize=units))
            case "accuracy":
                right = [answer in right for answer, right in zip(predicted, expected, strict=True)]
                found.append(mean("accuracy", right, "fraction right; any text that is no label is wrong"))
            case "distinct":
                found += _variety(predicted)
    return found


# Chinese and Japanese characters, which nothing separates, are words by themselves.
_CHINESE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHINESE}]|[^\s{_CHINESE}]+")


def words(text: str) -> list[str]:
    """What stands between white space; of Chinese, the characters."""
    return _WORD.findall(text)


def _of_replies(predictions: Sequence[Prediction]) -> list[Measure]:
    nats, counts = ([prediction[name] for prediction in predictions] for name in ("nats", "words"))
    sums = np.array([[prediction["nats"], prediction["tokens"]] for prediction in predictions], np.float64)
    protocol = "exp(nats / tokens) of the turns that are learned, their ends among the tokens"
    per_token = Measure("perplexity", protocol, sums, lambda sums: np.exp(ratio(sums)), higher_is_better=False)
    per_word = replace(language.word_perplexity(nats, counts), protocol=f"exp(nats / words) of the same; {_WORDS}")
    found = [per_token, per_word]
    replies = [reply for prediction in predictions if (reply := prediction.get("predicted")) is not None]
    return found + (_variety(replies) if replies else [])


def _variety(texts: Sequence[str]) -> list[Measure]:
    tokens = [words(text) for text in texts]
    found = [diversity.distinct(tokens, 1), diversity.distinct(tokens, 2), diversity.repetition(tokens)]
    return [replace(measure, protocol=f"{measure.protocol}; {_WORDS}") for measure in found]
