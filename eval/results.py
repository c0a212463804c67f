"""What is kept of an evaluation: RUN/evaluation/SPLIT-STEP/ with predictions.jsonl, scores.json and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.storage import write_atomically
from data.task_config import Classification, Task
from eval.task_measures import Prediction, confidences, measures
from model.text_table import aligned

if TYPE_CHECKING:
    from train.run import Run

Result = dict[str, Any]
"""scores.json: "run", "step", "split", "system", "records", "overlap with training", "protocol" and "scores"."""


def folder_of(run: Run, split: str) -> Path:
    """Where the evaluation of a run's checkpoint lies."""
    mean = f"-average-{run.averaged}" if run.averaged > 1 else ""
    return run.directory / "evaluation" / f"{split}-{run.step}{mean}"


def write(folder: Path, objective: Task, predictions: Sequence[Prediction], description: Result) -> Result:
    """Write the predictions, then score them; scores.json comes last, so that where it is, all is."""
    from eval.scores.measure import score

    lines = "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)
    (folder / "scores.json").unlink(missing_ok=True)
    write_atomically(folder / "predictions.jsonl", lines.encode())
    scores = [score(measure).as_json() for measure in measures(objective, predictions)]
    result = description | {"records": len(predictions), "scores": scores}
    _draw(objective, predictions, folder)
    write_atomically(folder / "scores.json", json.dumps(result, indent=1, ensure_ascii=False).encode())
    return result


def read(folder: Path) -> tuple[Result, list[Prediction]] | None:
    """What `write` has written there, or None where it has not finished."""
    if not (folder / "scores.json").is_file():
        return None
    # Not splitlines, which also cuts at characters that JSON leaves as they are.
    lines = (folder / "predictions.jsonl").read_text("utf-8").split("\n")
    return json.loads((folder / "scores.json").read_text("utf-8")), [json.loads(line) for line in lines if line]


def _draw(objective: Task, predictions: Sequence[Prediction], folder: Path) -> None:
    if not isinstance(objective, Classification):
        return
    from eval.scores.pictures import draw_confusion_matrix, draw_reliability

    names = dict(zip(objective.labels, objective.names or objective.labels, strict=True))
    sides = ([names[prediction[side]] for prediction in predictions] for side in ("predicted", "expected"))
    draw_confusion_matrix(*sides, folder / "confusion.png")
    if all("probabilities" in prediction for prediction in predictions):  # a baseline may have none
        draw_reliability(*confidences(objective, predictions), folder / "reliability.png")


# Tables


def table(result: Result) -> str:
    """Aligned lines for a person: what was measured, the scores with their intervals, and how each is computed."""
    protocol = result["protocol"]
    lines = [
        ("run", f"{result['run']}, step {result['step']:,} ({protocol['checkpoint']})"),
        ("system", result["system"]),
        ("task", protocol["task"]["kind"]),
        ("records", f"{result['records']:,} of {result['split']}: {', '.join(s['path'] for s in protocol['data'])}"),
    ]
    shared = result["overlap with training"]
    if shared is None:
        lines.append(("overlap", "unknown, as the training records cannot be read"))
    elif shared:
        lines.append(("overlap", f"{shared:,} of them are in the training data, too"))
    if protocol["decoding"]:
        lines.append(("decoding", ", ".join(f"{name} {value}" for name, value in protocol["decoding"].items())))
    scores = result["scores"]
    rows = [("", "value", "95 % interval")]
    rows += [(s["name"], number(s["value"]), f"{number(s['low'])} … {number(s['high'])}") for s in scores]
    return "\n".join([*aligned(lines), "", *aligned(rows), "", *protocols(scores)])


def protocols(scores: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How each score is computed, and once for all how its interval is."""
    parts = [re.split(r"; (?=(?:paired )?[\d.]+% )", score["protocol"], maxsplit=1) for score in scores]
    yield from aligned([(score["name"], part[0]) for score, part in zip(scores, parts, strict=True)])
    yield from dict.fromkeys(f"intervals: {interval}" for _, *rest in parts for interval in rest)


def number(value: float | None) -> str:
    """Four decimals, or two of what is not a fraction; None is what is undefined or infinite."""
    if value is None:
        return "undefined"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1e6 else f"{value:.4g}"
