"""Whole test sets → texts, as token ids: batches of like length, few compiled programs, results in the order given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import decoding
from model.beam_search import BeamSearch, beam_search
from model.decoding import UNCONSTRAINED, Constraints, Sampling, bucket
from model.transformer import Decoder, EncoderDecoder
from train.config import UserError
from train.objective import Model

Prompt = tuple[Sequence[int] | None, Sequence[int]]
"""What the encoder reads (None for a decoder alone), and what the decoder reads before it writes."""


@dataclass(frozen=True)
class Hypothesis:
    """A text that a model wrote.

    tokens: without the prompt, and without the end of the text.
    score: of a beam search its `hypothesis_score`, -inf where no text obeys; of a sample log P of the model, the end
        included.
    finished: whether the text has an end; else it is as long as was allowed.
    """

    tokens: list[int]
    score: float
    finished: bool


def decode_all(
    model: Model,
    params: Any,
    prompts: Sequence[Prompt],
    *,
    method: Sampling | BeamSearch,
    eos_id: int,
    allowed: np.ndarray,
    max_new_tokens: int,
    constraints: Constraints = UNCONSTRAINED,
    is_prefix: bool = False,
    seed: int = 0,
    batch_size: int = 32,
) -> list[list[Hypothesis]]:
    """For each prompt its `n_best` hypotheses, best first, or one sample.

    `max_new_tokens`: the end of the text included; no text goes beyond the model's context. `allowed`: bool [vocab],
    the tokens that may be written. A prompt's hypotheses depend on the seed and its place in the list, not on the
    other prompts nor on `batch_size`.

    Raises UserError for impossible arguments and for a model whose logits are not finite.
    """
    _check(model, prompts, method, constraints, max_new_tokens, batch_size)
    limits = [min(max_new_tokens, model.config.max_length - len(prefix)) for _, prefix in prompts]
    shared = dict(allowed=allowed, eos_id=eos_id, constraints=constraints, is_prefix=is_prefix)
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    for places, batch, width in _batches(prompts, limits, batch_size):
        if isinstance(method, BeamSearch):
            found = beam_search(model, params, **batch, **shared, beams=method, max_new_tokens=width)
            tokens, scores = np.asarray(found.tokens), np.asarray(found.scores)
        else:
            keys = keys_of(seed, places + places[:1] * (len(batch["lengths"]) - len(places)))
            tokens, scores = _sample(model, params, keys, batch, width, **shared, sampling=method)
        for row, place in enumerate(places):
            if np.isnan(scores[row]).any():
                problem = "its parameters are damaged, or its training diverged"
                raise UserError(f"prompt {place + 1}: the model's logits are not finite; {problem}")
            results[place] = [_hypothesis(*text, eos_id) for text in zip(tokens[row], scores[row], strict=True)]
    return results


def keys_of(seed: int, places: Sequence[int]) -> jax.Array:
    """The key of each of the prompts at `places`."""
    return _keys(np.uint32(seed % 2**32), np.array(places, np.int32))


@jax.jit
def _keys(seed: np.uint32, places: np.ndarray) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(places)


def _sample(
    model: Model,
    params: Any,
    keys: jax.Array,
    batch: dict[str, np.ndarray],
    max_new_tokens: int,
    *,
    is_prefix,
    **options,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [batch, 1, max_new_tokens], -1 after the end, and log P [batch, 1]."""
    limits = batch["lengths"] + batch.pop("limits")
    source_width = batch["source"].shape[1] if "source" in batch else None
    state = decoding.start(model.config, keys, batch["tokens"].shape[1] + max_new_tokens, source_width)
    state = decoding.read(model, params, state, **batch, is_prefix=is_prefix)
    state = state.replace(limits=jnp.asarray(limits))
    state, written = decoding.decode(model, params, state, num_steps=max_new_tokens, **options)
    return np.asarray(written)[:, None], np.asarray(state.log_probability)[:, None]


def _hypothesis(tokens: np.ndarray, score: np.floating, eos_id: int) -> Hypothesis:
    written = tokens[tokens >= 0].tolist()
    is_finished = bool(written) and written[-1] == eos_id
    return Hypothesis(written[:-1] if is_finished else written, float(score), is_finished)


def _check(
    model: Model,
    prompts: Sequence[Prompt],
    method: Sampling | BeamSearch,
    constraints: Constraints,
    max_new_tokens: int,
    batch_size: int,
) -> None:
    if not isinstance(model, Decoder | EncoderDecoder):
        raise UserError("the model is an encoder; it reads text but writes none")
    has_encoder, longest = isinstance(model, EncoderDecoder), model.config.max_length
    problems = []
    if batch_size < 1:
        problems.append(f"batch_size must be at least 1, not {batch_size}")
    if max_new_tokens < 1:
        problems.append(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if isinstance(method, BeamSearch) and method.coverage_penalty and not has_encoder:
        problems.append("coverage_penalty needs an encoder–decoder: it is about the source, which a decoder lacks")
    first = constraints.first_token
    if first is not None and first >= model.config.vocab_size:
        problems.append(f"first_token={first} is not among the model's {model.config.vocab_size} tokens")
    for i, (source, prefix) in enumerate(prompts):
        if has_encoder and not 1 <= _length(source) <= longest:
            problems.append(f"prompt {i + 1}: the encoder reads 1 to {longest} tokens, not {_length(source)}")
        if not has_encoder and source is not None:
            problems.append(f"prompt {i + 1} has a source, but the model has no encoder to read it")
        if not 1 <= len(prefix) < longest:
            problems.append(f"prompt {i + 1}: the decoder starts from 1 to {longest - 1} tokens, not {len(prefix)}")
    if problems:
        raise UserError(*problems[:10])


def _length(source: Sequence[int] | None) -> int:
    return 0 if source is None else len(source)


def _batches(
    prompts: Sequence[Prompt], limits: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray], int]]:
    """Prompts of like length together: their places, the arrays that `beam_search` reads, and the largest limit.

    All batches have as many rows; those of none write nothing. Lengths are rounded up to few, longest first, so
    that what does not fit in memory is known at once.
    """
    sizes = [(_length(source), len(prefix), limit) for (source, prefix), limit in zip(prompts, limits, strict=True)]
    order = sorted(range(len(prompts)), key=sizes.__getitem__, reverse=True)
    largest, rows = np.max(sizes, axis=0, initial=0).tolist(), min(batch_size, len(prompts))
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        longest = np.max([sizes[place] for place in places], axis=0).tolist()
        source_width, width, limit = map(bucket, longest, largest)
        chosen = [prompts[place] for place in places]
        tokens, lengths = padded([prefix for _, prefix in chosen], rows, width)
        batch = dict(tokens=tokens, lengths=lengths, limits=np.zeros(rows, np.int32))
        batch["limits"][: len(places)] = [limits[place] for place in places]
        if source_width:
            batch["source"], batch["source_lengths"] = padded([source for source, _ in chosen], rows, source_width)
        yield places, batch, limit


def padded(texts: Sequence[Sequence[int]], rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [rows, width], padded on the right, and the length of each row: 1 where there is no text."""
    tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], lengths[row] = text, len(text)
    return tokens, lengths
