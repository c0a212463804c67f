"""`python -m experiments list`: every paper, variant and size; `show FILE:VARIANT`: what it learns from."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from data.config import Objective
from data.task_config import Classification, Regression, SpanAnswering, Tagging, tag_names
from train.command_line import papers, parse, user_errors, variants
from train.config import Experiment, UserError

if TYPE_CHECKING:
    from data.rows import Batch
    from data.tokenizer import Tokenizer


def size(experiment: Experiment) -> int:
    """Number of parameters, counted on the abstract tree."""
    import jax

    from model import tree
    from model.transformer import initialize
    from train.objective import make_model

    model = make_model(experiment)
    return tree.count(jax.eval_shape(lambda: initialize(model, jax.random.key(0))))


def rows() -> list[dict[str, object]]:
    """One row a variant, the papers in alphabetical order."""
    found = []
    for paper, path in papers().items():
        for name, variant in variants(path).items():
            about = (variant.__doc__ or "").strip().split("\n")[0]
            try:
                experiment = variant()
                numbers = {"parameters": size(experiment), "steps": experiment.num_steps}
            except (UserError, ValidationError):  # the run that it starts from is not there yet, or is another model
                numbers = {"parameters": "?", "steps": "?"}
            found.append({"paper": paper, "variant": f"{paper}:{name}", **numbers, "about": about})
    return found


def examples(experiment: Experiment, count: int) -> list[dict[str, str]]:
    """The first training examples as the model gets them, in pieces: arrays by name, without padding.

    Of targets, only what is to be predicted is shown.
    """
    from data.pipeline import prepare, train_batches
    from train.objective import example_options

    corpus = prepare(
        experiment.data,
        objective=experiment.objective,
        stack=experiment.model.stack,
        report=lambda line: print(line, file=sys.stderr),
    )
    options = dict(tokenizer=corpus.tokenizer, batch_size=count, seed=experiment.seed, **example_options(experiment))
    with train_batches(corpus.train, **options) as batches:
        batch = next(batches)

    def text(name: str, row: int) -> str:
        part = name.removesuffix("inputs").removesuffix("targets")
        weights = batch.get(f"{part}weights")
        is_shown = batch.get(f"{part}segment_ids", weights) if name.endswith("inputs") else weights
        pieces = corpus.tokenizer.pieces(batch[name][row][is_shown[row] > 0])
        return " ".join(pieces).replace("\n", "\\n")

    labels = [_label(experiment.objective, batch, row, corpus.tokenizer) for row in range(count)]
    names = [name for name in batch if name.endswith(("inputs", "targets")) and (name != "targets" or not labels[0])]
    names = [name for name in names if batch[name].ndim == 2]
    found = [{name: text(name, row) for name in names} | labels[row] for row in range(count)]
    for row, target in enumerate(batch.get("sentence_targets", ())):
        found[row]["sentence_targets"] = str(target)
    return found


def _label(objective: Objective, batch: Batch, row: int, tokenizer: Tokenizer) -> dict[str, str]:
    """What a task asks of a row where that is no text, in words."""
    target, inputs = batch.get("targets", [])[row : row + 1], batch.get("inputs", [])[row : row + 1]
    match objective:
        case Classification(names=names, labels=labels):
            return {"label": (names or labels)[target[0]]}
        case Regression():
            return {"label": f"{target[0]:g}"}
        case Tagging():
            places = batch["weights"][row].nonzero()[0]
            tags = [tag_names(objective)[target[0][place]] for place in places]
            return {
                "tags": " ".join(f"{p}/{t}" for p, t in zip(tokenizer.pieces(inputs[0][places]), tags, strict=True))
            }
        case SpanAnswering():
            first, last = target[0]
            return {
                "answer": " ".join(tokenizer.pieces(inputs[0][first : last + 1])) if last else "none in this window"
            }
    return {}


def show(argv: list[str]) -> int:
    with user_errors():
        found = examples(parse(argv, prog="python -m experiments show"), 3)
    for number, example in enumerate(found, 1):
        print(f"--- example {number}")
        for name, text in example.items():
            print(f"{name.replace('_', ' ')}: {text}")
    return 0


def main(argv: list[str]) -> int:
    if argv[:1] == ["show"]:
        return show(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument(
        "command", choices=["list", "show"], help="List papers, variants and sizes, or show a variant's examples."
    )
    parser.add_argument("--json", action="store_true", help="The list as JSON.")
    options = parser.parse_args(argv)
    with user_errors():
        found = rows()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    table = Table(box=None, header_style="bold")
    for column in found[0]:
        is_number = column in ("parameters", "steps")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=column != "about")
    for row in found:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
