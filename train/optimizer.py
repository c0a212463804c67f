"""An optax transformation from its config."""

from __future__ import annotations

import jax
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


def make_optimizer(optimizer: cfg.Optimizer, num_steps: int, boxed) -> optax.GradientTransformation:
    """Clipping and the optimizer, for parameters in boxes (abstract is enough) that name their dims.

    Raises `UserError` when a `no_decay` pattern matches no parameter.
    """
    rate = learning_rate(optimizer, num_steps)
    params, decays = tree.unbox(boxed), None
    if isinstance(optimizer, cfg.Decayed):
        try:
            decays = jax.tree.map(lambda matched: not matched, tree.matches(params, optimizer.no_decay))
        except ValueError as error:
            raise UserError(f"optimizer.no_decay: {error}") from error
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
                muon_weight_dimension_numbers=_muon_dims(boxed),
                consistent_rms=0.2,
            )
    clip = optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    return optax.chain(clip, core)


def _muon_dims(boxed):
    """Which dims of each block's kernel are inputs and outputs; None sends a parameter to AdamW."""

    def dims(path, box):
        name = tree.path_name(path)
        if "/layers/" not in name or not name.endswith("/kernel") or name.endswith("/router/kernel"):
            return None
        stacked = sum(dim in ("layers", "experts") for dim in box.names)
        inputs = 2 if name.endswith("/out/kernel") else 1  # attention's output contracts heads and head_dim
        last, count = stacked + inputs, len(box.names)
        return optax.contrib.MuonDimensionNumbers(tuple(range(stacked, last)), tuple(range(last, count)))

    return jax.tree_util.tree_map_with_path(dims, boxed, is_leaf=tree.is_box)
