"""What each task asks of a record: which fields, of what form; and the texts that these hold.

`checked` turns the fields, as a file has them, into these:

    classification   text [second_text] label: one of the task's labels
    regression       text [second_text] label: float
    tagging          tokens tags: lists of texts, the tags in the task's learned_scheme
    span_answering   context question answers: list of {"text", "answer_start"}, characters from the context's start
    text_to_text     source target: a list of texts that are all right; the first is learned
    dialogue         turns [system]: see `dialogue.read_turns`

and `id`, where a record has one. Texts have no white space around them, but for a context, whose characters count.
"""

import difflib
import hashlib
import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from data.cleaning import clean
from data.config import Cleaning
from data.dialogue import read_turns
from data.document import DataError
from data.records import Record, as_text
from data.streams import list_names
from data.tagging import convert
from data.task_config import (
    Classification,
    Dialogue,
    Regression,
    SpanAnswering,
    Tagging,
    Task,
    TextToText,
)

_TEXT_PAIR = {"text": True, "second_text": False, "label": True}
_ROLES = {
    "classification": _TEXT_PAIR,
    "regression": _TEXT_PAIR,
    "tagging": {"tokens": True, "tags": True},
    "span_answering": {"context": True, "question": True, "answers": True},
    "text_to_text": {"source": True, "target": True},
    "dialogue": {"turns": True, "system": False},
}


def roles(objective: Task) -> Mapping[str, bool]:
    """Returns the fields of a task's records, and whether a record must have them."""
    return {**_ROLES[objective.kind], "id": False}


def checked(record: Record, objective: Task, cleaning: Cleaning) -> Record:
    """Returns the record with its fields in the form above; raises DataError that says where and what is wrong."""
    try:
        return Record(_CHECKS[type(objective)](record, objective, cleaning), record.origin)
    except DataError as error:
        told = str(error)
        raise error if told.startswith(record.origin) else DataError(f"{record.origin}: {told}") from error


def inputs(record: Record, objective: Task) -> str:
    """Returns what is asked, with case, white space and Unicode normalized: equal for records that leak."""
    fields = record.fields
    if isinstance(objective, Dialogue):
        parts = [f"{turn.role} {turn.text}" for turn in read_turns(record, objective).turns]
    elif isinstance(objective, Tagging):
        parts = fields["tokens"]
    else:
        parts = [fields[name] for name in ("text", "second_text", "context", "question", "source") if name in fields]
    return "\n".join(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in parts)


