"""How well a model predicts a text, in the units that papers report."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np

from data.pipeline import eval_batches
from data.token_cache import TokenCache
from data.tokenizer import Tokenizer
from model.transformer import DecoderLM
from train import sharding
from train.config import UserError
from train.step import eval_step

_MOST_NATS = 700  # exp of more is no float64


def loss_evaluator(
    model: DecoderLM,
    cache: TokenCache,
    tokenizer: Tokenizer,
    *,
    length: int,
    batch_size: int,
    attend_across_documents: bool,
    mesh: jax.sharding.Mesh,
    rules: sharding.Rules,
    max_batches: int | None = None,
    stride: int | None = None,
) -> Callable[[Any], dict[str, float]]:
    """A function from parameters, wherever they lie on `mesh`, to the measures of `measures` over `cache`.

    The text is cut into windows of `length` tokens. Every token of every document and the end of each
    document are predicted exactly once; `stride` makes the windows overlap so that each prediction has at
    least `length - stride` tokens of context (but for the start of the text). `max_batches` looks at a prefix
    only. Compiled once. Raises UserError when the mesh does not divide `batch_size`.
    """
    ways = sharding.batch_ways(mesh, rules)
    if batch_size % ways:
        raise UserError(
            f"evaluation.batch_size: {batch_size} examples cannot be split over {ways} groups of devices; "
            f"it must be a multiple of {ways}"
        )
    batches = eval_batches(
        cache,
        tokenizer=tokenizer,
        length=length,
        batch_size=batch_size,
        attend_across_documents=attend_across_documents,
        stride=stride,
    )
    is_whole = max_batches is None or max_batches >= len(batches)
    step = jax.jit(partial(eval_step, model=model))
    place = sharding.batch_sharding(mesh, rules)
    rows = batch_size // jax.process_count()
    own = slice(rows * jax.process_index(), rows * (jax.process_index() + 1))
    # On the CPU, programs with collectives that overlap can wait for each other's threads forever.
    one_at_a_time = jax.default_backend() == "cpu" and mesh.size > 1

    def evaluate(params: Any) -> dict[str, float]:
        sums = []
        if one_at_a_time:
            jax.block_until_ready(params)
        with sharding.use(mesh, rules):
            for batch in islice(batches, max_batches):
                batch = {name: array[own] for name, array in batch.items()}
                sums.append(step(params, sharding.place_batch(batch, place)))
                if one_at_a_time:
                    jax.block_until_ready(sums[-1])
        nats, tokens = np.array(jax.device_get(sums), np.float64).sum(axis=0)
        if not is_whole:
            return measures(nats, tokens)
        return measures(nats, tokens, num_words=cache.num_words, num_bytes=cache.num_bytes)

    return evaluate


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
