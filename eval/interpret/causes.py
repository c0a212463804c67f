"""What an answer rests on: the score again without a head, or without a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from eval.interpret.reading import Reading, Target, call, target_of
from model.taps import capture, replace, zero
from train.run import Run

Score = Callable[[Mapping[str, Array], Mapping[str, Array]], Array]
"""(outputs by head, inputs) → a number."""


@dataclass(frozen=True)
class Effects:
    """score: with all of the model. changes: score without the part - score, [layers, heads] or [layers]."""

    score: float
    changes: Float[np.ndarray, "layers *heads"]
    parts: tuple[str, ...]
    """Addresses of the layers."""


def head_effects(run: Run, readings: Sequence[Reading], score: Score | Target | None = None) -> Effects:
    """What the mean score over the readings loses without each head of self-attention (Michel et al. 2019).

    `score`: of a reading's outputs and inputs; or a target, whose logit it is; by default the model's own answer to the
    first reading.
    """
    scores, stack = _scorer(run, readings, score), readings[0].stack
    layers = range(_num_layers(run, stack))

    def without(layer: int, params, inputs, head):
        with capture(patch={f"{stack}/layers/{layer}/self_attention/attended": zero((..., head, slice(None)))}):
            return scores(call(run, params, inputs), inputs)

    heads = np.arange(run.config.model.num_heads)
    changes = [[_mean(jax.jit(partial(without, layer)), run, readings, heads)] for layer in layers]
    return _effects(run, readings, scores, np.concatenate(changes), [f"{stack}/layers/{i}" for i in layers])


def layer_effects(run: Run, readings: Sequence[Reading], score: Score | Target | None = None) -> Effects:
    """The same without each layer: what comes out of it is what goes into it."""
    scores, stack = _scorer(run, readings, score), readings[0].stack
    layers = range(_num_layers(run, stack))
    first = "embedding_projection/output" if run.config.model.embedding_dim is not None else "embedded"

    def without(layer: int, params, inputs, _):
        before = f"{stack}/layers/{layer - 1}/output" if layer else f"{stack}/{first}"
        with capture(before) as taps:
            call(run, params, inputs)
        with capture(patch={f"{stack}/layers/{layer}/output": replace(taps[before])}):
            return scores(call(run, params, inputs), inputs)

    changes = [_mean(jax.jit(partial(without, layer)), run, readings, np.zeros(1, int))[0] for layer in layers]
    return _effects(run, readings, scores, np.array(changes), [f"{stack}/layers/{i}" for i in layers])


def _mean(compute: Callable, run: Run, readings: Sequence[Reading], parts: np.ndarray) -> np.ndarray:
    """Of each part, the mean score over the readings without it."""
    return np.array([np.mean([float(compute(run.params, dict(r.inputs), part)) for r in readings]) for part in parts])


def _effects(
    run: Run, readings: Sequence[Reading], scores: Score, without: np.ndarray, parts: Sequence[str]
) -> Effects:
    whole = float(np.mean([float(scores(call(run, run.params, r.inputs), r.inputs)) for r in readings]))
    return Effects(whole, without - whole, tuple(parts))


def _scorer(run: Run, readings: Sequence[Reading], score: Score | Target | None) -> Score:
    if callable(score):
        return score
    target = target_of(run, readings[0], score)

    def logit(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> Array:
        return target.of(outputs)[0]

    return logit


def _num_layers(run: Run, stack: str) -> int:
    config = run.config.model
    is_both = config.stack == "encoder_decoder" and stack == "encoder"
    return config.count_of_encoder_layers if is_both else config.num_layers
