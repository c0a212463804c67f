"""`python -m eval compare RUN RUN`: is one run better than another on the same records, or is it chance?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data.task_config import Task
from eval.command_line import add_step, print_anything, run_config
from model.text_table import aligned
from train.command_line import user_errors
from train.config import UserError

if TYPE_CHECKING:
    from eval.scores.measure import Comparison, Measure
    from eval.task_measures import Prediction
    from train.run import Run


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval compare",
        description="Compare two runs of a task on the same records by a paired bootstrap.",
        allow_abbrev=False,
    )
    for which in ("first", "second"):
        parser.add_argument(which, metavar="RUN", help="A run directory.")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="Which records.")
    add_step(parser)
    parser.add_argument("--json", action="store_true", help="Print the same as one JSON object.")
    options = parser.parse_args(argv)
    print_anything()
    with user_errors():
        for run in (options.first, options.second):
            if not (config := run_config(run)).is_task:
                raise UserError(f"{run} learned {config.objective.kind}, which is no task with records to compare on")
        result = compare_runs(options.first, options.second, options.split, options.step)
    print(json.dumps(result, indent=2, ensure_ascii=False) if options.json else table(result))
    return 0


def compare_runs(first: str, second: str, split: str, step: str | int) -> dict[str, Any]:
    """Both runs' scores by the first one's task, their differences, and how likely these are by chance.

    A perplexity per token is among them only where both runs have the same tokens.
    """
    from data.tokenizer import fingerprint
    from train.run import load_run

    runs = [load_run(run, step) for run in (first, second)]
    labels = [getattr(run.config.objective, "labels", ()) for run in runs]
    if set(labels[0]) != set(labels[1]):
        told = " and ".join(", ".join(map(repr, names)) or "none" for names in labels)
        raise UserError(f"only runs that learned the same labels can be compared; these learned {told}")
    sides = [predictions_of(run, split, step) for run in runs]
    found = compare(runs[0].config.objective, *sides)
    if fingerprint(runs[0].tokenizer) != fingerprint(runs[1].tokenizer):
        found = [comparison for comparison in found if comparison.name != "perplexity"]
    return {
        "first": f"{runs[0].directory}, step {runs[0].step}",
        "second": f"{runs[1].directory}, step {runs[1].step}",
        "split": split,
        "records": len(sides[0]),
        "comparisons": [comparison.as_json() for comparison in found],
    }


def predictions_of(run: Run, split: str, step: str | int) -> list[Prediction]:
    """The run's stored predictions where they were made as they would be now, else new ones, which are stored."""
    from eval import results
    from eval.tasks import protocol, write_scores

    wanted = protocol(run, split, run.config.data, step, None)
    stored = results.read(results.folder_of(run, split))
    if stored is None or stored[0]["protocol"] | {"checkpoint": step} != wanted:
        write_scores(run, split, checkpoint=step)
        stored = results.read(results.folder_of(run, split))
    return stored[1]


def compare(objective: Task, first: Sequence[Prediction], second: Sequence[Prediction]) -> list[Comparison]:
    """Every score that both systems have, by the same resamples. Raises UserError unless both were asked the same."""
    from eval.task_measures import measures

    check_asked(first, second)
    return compare_measures(measures(objective, first), measures(objective, second))


def check_asked(first: Sequence[Prediction], second: Sequence[Prediction]) -> None:
    """Raise UserError unless both were asked the same."""
    from eval.predictions import asked

    differing = [i for i, (a, b) in enumerate(zip(first, second, strict=False), 1) if asked(a) != asked(b)]
    if len(first) != len(second) or differing:
        where = f"the first difference is record {differing[0]}" if differing else "one ends before the other"
        raise UserError(
            f"only predictions for the same records can be compared; there are {len(first):,} and {len(second):,}, "
            f"and {where}"
        )


def compare_measures(first: Sequence[Measure], second: Sequence[Measure]) -> list[Comparison]:
    """Every score that is on both sides."""
    from eval.scores import measure

    others = {found.name: found for found in second}
    return [measure.compare(found, others[found.name]) for found in first if found.name in others]


def table(result: dict[str, Any]) -> str:
    """Aligned lines for a person."""
    from eval.results import number, protocols

    found = result["comparisons"]
    heads = [(side, result[side]) for side in ("first", "second")]
    heads.append(("records", f"{result['records']:,} of {result['split']}"))
    rows = [("", "first", "second", "difference", "95 % interval", "p", "better")]
    for c in found:
        values = (number(c[name]) for name in ("first", "second", "difference"))
        interval = f"{number(c['low'])} … {number(c['high'])}"
        rows.append((c["name"], *values, interval, number(c["p_value"]), c["better"]))
    return "\n".join([*aligned(heads), "", *aligned(rows), "", *protocols(found)])
