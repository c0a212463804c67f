"""`python -m eval.harness RUN --tasks T1,T2`: measure a run with EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.storage import write_atomically
from eval.command_line import add_run, print_anything
from train.command_line import nearest, user_errors
from train.config import UserError

# What is kept of lm-eval's results.
_KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.harness",
        description="Measure a run on tasks of lm-evaluation-harness, and keep it in RUN/evaluation/lm-eval-STEP.json.",
        allow_abbrev=False,
    )
    add_run(parser)
    parser.add_argument("--tasks", required=True, metavar="T1,T2", help="Tasks or groups, or patterns of their names.")
    parser.add_argument(
        "--include-path", type=Path, metavar="DIR", help="Also know the tasks whose YAML files are in DIR."
    )
    parser.add_argument("--limit", type=int, metavar="N", help="Only the first N examples of each task.")
    parser.add_argument(
        "--num-fewshot", type=int, metavar="N", help="Examples in each context; default: as a task says."
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="Texts scored at once; default 16.")
    parser.add_argument(
        "--apply-chat-template", action="store_true", help="Put the contexts into the template of a dialogue run."
    )
    parser.add_argument("--json", action="store_true", help="Print the same as one JSON object.")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    print_anything()
    with user_errors():
        result = evaluate(options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(table(result))
    return 0


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, store and return what `table` shows."""
    _check(options)
    try:
        import lm_eval
        from lm_eval.utils import setup_logging
    except ImportError as error:
        raise UserError("this needs the lm_eval package: pip install 'quire[lm-eval]'") from error
    setup_logging("WARNING")

    from train.run import load_run

    run = load_run(options.run, options.step)
    from eval.lm_eval_model import RunModel
    from eval.results import folder_of

    model = RunModel(run, options.batch_size)
    if options.apply_chat_template:
        model.apply_chat_template([])  # raises where there is none, before tasks are read
    tasks, manager = _find_tasks(options.tasks.split(","), options.include_path)
    measured = lm_eval.simple_evaluate(
        model,
        tasks=tasks,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        task_manager=manager,
        apply_chat_template=options.apply_chat_template,
        log_samples=False,
    )
    how = {"lm_eval": version("lm_eval"), "limit": options.limit, "chat_template": options.apply_chat_template}
    result = {
        "run": str(run.directory),
        "step": run.step,
        "protocol": dict.fromkeys(measured["results"], how),
        **{name: measured[name] for name in _KEPT if name in measured},
    }
    result = json.loads(json.dumps(result, default=str))
    _store(result, folder_of(run, "lm-eval" if options.limit is None else f"lm-eval-limit-{options.limit}"))
    return result


def _store(result: dict[str, Any], path: Path) -> None:
    """Put the result into the .json of this name, beside those of other tasks."""
    path = path.with_name(f"{path.name}.json")
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name, value in result.items():
        kept[name] = kept.get(name, {}) | value if isinstance(value, dict) else value
    write_atomically(path, json.dumps(kept, indent=2).encode())


def _check(options: argparse.Namespace) -> None:
    problems = [
        f"--{name} must be at least {least}, not {value}"
        for name, value, least in (
            ("limit", options.limit, 1),
            ("batch-size", options.batch_size, 1),
            ("num-fewshot", options.num_fewshot, 0),
        )
        if value is not None and value < least
    ]
    if options.include_path is not None and not options.include_path.is_dir():
        problems.append(f"--include-path: there is no folder {options.include_path}")
    if problems:
        raise UserError(*problems)


def _find_tasks(wanted: list[str], folder: Path | None) -> tuple[list[str], Any]:
    """The names of the tasks and what loads them. lm-eval's own, over ten thousand, are read only if needed."""
    from lm_eval.tasks import TaskManager

    class Tasks(TaskManager):
        def load(self, names):
            try:
                return super().load(names)
            except Exception as error:  # of YAML, of their code, of the data: nothing narrower
                told = str(error).strip().partition("\n")[0]
                raise UserError(f"--tasks: lm-eval cannot load {', '.join(names)}: {told}") from error

    manager = Tasks(include_path=folder and str(folder), include_defaults=False)
    if not all(manager.match_tasks([name]) for name in wanted):
        manager = Tasks(include_path=folder and str(folder))
    problems = [
        f"--tasks: lm-eval knows no task {name!r}.{nearest(name, manager.all_tasks)}"
        for name in wanted
        if not manager.match_tasks([name])
    ]
    if problems:
        raise UserError(*problems)
    return manager.match_tasks(wanted), manager


def table(result: dict[str, Any]) -> str:
    """lm-eval's tables, under the run they are of."""
    from lm_eval.utils import make_table

    how = next(iter(result["protocol"].values()))
    lines = [f"run {result['run']}, step {result['step']}, lm-eval {how['lm_eval']}"]
    if how["limit"] is not None:
        lines.append(f"only the first {how['limit']} examples of each task: not to be compared")
    lines += ["", make_table(result)]
    if result.get("groups"):
        lines += ["", make_table(result, "groups")]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
