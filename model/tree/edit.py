"""Parameters into other parameters: short pure functions over plain nested dicts. None changes what it is given.

Patterns are those of `glob`: decoder/layers/*/kernel, **/bias. One that matches no path is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from model.tree import glob, named_leaves, near

Params = dict[str, Any]


def select(params: Params, *patterns: str) -> Params:
    """The part of the tree that any pattern matches."""
    leaves = named_leaves(params)
    return _nested({name: leaves[name] for name in _matching(leaves, patterns)})


def partition(params: Params, *patterns: str) -> tuple[Params, Params]:
    """(what a pattern matches, the rest): trained and frozen, for `jax.grad` over the first. `combine` undoes it."""
    leaves = named_leaves(params)
    chosen = _matching(leaves, patterns)
    rest = {name: leaf for name, leaf in leaves.items() if name not in chosen}
    return _nested({name: leaves[name] for name in chosen}), _nested(rest)


def combine(*parts: Params) -> Params:
    """One tree of several that have no path in common."""
    found: dict[str, Any] = {}
    for part in parts:
        leaves = named_leaves(part)
        if twice := next((name for name in leaves if name in found), None):
            raise ValueError(f"{twice} is in two of the parts")
        found |= leaves
    return _nested(found)


def map_leaves(function: Callable[[str, Any], Any], params: Params, *patterns: str) -> Params:
    """`function(path, array)` in place of every array that a pattern matches; no pattern: of all."""
    leaves = named_leaves(params)
    changed = {name: function(name, leaves[name]) for name in _matching(leaves, patterns or ("**",))}
    return _nested(leaves | changed)


def replace(params: Params, changes: Mapping[str, Any]) -> Params:
    """The tree with other arrays at some paths. Raises ValueError for a path that is not there or another shape."""
    leaves = named_leaves(params)
    for name, value in changes.items():
        if name not in leaves:
            raise ValueError(f"{name}: the tree has no such path{near(name, leaves)}")
        if np.shape(value) != np.shape(leaves[name]):
            raise ValueError(f"{name}: has shape {np.shape(leaves[name])}, its replacement {np.shape(value)}")
    return _nested(leaves | dict(changes))


def average(trees: Sequence[Params], weights: Sequence[float] | None = None) -> Params:
    """The weighted mean of trees of the same form, computed in float32: model soups (Wortsman et al. 2022)."""
    if not trees:
        raise ValueError("there is no tree to average")
    weights = [1 / len(trees)] * len(trees) if weights is None else [w / sum(weights) for w in weights]
    if len(weights) != len(trees):
        raise ValueError(f"{len(trees)} trees have {len(weights)} weights")
    _check_same(trees)

    def mean(*leaves: Any) -> Any:
        total = sum(jnp.asarray(leaf, jnp.float32) * weight for leaf, weight in zip(leaves, weights, strict=True))
        return total.astype(leaves[0].dtype)

    return jax.tree.map(mean, *trees)


def interpolate(first: Params, second: Params, position: float) -> Params:
    """From the first (0) on a line to the second (1), or beyond either."""
    return merge(first, [second], [position])


def merge(base: Params, tuned: Sequence[Params], scales: Sequence[float] | None = None) -> Params:
    """base + Σ scale · (tuned - base): task arithmetic (Ilharco et al. 2023); a scale below 0 unlearns a task."""
    scales = [1.0] * len(tuned) if scales is None else scales
    if len(scales) != len(tuned):
        raise ValueError(f"{len(tuned)} trees have {len(scales)} scales")
    _check_same([base, *tuned])

    def add(start: Any, *others: Any) -> Any:
        start32 = jnp.asarray(start, jnp.float32)
        changes = (scale * (jnp.asarray(x, jnp.float32) - start32) for x, scale in zip(others, scales, strict=True))
        return (start32 + sum(changes)).astype(start.dtype)

    return jax.tree.map(add, base, *tuned)


def prune(
    params: Params, fraction: float, *patterns: str, across: Literal["each", "all"] = "each"
) -> tuple[Params, Params]:
    """(the tree with the smallest weights 0, True where a weight is kept), by magnitude (Han et al. 2015).

    Args:
      fraction: of the weights that become 0.
      patterns: what is pruned; by default the kernels.
      across: the smallest of each array, or of all together.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be at least 0 and below 1, not {fraction}")
    leaves = named_leaves(params)
    chosen = {
        name: np.abs(np.asarray(leaves[name], np.float32)) for name in _matching(leaves, patterns or ("**/kernel",))
    }
    shared = np.quantile(np.concatenate([x.ravel() for x in chosen.values()]), fraction) if across == "all" else None
    kept = {name: np.ones(np.shape(leaf), bool) for name, leaf in leaves.items()}
    for name, size in chosen.items():
        if fraction:
            kept[name] = size > (np.quantile(size, fraction) if shared is None else shared)
    return jax.tree.map(lambda x, keep: jnp.where(keep, x, 0).astype(x.dtype), params, _nested(kept)), _nested(kept)


def _matching(leaves: Mapping[str, Any], patterns: Sequence[str]) -> list[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = set(filter(glob(pattern), leaves))
        if not hits:
            raise ValueError(f"{pattern}: no path is like that{near(pattern, leaves)}")
        found |= hits
    return [name for name in leaves if name in found]


def _check_same(trees: Sequence[Params]) -> None:
    first = {name: np.shape(leaf) for name, leaf in named_leaves(trees[0]).items()}
    for number, tree in enumerate(trees[1:], 2):
        other = {name: np.shape(leaf) for name, leaf in named_leaves(tree).items()}
        if other != first:
            name = next(name for name in (*first, *other) if first.get(name) != other.get(name))
            mine, others = (shapes.get(name, "nothing") for shapes in (first, other))
            raise ValueError(f"tree {number} has {others} at {name}, the first {mine}")


def _nested(leaves: Mapping[str, Any]) -> Params:
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")
