"""What an experiment's config knows of each parameter, without any being made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from model import tree
from train.command_line import read_config
from train.config import Decayed
from train.objective import make_model
from train.optimizer import matching
from train.tuning import initialize_all, trained_parameters


@dataclass(frozen=True)
class ParameterFacts:
    """The names of its dims, what it begins as, and whether it is trained and decays."""

    dims: str
    initializer: str
    trained: bool
    decays: bool


def parameter_facts(config: Path) -> dict[str, ParameterFacts]:
    """Path → facts, of the parameters of the run that has this config.json, and of what LoRA adds to them."""
    experiment = read_config(config)
    boxed = jax.eval_shape(partial(initialize_all, make_model(experiment), experiment.tuning), jax.random.key(0))
    trained = trained_parameters(experiment.tuning, boxed).first_layer
    optimizer = experiment.optimizer
    decays = set(trained) if isinstance(optimizer, Decayed) and optimizer.weight_decay else set()
    if decays:
        decays -= set(matching(boxed, "optimizer.no_decay", optimizer.no_decay))
    return {
        name: ParameterFacts(
            " ".join(dim or "-" for dim in box.names), getattr(box, "initializer", ""), name in trained, name in decays
        )
        for name, box in tree.named_leaves(boxed, is_leaf=tree.is_box).items()
    }
