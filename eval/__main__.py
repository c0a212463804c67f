"""`python -m eval RUN`: score a task's run on its records, or measure a language model on texts.

`python -m eval compare RUN RUN` and `python -m eval baseline RUN` have files of their own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from eval.command_line import add_decoding, add_run, decoding_of, print_anything, run_config
from train.command_line import user_errors
from train.config import Decoding, Experiment, UserError

COMMANDS = {"compare": "eval.compare", "baseline": "eval.baselines"}
_OF_TASKS = ("split", "records")
_OF_TEXTS = ("text", "detokenize", "length", "stride")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description="Score a task's run on its records, or measure any other on its validation data or texts.",
        epilog="Also: python -m eval compare RUN RUN, python -m eval baseline RUN; each has --help.",
        allow_abbrev=False,
    )
    add_run(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="Examples per batch; default: as in training.")
    parser.add_argument("--json", action="store_true", help="Print the same as one JSON object.")
    task = parser.add_argument_group("runs of tasks", "What is predicted and scored is kept in RUN/evaluation.")
    task.add_argument("--split", choices=("validation", "test"), help="Which records; default validation.")
    task.add_argument(
        "--records", metavar="FILE", help="Score the records of FILE instead, read as the run reads its test records."
    )
    add_decoding(task)
    texts = parser.add_argument_group("runs of language models")
    texts.add_argument(
        "--text",
        action="append",
        metavar="FILE",
        help="Measure FILE (.txt, .jsonl, .csv, .tsv, a folder or a pattern) instead; repeatable.",
    )
    texts.add_argument(
        "--detokenize",
        choices=("wikitext", "ptb", "lambada", "one_billion_words"),
        help="Put the spacing of a corpus right first; perplexity is per word of the original.",
    )
    texts.add_argument("--length", type=int, metavar="N", help="Tokens per window; default: as in training.")
    texts.add_argument(
        "--stride", type=int, metavar="N", help="Windows start every N tokens and only what is new counts."
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
    options = parse(argv)
    print_anything()
    with user_errors():
        config = run_config(options.run)
        _check(options, config)
        decoding = decoding_of(options, config)
        from eval import results, text_losses

        result = _score(options, decoding) if config.is_task else text_losses.evaluate(options)
        table = results.table if config.is_task else text_losses.table
    print(json.dumps(result, indent=2, ensure_ascii=False) if options.json else table(result))
    return 0


def _check(options: argparse.Namespace, config: Experiment) -> None:
    foreign = _OF_TEXTS if config.is_task else _OF_TASKS
    given = [f"--{name}" for name in foreign if getattr(options, name) is not None]
    if given:
        kind = "language models" if config.is_task else "tasks"
        raise UserError(f"{', '.join(given)}: for runs of {kind} alone; {options.run} learned {config.objective.kind}")
    if options.split and options.records is not None:
        raise UserError("--split and --records exclude each other; leave one out")
    if config.is_task and options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {options.batch_size}")


def _score(options: argparse.Namespace, decoding: Decoding | None) -> dict:
    from eval.tasks import write_scores
    from train.run import load_run

    return write_scores(
        load_run(options.run, options.step),
        options.split or "validation",
        checkpoint=options.step,
        decoding=decoding,
        batch_size=options.batch_size,
        records=options.records,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
