"""What a model says of the records of a task, and how good that is: during training, at its end, and later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from data.config import DataConfig, Files, HuggingFace
from data.document import DataError
from data.examples import Examples, read_examples, split_records
from data.pipeline import eval_batches
from data.records import Record
from data.rows import Batch
from data.task_config import Classification, Dialogue, Records, Regression, SpanAnswering, Tagging, TextToText
from data.tasks import inputs
from data.tokenizer import Tokenizer
from eval import results
from eval.evaluators import map_batches, term_measures
from eval.predictions import predictions
from eval.task_measures import Prediction, measures
from eval.task_texts import constraints_of, conversations, texts
from train import sharding
from train.config import Decoding, Experiment, Mesh, UserError
from train.objective import (
    Model,
    check_heads,
    check_vocabulary,
    coefficients,
    example_options,
    make_model,
    model_inputs,
)
from train.run import Run
from train.step import eval_step


def _report(line: str) -> None:
    print(line, file=sys.stderr)


def predict(
    experiment: Experiment,
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    examples: Examples,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int | None = None,
    decoding: Decoding | None = None,
) -> list[Prediction]:
    """A prediction for each record, in their order; `predictions.py` says what is in one.

    Args:
      params: wherever they lie on `mesh`, over which the rows of a batch are split.
      batch_size: rows of a batch, rounded up to what the mesh divides; none: the experiment's.
      decoding: how texts are written; none: the experiment's.

    Raises UserError when the model lacks what the task needs.
    """
    check_heads(experiment)
    check_vocabulary(experiment, tokenizer)
    batch_size = _rows(experiment, mesh, batch_size)
    if isinstance(experiment.objective, TextToText):
        every, decoding = range(len(examples)), decoding or experiment.evaluation.decoding
        return texts(experiment, model, params, examples, every, decoding, mesh=mesh, batch_size=batch_size)
    options = example_options(experiment)
    batches = list(eval_batches(examples, tokenizer=tokenizer, batch_size=batch_size, **options))
    step = _compiled(mesh, partial(outputs, experiment, model))
    rows = _by_example(batches, map_batches(step, params, batches, mesh=mesh, rules=experiment.mesh.rules))
    return _from_outputs(experiment, model, params, examples, rows, mesh=mesh, batch_size=batch_size)


def _from_outputs(
    experiment: Experiment, model: Model, params: Any, examples: Examples, rows: dict[int, np.ndarray], **options: Any
) -> list[Prediction]:
    """The predictions of the records all of whose examples have a row of `outputs`."""
    if isinstance(experiment.objective, Dialogue):
        return conversations(experiment, model, params, examples, rows, **options)
    return predictions(examples, rows)


def task_evaluator(
    experiment: Experiment,
    examples: Examples,
    tokenizer: Tokenizer,
    *,
    mesh: jax.sharding.Mesh,
    max_batches: int | None = None,
) -> Callable[[Any], dict[str, float]]:
    """A function from parameters to the terms of the loss and the scores by name, for validation during training.

    Texts and replies are written, and so scored, only where `evaluation.metric` is one of their scores. Of a record
    that is cut into several examples, all must be among the `max_batches` for it to be scored.
    """
    check_heads(experiment)
    check_vocabulary(experiment, tokenizer)
    objective, rules, evaluation = experiment.objective, experiment.mesh.rules, experiment.evaluation
    model = make_model(experiment)
    batch_size = _rows(experiment, mesh, None)
    batches = eval_batches(examples, tokenizer=tokenizer, batch_size=batch_size, **example_options(experiment))
    if writes := isinstance(objective, TextToText):
        constraints_of(evaluation.decoding, tokenizer)  # a mistake in it must not wait for the first text

    def both(params: Any, batch: Batch) -> tuple[Any, Any]:  # the compiler runs the model once for both
        terms = eval_step(params, batch, model=model, experiment=experiment)
        return terms, None if writes else outputs(experiment, model, params, batch)

    step = _compiled(mesh, both)

    def evaluate(params: Any) -> dict[str, float]:
        shown = list(islice(batches, max_batches))
        found = map_batches(step, params, shown, mesh=mesh, rules=rules)
        sums = jax.device_get([terms for terms, _ in found])
        terms = jax.tree.map(lambda *parts: float(np.sum(parts, dtype=np.float64)), *sums)
        measured = term_measures(terms, coefficients(experiment))
        if isinstance(objective, TextToText | Dialogue) and evaluation.metric in measured:
            return measured
        how = dict(mesh=mesh, batch_size=batch_size)
        if writes:
            some = sorted(int(n) for batch in shown for n in batch["example"] if n >= 0)
            made = texts(experiment, model, params, examples, some, evaluation.decoding, **how)
        else:
            rows = _by_example(shown, [rows for _, rows in found])
            made = _from_outputs(experiment, model, params, examples, rows, **how)
        scores = {measure.name: measure.value for measure in measures(objective, made)} if made else {}
        return scores | measured

    return evaluate


def write_scores(
    run: Run,
    split: str,
    *,
    checkpoint: str | int = "latest",
    decoding: Decoding | None = None,
    batch_size: int | None = None,
    records: str | None = None,
    report: Callable[[str], None] = _report,
) -> results.Result:
    """Predict the records of a split, "validation" or "test", score them, and keep both in the run directory.

    Args:
      checkpoint: how the run's step was chosen, told in the protocol.
      decoding: how texts are written; none: the experiment's.
      records: a file that is read as the split's, instead.

    Returns what scores.json holds. Raises UserError or DataError where there are no such records.
    """
    config, data, name = run.config, run.config.data, split
    if records is not None:
        split, data, name = "test", _with_records(data, records), f"records-{Path(records).name}"
    examples = examples_of(run, split, data, report)
    shared = _overlap(config, examples.records, report)
    mesh = sharding.make_mesh(Mesh())
    params = jax.device_put(run.params, NamedSharding(mesh, PartitionSpec()))
    found = predict(
        config, run.model, params, run.tokenizer, examples, mesh=mesh, batch_size=batch_size, decoding=decoding
    )
    description = {
        "run": str(run.directory),
        "step": run.step,
        "split": name,
        "system": config.name,
        "overlap with training": shared,
        "protocol": protocol(run, split, data, checkpoint, decoding),
    }
    folder = results.folder_of(run, name)
    report(f"predictions and scores: {folder}")
    return results.write(folder, config.objective, found, description)


def _overlap(config: Experiment, records: Sequence[Record], report: Callable[[str], None]) -> int | None:
    """How many records ask what a training record asks; None where those cannot be read."""
    objective = config.objective
    try:
        train = split_records(config.data, "train", objective, lambda line: None)
    except DataError as error:
        report(f"overlap with training is unknown: {error}")
        return None
    asked = {inputs(record, objective) for record in train}
    return sum(inputs(record, objective) in asked for record in records)


_SHARED = {HuggingFace: {"fields", "replace"}, Files: {"on_error"}}  # options that other sources of records have, too


def _with_records(data: DataConfig, path: str) -> DataConfig:
    """The records of `path`, by the columns of the test records or, where there are none, of the training records."""
    if not path:
        raise UserError("--records needs the name of a file")
    like = (data.test or data.train)[0]
    options = like.model_dump(include=_SHARED.get(type(like)))
    own = {"kind": "records", "path": path, "part": (0.0, 1.0), "max_records": None, "drop_repeats": False}
    return data.model_copy(update={"test": (Records.model_validate(options | own),)})


def protocol(run: Run, split: str, data: DataConfig, checkpoint: str | int, decoding: Decoding | None) -> dict:
    """All that predictions depend on besides the checkpoint: what was asked, where it stands, how texts are written."""
    config = run.config
    sources = getattr(data, split) or data.train
    decoding = decoding or config.evaluation.decoding
    return {
        "task": config.objective.model_dump(mode="json"),
        "data": [source.model_dump(mode="json") for source in sources],
        "length": config.data.length,
        "checkpoint": checkpoint,
        "decoding": decoding.model_dump(mode="json") if isinstance(config.objective, TextToText) else None,
    }


def examples_of(run: Run, split: str, data: DataConfig, report: Callable[[str], None]) -> Examples:
    """The records of a split as the run's model reads them."""
    config = run.config
    if split == "test" and not data.test:
        raise UserError(f"{run.directory} names no test records: data.test of its experiment is empty")
    if split == "validation" and not (data.validation or data.held_out_fraction):
        raise UserError(
            f"{run.directory} has no validation records: data.validation and data.held_out_fraction are empty"
        )
    return read_examples(data, split, config.objective, run.tokenizer, stack=config.model.stack, report=report)


