"""Path-named views of a parameter tree: `decoder/layers/self_attention/query/kernel`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax.core.meta import AxisMetadata

from model.text_table import aligned


def path_name(path: tuple) -> str:
    """A JAX key path as text, its parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves by path name, in tree order; `is_leaf=is_box` stops at boxes."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


def glob(pattern: str) -> Callable[[str], bool]:
    """Whether a path is like the pattern, as a whole: `*` stands for any part or piece of one, `**` for any number."""
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    known = {"*": "[^/]*", "**": ".*", "**/": "(?:.*/)?"}
    compiled = re.compile("".join(known.get(part, re.escape(part)) for part in parts))
    return lambda path: compiled.fullmatch(path) is not None


def near(name: str, known: Iterable[str]) -> str:
    """The rest of a sentence about a path that is not there: those near to it, or the first of all."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, 3, 0.5):
        return f"; did you mean {' or '.join(close)}?"
    rest = f" and {len(known) - 20:,} more" if len(known) > 20 else ""
    return f"; there are {', '.join(known[:20])}{rest}"


def unbox(boxed: Any) -> Any:
    """The plain nested dict inside a tree from `initialize`, without the names of its dims; plain leaves stay."""
    return jax.tree.map(lambda leaf: leaf.value if is_box(leaf) else leaf, boxed, is_leaf=is_box)


def is_box(x: Any) -> bool:
    """Does a leaf come with the names of its dims?"""
    return isinstance(x, AxisMetadata)


def count(tree: Any) -> int:
    """Number of scalars in all leaves; works on abstract leaves too."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def matches(tree: Any, patterns: Sequence[str]) -> Any:
    """A tree of bools: does any pattern match the whole path?

    A pattern that matches nothing, or is not a regular expression, is a ValueError.
    """
    names = list(named_leaves(tree))
    for pattern in patterns:
        try:
            is_match = re.compile(pattern).fullmatch
        except re.error as error:
            raise ValueError(f"pattern '{pattern}' is not a regular expression: {error}") from error
        if not any(map(is_match, names)):
            raise ValueError(f"pattern '{pattern}' matches no parameter; parameters are {', '.join(names)}")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.fullmatch(pattern, path_name(path)) for pattern in patterns), tree
    )


def table(tree: Any) -> str:
    """One line per leaf (path, shape, type, size) and the total, to print in a notebook.

    Of a tree from `initialize`, a line also has the names of the leaf's dims.
    """
    leaves = named_leaves(unbox(tree))
    boxes = jax.tree.leaves(tree, is_leaf=is_box)
    dims = [" ".join(name or "-" for name in box.names) if is_box(box) else "" for box in boxes]
    rows = [
        (name, str(tuple(x.shape)), str(x.dtype), names, f"{count(x):,}")
        for (name, x), names in zip(leaves.items(), dims, strict=True)
    ]
    rows.append(("total", "", "", "", f"{count(tree):,}"))
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    return "\n".join(aligned(list(zip(*columns, strict=True)), right=[len(columns) - 1]))


def show(tree: Any) -> None:
    """A tree to open and close in a notebook, with the values of its arrays, through treescope."""
    import treescope

    treescope.display(tree, autovisualize=True, ignore_exceptions=True)


def show_sharding(array: jax.Array) -> None:
    """A drawing of which device holds which part of an array, in a notebook."""
    import treescope

    treescope.show(treescope.render_array_sharding(array))
