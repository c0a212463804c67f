"""The part of a run's page about its task: scores with intervals, pictures, and some predictions, right and wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval import results
from eval.text_stream import escaped

_SHOWN = 6  # predictions of each kind
_MOST_CHARACTERS = 600  # of a field
_PICTURES = {"confusion.png": "Confusion matrix", "reliability.png": "Reliability: accuracy over confidence"}


def scores_sections(run: Path) -> Iterator[str]:
    """HTML of the newest evaluation of each split; nothing where none has been made."""
    newest: dict[str, Path] = {}
    found = sorted((run / "evaluation").glob("*/scores.json"), key=lambda path: path.stat().st_mtime)
    for path in found:
        newest[json.loads(path.read_text("utf-8"))["split"]] = path.parent
    for folder in newest.values():
        result, predictions = results.read(folder)
        yield f"<h2>Scores on {escaped(result['split'])}</h2>"
        yield f'<p class="subtitle">{len(predictions):,} records, step {result["step"]:,}{_shared(result)}</p>'
        yield _table(result["scores"])
        pictures = [(folder / name, title) for name, title in _PICTURES.items() if (folder / name).exists()]
        if pictures:
            yield '<div class="panel pictures">'
            yield from (_picture(path, title) for path, title in pictures)
            yield "</div>"
        yield from _examples(predictions)


def _shared(result: results.Result) -> str:
    count = result["overlap with training"]
    return f"; {count:,} of them are in the training data, too" if count else ""


def _table(scores: Sequence[dict[str, Any]]) -> str:
    rows = (
        f"<tr><td>{escaped(s['name'])}</td><td>{results.number(s['value'])}</td>"
        f"<td>{results.number(s['low'])} … {results.number(s['high'])}</td><td>{escaped(s['protocol'])}</td></tr>"
        for s in scores
    )
    head = "<tr><th>score</th><th>value</th><th>95 % interval</th><th>protocol</th></tr>"
    return f'<div class="panel"><table class="scores">\n{head}\n' + "\n".join(rows) + "\n</table></div>"


def _picture(path: Path, title: str) -> str:
    uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{title}" src="{uri}">'


def _examples(predictions: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The first few of each kind; a number or a conversation is neither right nor wrong."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for prediction in predictions:
        kinds.setdefault(_verdict(prediction), []).append(prediction)
    for kind, chosen in sorted(kinds.items()):
        yield f"<details><summary>{kind}: {len(chosen):,}, of which here the first {min(_SHOWN, len(chosen))}</summary>"
        for prediction in chosen[:_SHOWN]:
            rows = (f"<tr><td>{escaped(name)}</td><td>{_field(value)}</td></tr>" for name, value in prediction.items())
            yield '<table class="prediction">\n' + "\n".join(rows) + "\n</table>"
        yield "</details>"


def _verdict(prediction: dict[str, Any]) -> str:
    predicted, expected = prediction.get("predicted"), prediction.get("expected")
    if expected is None or isinstance(expected, float):
        return "Predictions"
    is_list_of_texts = isinstance(expected, list) and isinstance(predicted, str)
    # No expected text at all: the question has no answer, and "" says so.
    is_right = predicted in (expected or [""]) if is_list_of_texts else predicted == expected
    return "Right predictions" if is_right else "Wrong predictions"


def _field(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return escaped(text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …")
