"""Where attention goes: maps of one layer and head, and what they come to over all layers."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from eval.interpret.reading import Reading, tapped
from model.tree import glob
from train.config import UserError
from train.run import Run

Kind = Literal["self", "cross", "encoder"]


def attention(run: Run, reading: Reading, kind: Kind = "self") -> Float[np.ndarray, "layers heads query key"]:
    """The attention probabilities of every layer and head.

    `kind`: of the pieces to each other; of an encoder–decoder also `cross`, of the pieces to the source, and `encoder`,
    of the source to itself.
    """
    stack = "encoder" if kind == "encoder" else reading.stack
    if kind != "self" and not reading.source:
        raise UserError(f"{run.directory} has no {kind} attention; only an encoder–decoder has")
    pattern = f"{stack}/layers/*/{'cross' if kind == 'cross' else 'self'}_attention/probabilities"
    _, taps = tapped(run, reading, pattern)
    return np.stack([np.asarray(value[0]) for address, value in taps.items() if glob(pattern)(address)])


def rollout(maps: Float[np.ndarray, "layers heads query key"]) -> Float[np.ndarray, "layers query key"]:
    """How much of each input token is in each place after every layer (Abnar & Zuidema 2020, section 3).

    The heads' mean, half of it the residual connection, multiplied from layer to layer. Rows sum to 1.
    """
    steps = _with_residual(maps)
    found = [steps[0]]
    for step in steps[1:]:
        found.append(step @ found[-1])
    return np.stack(found)


def flow(maps: Float[np.ndarray, "layers heads query key"], place: int = -1) -> Float[np.ndarray, "key"]:
    """The greatest flow from each input token to `place` after the last layer (Abnar & Zuidema 2020, section 3).

    Tokens of all layers are nodes, attention with the residual connection the capacities between them.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    steps = _with_residual(maps)
    num_layers, length, _ = steps.shape
    exact = 2**24  # the library's capacities are integers
    capacities = np.zeros(((num_layers + 1) * length,) * 2, np.int32)
    for layer, step in enumerate(steps):
        below, above = slice(layer * length, (layer + 1) * length), slice((layer + 1) * length, (layer + 2) * length)
        capacities[below, above] = np.round(step.T * exact)
    graph, sink = csr_array(capacities), num_layers * length + place % length
    return np.array([maximum_flow(graph, token, sink).flow_value / exact for token in range(length)])


def _with_residual(maps: np.ndarray) -> np.ndarray:
    steps = (maps.astype(np.float64).mean(axis=1) + np.eye(maps.shape[-1])) / 2
    return steps / steps.sum(axis=-1, keepdims=True)