# Encoders


def outputs(experiment: Experiment, model: nn.Module, params: Any, batch: Batch) -> jax.Array:
    """What is needed of the model's outputs for each row of a batch, float32 [batch, …] or int32.

    classification: probabilities [batch, labels]. regression: [batch, 1]. tagging: tag ids [batch, length].
    span_answering: logits [batch, length, 2]. dialogue: [batch, 2], nats and number of the tokens that are learned.
    """
    found = model.apply({"params": params}, **model_inputs(model, batch), deterministic=True)
    match experiment.objective:
        case Classification():
            return jax.nn.softmax(found["sequence"].astype(jnp.float32))
        case Regression():
            return found["sequence"].astype(jnp.float32)
        case Tagging():
            return found["tokens"].argmax(axis=-1)
        case SpanAnswering():
            return found["span"].astype(jnp.float32)
    log_p = jax.nn.log_softmax(found.astype(jnp.float32))
    nats = -jnp.take_along_axis(log_p, batch["targets"][..., None], axis=-1)[..., 0]
    return jnp.stack([(nats * batch["weights"]).sum(axis=1), batch["weights"].sum(axis=1)], axis=1)


def _by_example(batches: Iterable[Batch], rows: Sequence[jax.Array]) -> dict[int, np.ndarray]:
    """Example → its row of what the batches gave."""
    pairs = zip(batches, jax.device_get(rows), strict=True)
    return {int(n): row for batch, part in pairs for n, row in zip(batch["example"], part, strict=True) if n >= 0}


def _compiled(mesh: jax.sharding.Mesh, step: Callable[[Any, Batch], Any]) -> Callable[[Any, Batch], Any]:
    """Compiled for a mesh; every process gets all rows of the result."""
    return jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _rows(experiment: Experiment, mesh: jax.sharding.Mesh, batch_size: int | None) -> int:
    batch_size = batch_size or experiment.evaluation.batch_size or experiment.batch_size
    ways = sharding.batch_ways(mesh, experiment.mesh.rules)
    return -(-batch_size // ways) * ways
