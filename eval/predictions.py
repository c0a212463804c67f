"""From the outputs of an encoder to predictions: one JSON object a record, whatever examples it was cut into.

    classification   [id] text [second_text] expected predicted probabilities: {label: p}
    regression       [id] text [second_text] expected predicted
    tagging          [id] tokens expected predicted: [[type, start, end], …], words start … end - 1
    span_answering   [id] context question expected: [texts] predicted score [no_answer_score]
    text_to_text     [id] source expected: [texts] predicted score
    dialogue         [id] turns [system] nats tokens words [predicted]

`id`, `second_text` and `system` are there where the record has them. Scores are those of an answer's or a text's own
search and compare only within one model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data.examples import Examples
from data.records import Record
from data.tagging import spans_from_tags
from data.task_config import Classification, Regression, SpanAnswering, Tagging, Task, TextToText, tag_names
from data.task_encoding import Row
from eval.span_answers import Window, best_span, no_answer_score
from eval.task_measures import Prediction

_ASKED = ("id", "text", "second_text", "context", "question", "source", "turns", "system")


def question(record: Record, objective: Task) -> Prediction:
    """The part of a prediction that is the record's: what is asked, and what is expected."""
    fields = record.fields
    found = {name: fields[name] for name in _ASKED if name in fields}
    match objective:
        case Classification() | Regression():
            return found | {"expected": fields["label"]}
        case Tagging():
            spans = spans_from_tags(fields["tags"], objective.learned_scheme)
            return found | {"tokens": fields["tokens"], "expected": [list(span) for span in spans]}
        case SpanAnswering():
            return found | {"expected": [answer["text"] for answer in fields["answers"]]}
        case TextToText():
            return found | {"expected": fields["target"]}
    return found


def asked(prediction: Prediction) -> Prediction:
    """What a stored prediction holds of its record: two systems that were asked the same are equal in it."""
    names = _ASKED if "turns" in prediction else (*_ASKED, "tokens", "expected")  # a conversation's tokens are a count
    return {name: prediction[name] for name in names if name in prediction}


def predictions(examples: Examples, outputs: Mapping[int, np.ndarray]) -> list[Prediction]:
    """The predictions of an encoder's task, in the order of the records.

    Args:
      outputs: example → what the model said of it: probabilities [labels], the estimate [1], the id of the tag of
        each token [tokens], or the logits of first and last [tokens, 2]; there may be more rows, of padding. Records
        of which an example is not there are left out.
    """
    objective = examples.objective
    numbers = np.split(np.arange(len(examples)), np.flatnonzero(np.diff(examples.record_of)) + 1)
    made = []
    for record, own in zip(examples.records, numbers, strict=True):
        if all(number in outputs for number in own):
            rows = [examples.row(number) for number in own]
            answer = _ANSWERS[type(objective)](objective, record, rows, [outputs[number] for number in own])
            made.append(question(record, objective) | answer)
    return made


def _label(objective: Classification, _record: Record, _rows: Sequence[Row], outputs: Sequence[np.ndarray]) -> dict:
    [probabilities] = outputs
    named = dict(zip(objective.labels, probabilities.astype(float).tolist(), strict=True))
    return {"predicted": objective.labels[int(probabilities.argmax())], "probabilities": named}


def _number(objective: Regression, _record: Record, _rows: Sequence[Row], outputs: Sequence[np.ndarray]) -> dict:
    [estimate] = outputs
    return {"predicted": float(np.clip(estimate[0], objective.minimum, objective.maximum))}


def _spans(objective: Tagging, _record: Record, rows: Sequence[Row], outputs: Sequence[np.ndarray]) -> dict:
    """The parts of a sentence that was cut are read as one; ill-formed tags are read as conlleval reads them."""
    parts = [ids[: len(row["words"])][row["words"] >= 0] for row, ids in zip(rows, outputs, strict=True)]
    names = tag_names(objective)
    tags = [names[i] for i in np.concatenate(parts)]
    return {"predicted": [list(span) for span in spans_from_tags(tags, "conlleval")]}


def _span(objective: SpanAnswering, record: Record, rows: Sequence[Row], outputs: Sequence[np.ndarray]) -> dict:
    """The best span of all windows, or "" where "no answer" scores higher and there may be none."""
    windows = []
    starts, ends = {}, {}  # token of the context → character
    for row, logits in zip(rows, outputs, strict=True):
        is_context, first = row["starts"] >= 0, int(row["first"][0])
        scores = logits[: len(is_context)][is_context].astype(np.float64)
        windows.append(Window(first, scores[:, 0], scores[:, 1], float(logits[0].sum())))
        starts |= enumerate(row["starts"][is_context].tolist(), first)
        ends |= enumerate(row["ends"][is_context].tolist(), first)
    best = best_span(windows, objective.max_answer_length)
    answer = {"predicted": record.fields["context"][starts[best.first] : ends[best.last]], "score": best.score}
    if objective.may_have_no_answer:
        answer["no_answer_score"] = no_answer_score(windows)
        if answer["no_answer_score"] > best.score:
            answer["predicted"] = ""
    return answer


_ANSWERS: dict[type, Callable[[Any, Record, Sequence[Row], Sequence[np.ndarray]], dict[str, Any]]] = {
    Classification: _label,
    Regression: _number,
    Tagging: _spans,
    SpanAnswering: _span,
}
