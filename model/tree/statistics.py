"""What lies in arrays, in memory or on disk, block by block: numbers of each, differences of two, places of a value.

All functions take {path: array}: an `Archive`, or `named_leaves` of parameters. An array is anything with a shape, a
dtype and slices; of one on disk a block is in memory at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Arrays = Mapping[str, Any]

_BLOCK_BYTES = 32 << 20
STACKED = "/layers/"


@dataclass(frozen=True)
class Stats:
    """Of the numbers that are finite: norm, mean, standard deviation, extremes; and how many are 0, NaN, infinite."""

    count: int
    norm: float
    mean: float
    standard_deviation: float
    least: float
    greatest: float
    zeros: int
    nans: int
    infinities: int


def layers(arrays: Arrays) -> dict[str, Any]:
    """The same arrays with each stacked one as its layers: `decoder/layers/3/feed_forward/up/kernel`."""
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if STACKED in name and len(array.shape):
            stack, _, rest = name.partition(STACKED)
            found |= {f"{stack}{STACKED}{i}/{rest}": _Layer(array, i) for i in range(array.shape[0])}
        else:
            found[name] = array
    return found


@dataclass(frozen=True)
class _Layer:
    stacked: Any
    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stacked.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.stacked.dtype

    def __getitem__(self, index: Any) -> Any:
        return self.stacked[self.number, *(index if isinstance(index, tuple) else (index,))]


def blocks(array: Any) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Parts that make up the array, and where each stands; a part has at most 32 MiB, unless a row has more."""
    shape = tuple(array.shape)
    left, step = _BLOCK_BYTES // max(np.dtype(array.dtype).itemsize, 1), []
    for size in reversed(shape):
        step.insert(0, max(1, min(size, left)))
        left //= max(size, 1)
    ranges = [range(0, size, by) for size, by in zip(shape, step, strict=True)]
    for starts in itertools.product(*ranges):
        index = tuple(slice(start, min(start + by, size)) for start, by, size in zip(starts, step, shape, strict=True))
        yield index, np.asarray(array[index] if index else array[()])


def stats(array: Any) -> Stats:
    """`Stats` of an array; of one without finite numbers, its mean and extremes are NaN."""
    count = zeros = nans = infinities = finite = 0
    total = squares = 0.0
    mean, deviation = 0.0, 0.0  # of what has been seen; Chan et al. 1979 put parts together
    least, greatest = math.inf, -math.inf
    for _, block in blocks(array):
        numbers = block.astype(np.float64).ravel()
        count, zeros = count + numbers.size, zeros + int((numbers == 0).sum())
        nans, infinities = nans + int(np.isnan(numbers).sum()), infinities + int(np.isinf(numbers).sum())
        numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            continue
        squares, total = squares + float(numbers @ numbers), finite + numbers.size
        gap = float(numbers.mean()) - mean
        deviation += float(numbers.var()) * numbers.size + gap**2 * finite * numbers.size / total
        mean, finite = mean + gap * numbers.size / total, total
        least, greatest = min(least, float(numbers.min())), max(greatest, float(numbers.max()))
    if not finite:
        mean = deviation = least = greatest = math.nan
    spread = math.sqrt(deviation / finite) if finite else math.nan
    return Stats(count, math.sqrt(squares), mean, spread, least, greatest, zeros, nans, infinities)


def singular_values(name: str, array: Any) -> np.ndarray:
    """Of a kernel as a matrix [inputs, outputs], largest first; of stacked layers [layers, values].

    The output projection of attention has two dims of inputs, every other kernel one. Raises ValueError for what is no
    matrix.
    """
    kernel = np.asarray(array[...]).astype(np.float32)
    stacked = STACKED in name
    num_inputs = 2 if name.endswith("/out/kernel") and kernel.ndim == 3 + stacked else 1
    if kernel.ndim - stacked < 2:
        raise ValueError(f"{name} of shape {kernel.shape} is no matrix")
    rows = math.prod(kernel.shape[stacked : stacked + num_inputs])
    return np.linalg.svd(kernel.reshape(*kernel.shape[:stacked], rows, -1), compute_uv=False)


