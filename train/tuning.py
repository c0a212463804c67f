"""Which parameters a run trains: all, some by name, the last layers, or low-rank additions (LoRA).

What is not trained is not differentiated, has no moments in the optimizer, and stays as it is bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array

from model import tree
from model.transformer import initialize
from train import config as cfg
from train import lora
from train.optimizer import matching


def initialize_all(model: nn.Module, tuning: cfg.Tuning, key: Array) -> dict[str, Any]:
    """New parameters in boxes that name their dims; with LoRA also `lora`, its factors."""
    boxed = initialize(model, key)
    return lora.add_factors(boxed, tuning, jax.random.fold_in(key, 1)) if isinstance(tuning, cfg.LoRA) else boxed


@dataclass(frozen=True)
class Trained:
    """The trained part of a parameter tree."""

    first_layer: Mapping[str, int]
    """Trained parameter → the first of its stacked layers that is trained; 0: all of it."""

    def select(self, params: dict[str, Any]) -> dict[str, Any]:
        """The trained parameters, of stacked layers only those that are trained, as a tree of the same names."""
        leaves = tree.named_leaves(params)
        chosen = {name: leaves[name][first:] if first else leaves[name] for name, first in self.first_layer.items()}
        return flax.traverse_util.unflatten_dict(chosen, sep="/")

    def insert(self, params: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
        """`params` with the trained ones replaced by `trained`, a tree as `select` gives it."""
        leaves, new = tree.named_leaves(params), tree.named_leaves(trained)
        for name, first in self.first_layer.items():
            leaves[name] = jnp.concatenate([leaves[name][:first], new[name]]) if first else new[name]
        return flax.traverse_util.unflatten_dict(leaves, sep="/")

    def select_boxes(self, boxed: Any) -> dict[str, Any]:
        """`select` for abstract parameters in boxes."""
        boxes = tree.named_leaves(boxed, is_leaf=tree.is_box)
        shapes = tree.named_leaves(jax.eval_shape(self.select, tree.unbox(boxed)))
        chosen = {name: boxes[name].replace_boxed(shape) for name, shape in shapes.items()}
        return flax.traverse_util.unflatten_dict(chosen, sep="/")


def trained_parameters(tuning: cfg.Tuning, boxed: Any) -> Trained:
    """What `tuning` trains of a tree from `initialize_all` (abstract is enough).

    Raises UserError for a pattern as `matching` does.
    """
    shapes = {name: leaf.shape for name, leaf in tree.named_leaves(tree.unbox(boxed)).items()}
    match tuning:
        case cfg.Full():
            first = dict.fromkeys(shapes, 0)
        case cfg.Frozen():
            first = dict.fromkeys(matching(boxed, "tuning.train", tuning.train), 0)
        case cfg.LastLayers():
            first = {name: shape[0] - tuning.count for name, shape in shapes.items() if "/layers/" in name}
            first |= {name: 0 for name in shapes if re.match(r"heads?/|\w+/final_norm/", name)}
        case cfg.LoRA():
            first = {name: 0 for name in shapes if name.startswith((lora.PREFIX, "heads/"))}
            first |= dict.fromkeys(matching(boxed, "tuning.also_train", tuning.also_train), 0)
    return Trained(first)
