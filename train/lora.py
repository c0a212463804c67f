"""Low-rank adaptation (Hu et al. 2021) over a parameter tree: no model knows of it.

The factors of a kernel `decoder/layers/self_attention/query/kernel` are `lora/decoder/…/kernel/a` and `…/b` in the same
tree, stacked as the kernel is; a kernel's inputs, or its outputs, may be several dims (heads and head_dim).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from model import tree
from train import config as cfg
from train.config import UserError
from train.optimizer import kernel_dims, matching

PREFIX = "lora/"


def add_factors(boxed: dict[str, Any], config: cfg.LoRA, key: Array) -> dict[str, Any]:
    """A tree from `initialize` with factors, in boxes, of every kernel that one of the targets matches.

    `a` is N(0, 1 / inputs), so that a x has the scale of x; `b` is 0 (section 4.1). Raises UserError when a target
    matches nothing, or something that is no kernel.
    """
    boxes = tree.named_leaves(boxed, is_leaf=tree.is_box)
    factors: dict[str, Any] = {}
    for number, name in enumerate(matching(boxed, "tuning.targets", config.targets)):
        if not name.endswith("/kernel"):
            raise UserError(f"tuning.targets: {name} is no kernel, so it cannot have a low-rank addition")
        names, (shape, dtype) = boxes[name].names, (boxes[name].value.shape, boxes[name].value.dtype)
        stacked, inputs = kernel_dims(name, names)
        last = stacked + inputs
        scale = np.prod(shape[stacked:last]) ** -0.5
        a = scale * jax.random.normal(jax.random.fold_in(key, number), (*shape[:last], config.rank), dtype)
        b = jnp.zeros((*shape[:stacked], config.rank, *shape[last:]), dtype)
        factors[f"{PREFIX}{name}/a"] = nn.LogicallyPartitioned(a, (*names[:last], None))
        factors[f"{PREFIX}{name}/b"] = nn.LogicallyPartitioned(b, (*names[:stacked], None, *names[last:]))
    return boxed | flax.traverse_util.unflatten_dict(factors, sep="/")


def merge(params: dict[str, Any], tuning: cfg.Tuning) -> dict[str, Any]:
    """The model's own parameters: kernel + alpha / rank * a b, without the factors; as they are without LoRA."""
    if not isinstance(tuning, cfg.LoRA):
        return params
    leaves = tree.named_leaves(params)
    merged = {name: leaf for name, leaf in leaves.items() if not name.startswith(PREFIX)}
    for name in merged:
        if (a := leaves.get(f"{PREFIX}{name}/a")) is None:
            continue
        b = leaves[f"{PREFIX}{name}/b"]
        stacked = tuple(range(a.ndim + b.ndim - 2 - merged[name].ndim))
        product = jax.lax.dot_general(a, b, (((a.ndim - 1,), (len(stacked),)), (stacked, stacked)))
        merged[name] += tuning.alpha / tuning.rank * product
    return flax.traverse_util.unflatten_dict(merged, sep="/")
