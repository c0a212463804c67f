"""How well a model predicts a text, in the units that papers report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np

from data.pipeline import eval_batches
from data.token_cache import TokenCache
from data.tokenizer import Tokenizer
from train import sharding
from train.config import Experiment, UserError
from train.objective import Batch, Term, check_heads, check_vocabulary, coefficients, example_options, make_model
from train.step import eval_step

_MOST_NATS = 700  # exp of more is no float64


def loss_evaluator(
    experiment: Experiment,
    cache: TokenCache,
    tokenizer: Tokenizer,
    *,
    mesh: jax.sharding.Mesh,
    length: int | None = None,
    batch_size: int | None = None,
    max_batches: int | None = None,
    stride: int | None = None,
) -> Callable[[Any], dict[str, float]]:
    """A function from parameters, wherever they lie on `mesh`, to measures of the experiment's objective over `cache`.

    The text is cut into windows, each of which is one example, the same at every evaluation. For causal_lm every
    token of every document and the end of each document are predicted exactly once, and the measures are those of
    `measures`; `stride` makes the windows overlap so that each prediction has at least `length - stride` tokens of
    context (but for the start of the text). The other objectives have those of `term_measures`. `length` and
    `batch_size` are the experiment's by default; `max_batches` looks at a prefix only. Compiled once. Raises
    UserError when the mesh does not divide `batch_size`, or when the model lacks what the objective needs.
    """
    check_heads(experiment)
    check_vocabulary(experiment, tokenizer)
    rules = experiment.mesh.rules
    batch_size = batch_size or experiment.evaluation.batch_size or experiment.batch_size
    ways = sharding.batch_ways(mesh, rules)
    if batch_size % ways:
        raise UserError(
            f"evaluation.batch_size: {batch_size} examples cannot be split over {ways} groups of devices; "
            f"it must be a multiple of {ways}"
        )
    options = example_options(experiment) | ({} if length is None else {"length": length})
    batches = eval_batches(cache, tokenizer=tokenizer, batch_size=batch_size, stride=stride, **options)
    is_whole = max_batches is None or max_batches >= len(batches)
    step = jax.jit(partial(eval_step, model=make_model(experiment), experiment=experiment))

    def evaluate(params: Any) -> dict[str, float]:
        sums = map_batches(step, params, islice(batches, max_batches), mesh=mesh, rules=rules)
        terms = jax.tree.map(lambda *parts: float(np.sum(parts, dtype=np.float64)), *jax.device_get(sums))
        if experiment.objective.kind != "causal_lm":
            return term_measures(terms, coefficients(experiment))
        lm = terms["lm"]
        if not is_whole:
            return measures(lm.loss, lm.weight)
        return measures(lm.loss, lm.weight, num_words=cache.num_words, num_bytes=cache.num_bytes)

    return evaluate


def map_batches(
    step: Callable[[Any, Batch], Any],
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: jax.sharding.Mesh,
    rules: sharding.Rules,
) -> list[Any]:
    """`step(params, batch)` of each batch, whose rows are split over the mesh; `step` is a compiled function."""
    place = sharding.batch_sharding(mesh, rules)
    # On the CPU, programs with collectives that overlap can wait for each other's threads forever.
    one_at_a_time = jax.default_backend() == "cpu" and mesh.size > 1
    if one_at_a_time:
        jax.block_until_ready(params)
    results = []
    with sharding.use(mesh, rules):
        for batch in batches:
            rows = len(next(iter(batch.values()))) // jax.process_count()
            own = slice(rows * jax.process_index(), rows * (jax.process_index() + 1))
            results.append(step(params, sharding.place_batch({name: a[own] for name, a in batch.items()}, place)))
            if one_at_a_time:
                jax.block_until_ready(results[-1])
    return results


def term_measures(terms: Mapping[str, Term], factors: Mapping[str, float]) -> dict[str, float]:
    """Measures of an objective over a whole text, or over all records of a task.

    loss: what is minimized, the terms' means times their factors. NAME_loss, NAME_accuracy: of each term, and of each
    that can be right: lm (words, in nats), sentence_pair, detection; of a task sequence, tokens or span (both places).
    perplexity: exp of lm's loss, over the places that the objective asks for, so it compares only within one
    objective. tokens: the number of these places.
    """
    means = {name: term.loss / max(term.weight, 1.0) for name, term in terms.items()}
    result = {"loss": sum(factors[name] * mean for name, mean in means.items())}
    if "lm" in means:
        result["perplexity"] = math.exp(means["lm"]) if means["lm"] < _MOST_NATS else math.inf
    for name, term in terms.items():
        result[f"{name}_loss"] = means[name]
        if term.correct is not None:
            result[f"{name}_accuracy"] = term.correct / max(term.weight, 1.0)
    return result | ({"tokens": terms["lm"].weight} if "lm" in terms else {})


def measures(
    nats: float, tokens: float, *, num_words: int | None = None, num_bytes: int | None = None
) -> dict[str, float]:
    """Measures of a text predicted with `nats` in all, over `tokens` predictions, ends of documents included.

    loss: nats per prediction. perplexity: its exponential.
    word_perplexity: exp(nats / num_words), where words stand between white space and each line end is one
        more, as WikiText counts; so it can be compared between tokenizers. Left out where it is beyond
        float64, as for a text without spaces.
    bits_per_byte: nats / ln 2 / num_bytes of UTF-8, comparable between tokenizers and languages.
    tokens: the number of predictions.
    """
    loss = nats / tokens
    result = {"loss": loss, "perplexity": math.exp(loss) if loss < _MOST_NATS else math.inf}
    if num_words is not None and not nats / num_words > _MOST_NATS:
        result["word_perplexity"] = math.exp(nats / num_words)
    if num_bytes is not None:
        result["bits_per_byte"] = nats / math.log(2) / num_bytes
    return {name: float(value) for name, value in (result | {"tokens": tokens}).items()}
