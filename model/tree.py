"""Path-named views of a parameter tree: `decoder/layers/self_attention/query/kernel`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def path_name(path: tuple) -> str:
    """A JAX key path as text, its parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path name, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def count(tree: Any) -> int:
    """Number of scalars in all leaves; works on abstract leaves too."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def matches(tree: Any, patterns: Sequence[str]) -> Any:
    """A tree of bools: does any pattern match the whole path? A pattern that matches nothing is a ValueError."""
    names = list(named_leaves(tree))
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"pattern '{pattern}' matches no parameter; parameters are {', '.join(names)}")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.fullmatch(pattern, path_name(path)) for pattern in patterns), tree
    )


def table(tree: Any) -> str:
    """One line per leaf (path, shape, type, size) and the total, to print in a notebook."""
    rows = [(name, str(tuple(x.shape)), str(x.dtype), f"{count(x):,}") for name, x in named_leaves(tree).items()]
    rows.append(("total", "", "", f"{count(tree):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows)
