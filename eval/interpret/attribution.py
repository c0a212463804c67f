"""What each token adds to an output."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from eval.interpret.reading import Reading, Target, call, tapped, target_of, told
from model.taps import capture, replace
from train.config import UserError
from train.run import Run

_AT_ONCE = 16


@dataclass(frozen=True)
class Attribution:
    """What the tokens add to a logit.

    scores: of each token. explained: what is explained, in words. output and baseline: the logit for the text, and for
    the text without content. error: |sum of the scores - (output - baseline)| / |output - baseline|: completeness
    (Sundararajan et al. 2017, section 3); None where the method does not promise it.
    """

    pieces: tuple[str, ...]
    scores: Float[np.ndarray, "length"]
    explained: str
    output: float
    baseline: float | None = None
    error: float | None = None


def gradient_times_input(run: Run, reading: Reading, target: Target | None = None) -> Attribution:
    """The gradient at each token's embedded vector, times that vector (Shrikumar et al. 2017)."""
    target, address = target_of(run, reading, target), _address(run, reading)
    embedded = _embedded(run, reading, address)
    output, gradient = jax.value_and_grad(_logit(run, reading, target, address))(embedded)
    scores = np.asarray((gradient * embedded)[0].sum(axis=-1))
    return Attribution(_pieces(reading), scores, told(run, target), float(output))


def integrated_gradients(
    run: Run, reading: Reading, target: Target | None = None, *, steps: int = 128, baseline_id: int | None = None
) -> Attribution:
    """The mean gradient on the line from a text without content, times the distance (Sundararajan et al. 2017).

    The line is between embedded vectors; positions are the same on both ends. Special tokens of the text stay.

    Args:
      steps: points on the line, each in the middle of its part. The error says whether they are enough.
      baseline_id: the token that stands for no content; by default the mask, or where there is none the padding.
    """
    target, address = target_of(run, reading, target), _address(run, reading)
    name = "encoder_tokens" if reading.source else "tokens"
    tokenizer, ids = run.tokenizer, reading.inputs[name]
    if baseline_id is None:
        baseline_id = tokenizer.pad_id if tokenizer.mask_id is None else tokenizer.mask_id
    special = np.isin(ids, list(tokenizer.special_ids - {tokenizer.unk_id}))
    empty = Reading(reading.pieces, reading.source, {**reading.inputs, name: np.where(special, ids, baseline_id)})
    start, end = _embedded(run, empty, address), _embedded(run, reading, address)
    logit = _logit(run, reading, target, address)

    @jax.jit
    def mean_gradient(points):
        return jax.lax.map(lambda point: jax.grad(logit)(start + point * (end - start)), points).sum(axis=0)

    points = (np.arange(steps, dtype=np.float32) + 0.5) / steps
    total = sum(mean_gradient(points[first : first + _AT_ONCE]) for first in range(0, steps, _AT_ONCE)) / steps
    scores = np.asarray(((end - start) * total)[0].sum(axis=-1), np.float64)
    output, baseline = float(logit(end)), float(logit(start))
    gap = output - baseline
    error = abs(scores.sum() - gap) / abs(gap) if gap else float(abs(scores.sum()))
    return Attribution(_pieces(reading), scores, told(run, target), output, baseline, error)


def _address(run: Run, reading: Reading) -> str:
    """Where the vectors of the tokens that are explained enter: the encoder, where there is one."""
    if reading.source and run.config.model.share_encoder_decoder:
        raise UserError("one stack that is both encoder and decoder is entered twice; its tokens cannot be explained")
    return f"{'encoder' if reading.source else reading.stack}/embedded"


def _pieces(reading: Reading) -> tuple[str, ...]:
    return reading.source or reading.pieces


def _embedded(run: Run, reading: Reading, address: str) -> jax.Array:
    return tapped(run, reading, address)[1][address]


def _logit(run: Run, reading: Reading, target: Target, address: str):
    """The target's logit as a function of the embedded vectors."""

    def logit(embedded: jax.Array) -> jax.Array:
        with capture(patch={address: replace(embedded)}):
            return target.of(call(run, run.params, reading.inputs))[0].astype(jnp.float32)

    return logit
