"""What scores are given, checked: as many predictions as references, of the kind that a score needs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from train.config import UserError

References = Sequence[str] | Sequence[Sequence[str]]
"""One text per example, or several that are all right."""


def same_length(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raises UserError unless there are as many of one as of the other."""
    if len(predictions) != len(references):
        raise UserError(f"{name}: {len(predictions)} predictions do not go with {len(references)} references")


def texts(name: str, predictions: Sequence[str]) -> list[str]:
    """The predictions; raises UserError where one is no text."""
    for i, prediction in enumerate(predictions):
        if not isinstance(prediction, str):
            raise UserError(f"{name}: prediction {i} must be text, not {type(prediction).__name__}")
    return list(predictions)


def text_pairs(
    name: str, predictions: Sequence[str], references: References, *, may_lack: bool = False
) -> list[tuple[str, list[str]]]:
    """Each prediction with the list of its references, which may be empty only where `may_lack`."""
    same_length(name, predictions, references)
    pairs = []
    for i, (prediction, right) in enumerate(zip(texts(name, predictions), references, strict=True)):
        right = [right] if isinstance(right, str) else right
        if not isinstance(right, Sequence) or not all(isinstance(text, str) for text in right):
            raise UserError(f"{name}: the references of example {i} must be a text or a list of texts")
        if not right and not may_lack:
            raise UserError(f"{name}: example {i} has no reference")
        pairs.append((prediction, list(right)))
    return pairs


def numbers(name: str, values: Sequence[float]) -> np.ndarray:
    """float64 [examples]; raises UserError where one is no finite number."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be numbers: {error}") from error
    if array.ndim != 1:
        raise UserError(f"{name} must be one number per example, not an array of shape {list(array.shape)}")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise UserError(f"{name} must be finite, but example {wrong[0]} has {array[wrong[0]]}")
    return array


def library(module: str) -> ModuleType:
    """The module of an optional package; raises UserError where the package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"this score needs the package {package}: pip install 'quire[eval]'") from error