def effective_rank(values: np.ndarray) -> np.ndarray:
    """exp(entropy of the singular values as shares of their sum), over the last dim (Roy & Vetterli 2007)."""
    shares = values / np.maximum(values.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    logarithms = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return np.exp(-(shares * logarithms).sum(axis=-1))


# Differences


@dataclass(frozen=True)
class Difference:
    """How an array of one tree is other than that of the same path in another.

    relative: norm of the difference / norm of the first. greatest: of the absolute differences.
    """

    name: str
    kind: Literal["only in the first", "only in the second", "another shape", "changed", "same"]
    detail: str = ""
    relative: float = 0.0
    greatest: float = 0.0


_ORDER = ("only in the first", "only in the second", "another shape", "changed", "same")


def diff(first: Arrays, second: Arrays) -> list[Difference]:
    """Every path of either: what one lacks, then other shapes, then what changed, the most first.

    Numbers are compared, whatever their types; NaN equals NaN, and a number that only one side has finite counts as an
    infinite change.
    """
    found = []
    for name in dict.fromkeys((*first, *second)):
        if name not in second:
            found.append(Difference(name, "only in the first", _what(first[name])))
        elif name not in first:
            found.append(Difference(name, "only in the second", _what(second[name])))
        elif tuple(first[name].shape) != tuple(second[name].shape):
            found.append(Difference(name, "another shape", f"{_what(first[name])} → {_what(second[name])}"))
        else:
            found.append(_compared(name, first[name], second[name]))
    return sorted(found, key=lambda one: (_ORDER.index(one.kind), -one.relative, one.name))


def _compared(name: str, first: Any, second: Any) -> Difference:
    squares = base = greatest = 0.0
    for index, block in blocks(first):
        a, b = (np.asarray(x).astype(np.float64) for x in (block, second[index] if index else second[()]))
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(equal, 0.0, np.abs(a - b))
        gap = np.where(np.isnan(gap), np.inf, gap)
        squares, base = squares + float(np.square(gap).sum()), base + float(np.square(a[np.isfinite(a)]).sum())
        greatest = max(greatest, float(gap.max(initial=0.0)))
    detail = "" if first.dtype == second.dtype else f"{first.dtype} → {second.dtype}"
    if not greatest:
        return Difference(name, "same", detail)
    relative = math.sqrt(squares / base) if base else math.inf
    return Difference(name, "changed", detail, relative, greatest)


def _what(array: Any) -> str:
    return f"{tuple(array.shape)} {array.dtype}"


# Places


@dataclass(frozen=True)
class Place:
    """Where something was found: how often in the array, and the first places."""

    name: str
    count: int
    first: tuple[tuple[int, ...], ...]


_MOST_PLACES = 5


def find_value(arrays: Arrays, value: float, tolerance: float = 0.0) -> list[Place]:
    """Arrays that have the value, within `tolerance`; NaN finds NaN."""
    found = []
    for name, array in arrays.items():
        count, first = 0, []
        for index, block in blocks(array):
            numbers = block.astype(np.float64)
            if math.isnan(value):
                hits = np.isnan(numbers)
            else:
                hits = (numbers == value) | (np.abs(numbers - value) <= tolerance)
            count += int(hits.sum())
            start = [part.start for part in index]
            for place in np.argwhere(hits)[: _MOST_PLACES - len(first)]:
                first.append(tuple(int(i) for i in place + np.array(start, int)))
        if count:
            found.append(Place(name, count, tuple(first)))
    return found


def find_dead(arrays: Arrays, threshold: float = 0.0) -> list[Place]:
    """Units whose weights are all at most `threshold` from 0: rows of embeddings, outputs of kernels.

    A place is the number of the unit, after that of the layer where layers are stacked.
    """
    found = []
    for name, array in arrays.items():
        kind, stacked = name.rpartition("/")[2], int(STACKED in name)
        if kind not in ("kernel", "embedding", "weight") or len(array.shape) < 2 + stacked:
            continue
        # HF keeps a linear layer's outputs first, as an embedding its rows.
        unit = len(array.shape) - 1 if kind == "kernel" else stacked
        alive = np.zeros((*array.shape[:stacked], array.shape[unit]), bool)
        for index, block in blocks(array):
            others = tuple(dim for dim in range(stacked, block.ndim) if dim != unit)
            alive[*index[:stacked], index[unit]] |= (np.abs(block.astype(np.float32)) > threshold).any(axis=others)
        if not alive.all():
            places = np.argwhere(~alive)
            found.append(Place(name, len(places), tuple(tuple(map(int, place)) for place in places[:_MOST_PLACES])))
    return found
