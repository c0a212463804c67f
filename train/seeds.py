"""`python -m train X --seeds N`: the same experiment with N seeds, and the spread of its scores."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.storage import write_atomically
from train.config import Experiment, UserError, changed_fields

Scores = dict[str, dict[str, float]]
"""Split → score → value."""


def take_seeds(argv: list[str]) -> tuple[list[str], int | None]:
    """The command line without `--seeds N`, and N."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--seeds=") else [word])]
    if "--seeds" not in argv:
        return argv, None
    place = argv.index("--seeds")
    number = argv[place + 1] if place + 1 < len(argv) else ""
    if not number.isdecimal() or int(number) < 2:
        raise UserError(f"--seeds: expected a number of seeds, at least 2, not '{number}'")
    return argv[:place] + argv[place + 2 :], int(number)


def run_seeds(experiment: Experiment, count: int, run: Callable[[Experiment], int]) -> int:
    """`run` each seed from the experiment's on in RUN/seed-N, then print and store their scores; the exit code.

    RUN/seeds.json has the scores of the seeds that are finished, which are not run again. The first seed that fails
    is named and gives the exit code; the same command continues.
    """
    if experiment.evaluation.average is not None and not experiment.is_task:
        raise UserError("--seeds: evaluation.average is scored for tasks alone; leave one of the two out")
    directory = Path(experiment.directory)
    finished = _read(directory, experiment)
    seeds = range(experiment.seed, experiment.seed + count)
    for seed in seeds:
        if str(seed) in finished:
            continue
        own = experiment.model_copy(update=dict(seed=seed, run_dir=str(directory / f"seed-{seed}")))
        print(f"seed {seed}: {own.directory}", flush=True)
        try:
            code = run(own)
        except UserError as error:
            raise UserError(*(f"seed {seed}: {problem}" for problem in error.problems)) from error
        if code:
            print(f"error: seed {seed} ended with exit code {code}; the same command continues", file=sys.stderr)
            return code
        finished[str(seed)] = final_scores(own)
        _write(directory, experiment, finished)
    print(table(summary([finished[str(seed)] for seed in seeds])), flush=True)
    return 0


def final_scores(experiment: Experiment) -> Scores:
    """The scores that a run has just ended with.

    Of a run that is no task's, its last validation measures, or those of the best checkpoint where that is final.
    """
    from train.checkpoint import read_manifest, scored_steps
    from train.metrics import read_metrics

    run, evaluation = Path(experiment.directory), experiment.evaluation
    found: dict[str, Path] = {}
    for path in sorted(run.glob("evaluation/*/scores.json"), key=lambda path: path.stat().st_mtime):
        found[json.loads(path.read_text("utf-8"))["split"]] = path
    if found:
        files = {split: json.loads(path.read_text("utf-8"))["scores"] for split, path in found.items()}
        return {split: {score["name"]: score["value"] for score in scores} for split, scores in files.items()}
    if evaluation.final == "best":
        _, best = scored_steps(run / "checkpoints", evaluation.metric)[0]
        return {"validation": read_manifest(run / "checkpoints", best)["validation"]}
    measured = [line["validation"] for line in read_metrics(run) if "validation" in line]
    return {"validation": measured[-1]} if measured else {}


def summary(runs: list[Scores]) -> dict[str, dict[str, dict[str, Any]]]:
    """Split → score → mean, standard_deviation (of the sample, n - 1) and the values in order.

    Of every score that some run has; one that another lacks, or where it is undefined, has no mean.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for split, name in dict.fromkeys((part, name) for run in runs for part, scores in run.items() for name in scores):
        values = [run.get(split, {}).get(name) for run in runs]
        spread = dict(mean=None, standard_deviation=None)
        if None not in values:
            spread["mean"] = statistics.fmean(values)
            spread["standard_deviation"] = statistics.stdev(values) if len(values) > 1 else None
        found.setdefault(split, {})[name] = spread | {"values": values}
    return found


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One line a score, for a person."""

    def shown(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    rows = [("split", "score", "mean", "deviation", "values")]
    for split, scores in found.items():
        for name, score in scores.items():
            values = "  ".join(map(shown, score["values"]))
            rows.append((split, name, shown(score["mean"]), shown(score["standard_deviation"]), values))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(map(str.rstrip, lines))


def _read(directory: Path, experiment: Experiment) -> dict[str, Scores]:
    """Seed → scores of the finished runs of this experiment, evaluated as it is."""
    path = directory / "seeds.json"
    try:
        stored = json.loads(path.read_text("utf-8"))
        config = Experiment.model_validate(stored["config"] | {"seed": experiment.seed})
        is_same = not changed_fields(config, experiment) and config.evaluation == experiment.evaluation
        return dict(stored["seeds"]) if is_same else {}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; delete it, and the same command scores the seeds again") from error


def _write(directory: Path, experiment: Experiment, finished: dict[str, Scores]) -> None:
    config = experiment.model_dump(mode="json", exclude={"seed", "run_dir"})
    stored = {"config": config, "seeds": finished, "summary": summary(list(finished.values()))}
    write_atomically(directory / "seeds.json", json.dumps(stored, indent=1).encode())
