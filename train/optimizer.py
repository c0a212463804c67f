"""An optax transformation from its config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from model import tree
from train import config as cfg
from train.config import UserError


def learning_rate(optimizer: cfg.Optimizer, num_steps: int) -> optax.Schedule:
    """Learning rate as a function of the number of updates made: linear warm-up, then the schedule."""
    schedule, peak = optimizer.schedule, optimizer.peak_learning_rate
    warmup = schedule.warmup_steps
    rest = max(num_steps - warmup, 1)
    match schedule:
        case cfg.Constant():
            after = optax.constant_schedule(peak)
        case cfg.Linear():
            after = optax.linear_schedule(peak, schedule.final_fraction * peak, rest)
        case cfg.Cosine():
            after = optax.cosine_decay_schedule(peak, rest, alpha=schedule.final_fraction)
        case cfg.InverseSquareRoot():
            after = lambda step: peak * (warmup / (step + warmup)) ** 0.5  # noqa: E731
        case cfg.WarmupStableDecay():
            decay = optax.linear_schedule(peak, schedule.final_fraction * peak, schedule.decay_steps)
            after = optax.join_schedules([optax.constant_schedule(peak), decay], [rest - schedule.decay_steps])
    if not warmup:
        return after
    # The first update already moves: at step 0 the rate is peak / warmup, as at step 1 in the papers' formulas.
    return optax.join_schedules([lambda step: peak * (step + 1) / warmup, after], [warmup])


def make_optimizer(optimizer: cfg.Optimizer, num_steps: int, boxed, trained=None) -> optax.GradientTransformation:
    """Clipping and the optimizer, for parameters in boxes (abstract is enough) that name their dims.

    `trained`: the part of `boxed` that is optimized; all of it by default.
    Raises `UserError` for a `no_decay` pattern as `matching` does.
    """
    rate = learning_rate(optimizer, num_steps)
    trained = boxed if trained is None else trained
    decays = None
    if isinstance(optimizer, cfg.Decayed):
        exempt = matching(boxed, "optimizer.no_decay", optimizer.no_decay)
        decays = _by_name(lambda name, _: name not in exempt, tree.unbox(trained))
    match optimizer:
        case cfg.SGD():
            core = optax.sgd(rate, momentum=optimizer.momentum or None, nesterov=optimizer.nesterov)
        case cfg.Adam():
            core = optax.adam(rate, b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.epsilon)
        case cfg.AdamW():
            core = optax.adamw(
                rate,
                b1=optimizer.b1,
                b2=optimizer.b2,
                eps=optimizer.epsilon,
                weight_decay=optimizer.weight_decay,
                mask=decays,
            )
        case cfg.Adafactor():
            core = optax.adafactor(
                rate, decay_rate=optimizer.decay_rate, min_dim_size_to_factor=optimizer.min_dim_size_to_factor
            )
        case cfg.Lion():
            core = optax.lion(rate, b1=optimizer.b1, b2=optimizer.b2, weight_decay=optimizer.weight_decay, mask=decays)
        case cfg.Muon():
            core = optax.contrib.muon(
                rate,
                beta=optimizer.momentum,
                weight_decay=optimizer.weight_decay,
                weight_decay_mask=decays,
                adam_b1=optimizer.b1,
                adam_b2=optimizer.b2,
                adam_weight_decay=optimizer.weight_decay,
                muon_weight_dimension_numbers=_muon_dims(trained),
                consistent_rms=0.2,
            )
    clip = optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    if optimizer.layer_decay is None:
        return optax.chain(clip, core)
    factors = layer_factors(optimizer.layer_decay, boxed, trained)
    scale = optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * jnp.asarray(f, u.dtype), updates, factors))
    return optax.chain(clip, core, scale)


def matching(boxed: Any, field: str, patterns: Sequence[str]) -> list[str]:
    """Names of the parameters that any of the patterns of the config's `field` matches as a whole.

    Raises UserError for a pattern that matches nothing or is not a regular expression.
    """
    try:
        chosen = tree.named_leaves(tree.matches(tree.unbox(boxed), patterns))
    except ValueError as error:
        raise UserError(f"{field}: {error}") from error
    return [name for name, is_chosen in chosen.items() if is_chosen]


def layer_factors(decay: float, boxed: Any, trained: Any) -> Any:
    """What each trained parameter's learning rate is multiplied by: layer-wise decay, as in ELECTRA's released code.

    decay ** (n + 2 - depth) with n layers in all. Depth is 0 for all that lies below or beside the layers (embeddings
    of tokens, positions and sentences, relative biases), 1 … n for the layers, one more than its last layer's for a
    stack's final norm, and n + 2 for the heads, which so learn at the full rate. An encoder-decoder's layers are
    counted through, the encoder's first. A stacked parameter has a factor for each layer: an array [layers, 1, …].
    """
    shapes = {name: leaf.shape for name, leaf in tree.named_leaves(tree.unbox(boxed)).items()}
    counts = {name.split("/")[0]: shape[0] for name, shape in shapes.items() if "/layers/" in name}
    num_layers = counts.get("encoder", 0) + counts.get("decoder", 0)

    def factor(name: str, box: Any) -> np.ndarray:
        stack, _, part = name.removeprefix("lora/").partition("/")
        below = counts.get("encoder", 0) if stack == "decoder" else 0
        depth = np.array(0)
        if stack in ("head", "heads"):
            depth = np.array(num_layers + 2)
        elif part.startswith("final_norm/"):
            depth = np.array(below + counts[stack] + 1)
        elif part.startswith("layers/"):
            shape = box.value.shape  # where not all layers are trained, they are the last
            depth = below + counts[stack] - np.arange(shape[0])[::-1].reshape(-1, *[1] * (len(shape) - 1))
        return decay ** (num_layers + 2.0 - depth)

    return _by_name(factor, trained)


def kernel_dims(name: str, dims: Sequence[str | None]) -> tuple[int, int]:
    """How many of a kernel's dims stack layers and experts, and how many of those that follow are its inputs."""
    stacked = len(list(takewhile(("layers", "experts").__contains__, dims)))
    return stacked, 2 if name.endswith("/out/kernel") else 1  # attention's output contracts heads and head_dim


def _muon_dims(boxed):
    """Which dims of each block's kernel are inputs and outputs; None sends a parameter to AdamW."""

    def dims(name, box):
        if "/layers/" not in name or not name.endswith("/kernel") or name.endswith("/router/kernel"):
            return None
        stacked, inputs = kernel_dims(name, box.names)
        last, count = stacked + inputs, len(box.names)
        return optax.contrib.MuonDimensionNumbers(tuple(range(stacked, last)), tuple(range(last, count)))

    return _by_name(dims, boxed)


def _by_name(function: Callable[[str, Any], Any], params: Any) -> Any:
    """`function(name, leaf)` for every leaf, in a tree of the same form; boxes are leaves."""
    return jax.tree_util.tree_map_with_path(lambda p, x: function(tree.path_name(p), x), params, is_leaf=tree.is_box)
