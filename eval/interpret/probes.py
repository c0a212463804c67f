"""What hidden states hold: labels that can be read off them, likeness of two models, what a unit is active for."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from eval.interpret.reading import Reading, tapped
from train.config import UserError
from train.run import Run


@dataclass(frozen=True)
class Probe:
    """How well labels can be read off an activation: accuracy of a logistic regression, and of the commonest label."""

    address: str
    train_accuracy: float
    test_accuracy: float
    majority: float


def linear_probes(
    run: Run,
    readings: Sequence[Reading],
    labels: Sequence[object],
    *patterns: str,
    test_fraction: float = 0.25,
    seed: int = 0,
) -> list[Probe]:
    """A linear probe (Alain & Bengio 2016) on the mean over the tokens of each activation that a pattern matches.

    Default: every layer's output. Raises UserError where there are not two of each label, or the `eval` extra lacks.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError("probes need scikit-learn: pip install 'quire[eval]'") from None
    if len(readings) != len(labels):
        raise UserError(f"there are {len(readings)} texts and {len(labels)} labels")
    features: dict[str, list[np.ndarray]] = {}
    for reading in readings:
        for address, value in _activations(run, reading, patterns).items():
            features.setdefault(address, []).append(value.reshape(len(value), -1).mean(axis=0))
    chosen = np.asarray([str(label) for label in labels])
    try:
        split = train_test_split(np.arange(len(chosen)), test_size=test_fraction, random_state=seed, stratify=chosen)
    except ValueError as error:
        raise UserError(f"the texts cannot be split into train and test: {error}") from error
    train, test = split
    commonest = max(set(chosen[train]), key=lambda label: (chosen[train] == label).sum())
    found = []
    for address, rows in features.items():
        x = np.stack(rows)
        x = (x - x[train].mean(axis=0)) / (x[train].std(axis=0) + 1e-6)
        probe = LogisticRegression(max_iter=2000).fit(x[train], chosen[train])
        accuracies = (float((probe.predict(x[part]) == chosen[part]).mean()) for part in (train, test))
        found.append(Probe(address, *accuracies, float((chosen[test] == commonest).mean())))
    return found


def linear_cka(first: Float[np.ndarray, "rows width"], second: Float[np.ndarray, "rows other"]) -> float:
    """Centered kernel alignment with linear kernels (Kornblith et al. 2019, equation 5): 1 is the same up to rotation
    and scale, 0 nothing in common."""
    x, y = (np.asarray(part, np.float64) - np.mean(part, axis=0, dtype=np.float64) for part in (first, second))
    shared = np.square(y.T @ x).sum()
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(shared / norm) if norm else float("nan")


def similarity(
    first: Run, second: Run, texts: Sequence[tuple[Reading, Reading]], *patterns: str
) -> tuple[list[str], list[str], Float[np.ndarray, "first second"]]:
    """(addresses of the first, addresses of the second, CKA of each pair) over the tokens of texts that both read.

    `texts`: the same text as each run reads it; both must have as many tokens, else the mean over tokens is compared.
    """
    sides: list[dict[str, list[np.ndarray]]] = [{}, {}]
    aligned = all(len(a.pieces) == len(b.pieces) for a, b in texts)
    for pair in texts:
        for run, reading, side in zip((first, second), pair, sides, strict=True):
            for address, value in _activations(run, reading, patterns).items():
                rows = value.reshape(len(value), -1)
                side.setdefault(address, []).append(rows if aligned else rows.mean(axis=0, keepdims=True))
    stacked = [{address: np.concatenate(rows) for address, rows in side.items()} for side in sides]
    table = [[linear_cka(x, y) for y in stacked[1].values()] for x in stacked[0].values()]
    return list(stacked[0]), list(stacked[1]), np.array(table)


@dataclass(frozen=True)
class Unit:
    """One of the tokens a unit is most active for: the activation, the token, and the pieces around it."""

    activation: float
    piece: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def top_activations(
    run: Run, readings: Sequence[Reading], address: str, unit: int, k: int = 10, context: int = 8
) -> list[Unit]:
    """The k tokens for which a unit of an activation is most active; a neuron's address ends in feed_forward/hidden."""
    heap: list[tuple[float, int, int]] = []
    for number, reading in enumerate(readings):
        values = next(iter(_activations(run, reading, (address,)).values()))
        values = values.reshape(len(values), -1)
        if not 0 <= unit < values.shape[1]:
            raise UserError(f"{address} has {values.shape[1]} units; there is no {unit}")
        for place, value in enumerate(values[:, unit]):
            heapq.heappush(heap, (float(value), -number, -place))
            if len(heap) > k:
                heapq.heappop(heap)
    found = []
    for value, number, place in sorted(heap, reverse=True):
        pieces, at = readings[-number].pieces, -place
        found.append(Unit(value, pieces[at], pieces[max(at - context, 0) : at], pieces[at + 1 : at + 1 + context]))
    return found


def _activations(run: Run, reading: Reading, patterns: Sequence[str]) -> dict[str, np.ndarray]:
    """Address → [length, …]."""
    _, taps = tapped(run, reading, *(patterns or (f"{reading.stack}/layers/*/output",)))
    return {address: np.asarray(value[0], np.float32) for address, value in taps.items()}