def is_held_out(record: Record, objective: Task, fraction: float) -> bool:
    """Whether a record is for validation where that has no records of its own: by a hash of its inputs."""
    digest = hashlib.blake2b(inputs(record, objective).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def texts(record: Record, objective: Task) -> list[str]:
    """Returns all that a tokenizer is to know of a record, targets too."""
    fields = record.fields
    if isinstance(objective, Dialogue):
        conversation = read_turns(record, objective)
        return [conversation.system, *(turn.text for turn in conversation.turns)]
    if isinstance(objective, Tagging):
        return [" ".join(fields["tokens"])]
    if isinstance(objective, TextToText):
        targets = [objective.words.get(target, target) for target in fields["target"]]
        return [objective.prefix + fields["source"], *targets]
    return [fields[name] for name in ("text", "second_text", "context", "question") if name in fields]


# Fields


def _filled(value: Any, name: str, cleaning: Cleaning) -> str:
    text = as_text(value, name)
    cleaned = clean(text, cleaning).strip()
    if not cleaned:
        raise DataError(f"{name} is empty" + (" after cleaning" if text else ""))
    return cleaned


def _with_id(record: Record, fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": as_text(record.fields["id"], "id"), **fields} if record.fields.get("id") is not None else fields


def _text_pair(record: Record, cleaning: Cleaning) -> dict[str, Any]:
    names = [name for name in ("text", "second_text") if name in record.fields]
    return {name: _filled(record.fields[name], name, cleaning) for name in names}


def _classification(record: Record, objective: Classification, cleaning: Cleaning) -> dict[str, Any]:
    label = as_text(record.fields["label"], "label")
    if label not in objective.labels:
        near = difflib.get_close_matches(label, objective.labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"the label {label[:40]!r} is none of {list_names(objective.labels)}{hint}")
    return _with_id(record, {**_text_pair(record, cleaning), "label": label})


def _regression(record: Record, objective: Regression, cleaning: Cleaning) -> dict[str, Any]:
    text = as_text(record.fields["label"], "label")
    try:
        label = float(text)
    except ValueError:
        label = math.nan
    if not objective.minimum <= label <= objective.maximum:
        raise DataError(f"the label {text[:40]!r} is no number from {objective.minimum} to {objective.maximum}")
    return _with_id(record, {**_text_pair(record, cleaning), "label": label})


def _tagging(record: Record, objective: Tagging, cleaning: Cleaning) -> dict[str, Any]:
    _no_cleaning(cleaning, objective)
    lists = {name: record.fields[name] for name in ("tokens", "tags")}
    for name, value in lists.items():
        if isinstance(value, str):
            lists[name] = value = value.split()
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise DataError(f"{name} must be a list of texts, and not empty")
    words, tags = lists.values()
    if len(words) != len(tags):
        raise DataError(f"has {len(words)} tokens but {len(tags)} tags")
    unknown = next((tag for tag in tags if tag != "O" and tag.partition("-")[2] not in objective.types), None)
    if unknown is not None:
        raise DataError(f"the tag {unknown[:40]!r} is of none of the types {list_names(objective.types)}")
    return _with_id(record, {"tokens": words, "tags": convert(tags, objective.scheme, objective.learned_scheme)})


def _span_answering(record: Record, objective: SpanAnswering, cleaning: Cleaning) -> dict[str, Any]:
    _no_cleaning(cleaning, objective)
    context, answers = record.fields["context"], record.fields["answers"]
    if not isinstance(context, str) or not context.strip():
        raise DataError("context must be a text, and not empty")
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):  # as Hugging Face's datasets have them
        starts = answers.get("answer_start")
        if not isinstance(starts, list) or len(starts) != len(answers["text"]):
            raise DataError("answers must have as many texts as answer_start")
        answers = [{"text": text, "answer_start": start} for text, start in zip(answers["text"], starts, strict=True)]
    if not isinstance(answers, list):
        raise DataError("answers must be a list of objects with text and answer_start")
    if not answers and not objective.may_have_no_answer:
        raise DataError("there is no answer; set objective.may_have_no_answer if there need not be one")
    found = [_answer(answer, context) for answer in answers]
    question = _filled(record.fields["question"], "question", cleaning)
    return _with_id(record, {"context": context, "question": question, "answers": found})


def _answer(answer: Any, context: str) -> dict[str, Any]:
    """Returns an answer without white space around it."""
    text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (None, None)
    if not isinstance(text, str) or type(start) is not int or not text.strip():
        raise DataError("an answer must be an object with a text that is not empty and answer_start")
    if start < 0 or context[start : start + len(text)] != text:
        at = context.find(text)
        elsewhere = f"; it is at {at}" if at >= 0 else "; it is nowhere in the context"
        raise DataError(f"the answer {text[:40]!r} is not at character {start} of its context{elsewhere}")
    return {"text": text.strip(), "answer_start": start + len(text) - len(text.lstrip())}


def _text_to_text(record: Record, objective: TextToText, cleaning: Cleaning) -> dict[str, Any]:
    target = record.fields["target"]
    targets = target if isinstance(target, list) else [target]
    if not targets:
        raise DataError("target is an empty list")
    source = _filled(record.fields["source"], "source", cleaning)
    return _with_id(record, {"source": source, "target": [_filled(text, "target", cleaning) for text in targets]})


def _dialogue(record: Record, objective: Dialogue, cleaning: Cleaning) -> dict[str, Any]:
    conversation = read_turns(record, objective)
    turns = [
        {"role": turn.role, "content": _filled(turn.text, f"turn {i}", cleaning)}
        for i, turn in enumerate(conversation.turns, 1)
    ]
    if objective.learn == "assistant" and all(turn["role"] != "assistant" for turn in turns):
        raise DataError("the conversation has no turn of the assistant, so there is nothing to learn")
    system = {"system": _filled(conversation.system, "system", cleaning)} if conversation.system else {}
    return _with_id(record, {"turns": turns, **system})


def _no_cleaning(cleaning: Cleaning, objective: Task) -> None:
    if cleaning != Cleaning():
        raise DataError(f"data.cleaning would move the text from under the labels of {objective.kind}; leave it out")


_CHECKS: dict[type, Callable[[Record, Any, Cleaning], dict[str, Any]]] = {
    Classification: _classification,
    Regression: _regression,
    Tagging: _tagging,
    SpanAnswering: _span_answering,
    TextToText: _text_to_text,
    Dialogue: _dialogue,
}
