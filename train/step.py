"""The training state and the two pure functions that matter: `train_step` and `eval_step`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from train import losses, sharding
from train.config import Experiment, UserError
from train.optimizer import learning_rate, make_optimizer

Batch = dict[str, Array]
Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. `next_step` is the index of the step to be taken next."""

    next_step: Int[Array, ""]
    params: Any
    ema: Any
    """Moving average of `params`, or None when the experiment keeps none."""
    opt_state: Any
    skipped_steps: Int[Array, ""]
    """Steps skipped so far because loss or gradients were not finite."""
    nonfinite_streak: Int[Array, ""]
    """How many of the latest steps in a row were skipped."""


@dataclass(frozen=True)
class StatePlan:
    """A `TrainState` before it exists: what is in it, where it will lie, and how to make or restore it."""

    abstract: TrainState
    """Shapes and types."""
    shardings: TrainState
    optimizer: optax.GradientTransformation
    notes: list[str]
    """Sentences about dims that the mesh does not divide."""
    init_state: Callable[[], TrainState]
    """Computes a new state in place, each device making its own part: no parameter is ever whole on one device."""


def plan_state(model: nn.Module, experiment: Experiment, mesh: jax.sharding.Mesh) -> StatePlan:
    """Trace initialization abstractly and place every array by rule. The random bits do not depend on the mesh."""
    tokens = jnp.zeros((1, 2), jnp.int32)

    def init_params(key):
        return model.init(key, tokens)["params"]

    key = jax.random.key(experiment.seed)
    boxed = jax.eval_shape(init_params, key)
    specs, notes = sharding.parameter_specs(boxed, mesh, experiment.mesh.rules)
    optimizer = make_optimizer(experiment.optimizer, experiment.num_steps, sharding.unbox(boxed))

    def init(key) -> TrainState:
        params = sharding.unbox(init_params(key))
        zero = jnp.int32(0)
        ema = jax.tree.map(jnp.copy, params) if experiment.ema_decay else None
        return TrainState(zero, params, ema, optimizer.init(params), zero, zero)

    abstract = jax.eval_shape(init, key)
    shardings = sharding.state_shardings(abstract, abstract.params, specs, mesh)
    return StatePlan(abstract, shardings, optimizer, notes, lambda: jax.jit(init, out_shardings=shardings)(key))


def model_inputs(batch: Batch) -> dict[str, Array]:
    """The arguments of a decoder that a batch holds."""
    names = {"inputs": "tokens", "positions": "positions", "segment_ids": "segment_ids"}
    return {argument: batch[name] for name, argument in names.items() if name in batch}


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    experiment: Experiment,
) -> tuple[TrainState, Metrics]:
    """One update from one batch of [batch, length] arrays. Pure; randomness is `fold_in(seed, step)`.

    The gradient is that of the weighted mean over the whole batch, also when it is computed in parts. When the
    loss, the gradient or the update is not finite, the old parameters, averages and moments are kept as they
    are, and the step is counted as skipped.
    """
    dropout_key = jax.random.fold_in(jax.random.key(experiment.seed + 1), state.next_step)

    def loss_fn(params, part: Batch, part_index):
        rngs = {"dropout": jax.random.fold_in(dropout_key, part_index)}
        logits = model.apply({"params": params}, **model_inputs(part), deterministic=False, rngs=rngs)
        loss = experiment.loss
        return losses.cross_entropy(logits, part["targets"], part["weights"], loss.label_smoothing, loss.z_loss)

    loss_sum, weight, grads = _accumulate(loss_fn, state.params, batch, experiment.accumulation_steps)
    scale = 1.0 / jnp.maximum(weight, 1.0)
    loss = loss_sum * scale
    grads = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), grads, state.params)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = experiment.ema_decay
        ema = jax.tree.map(lambda e, p: e * decay + p * (1.0 - decay), ema, params)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
    # Select, never multiply: 0 * NaN is NaN.
    kept = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, ema, opt_state),
        (state.params, state.ema, state.opt_state),
    )
    skipped = 1 - finite.astype(jnp.int32)
    new_state = TrainState(
        state.next_step + 1, *kept, state.skipped_steps + skipped, (state.nonfinite_streak + 1) * skipped
    )
    metrics = {
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": schedule(state.next_step - state.skipped_steps),
        "tokens": weight,
        "skipped_steps": new_state.skipped_steps,
        "nonfinite_streak": new_state.nonfinite_streak,
    }
    return new_state, metrics


def _accumulate(
    loss_fn: Callable, params: Any, batch: Batch, parts: int
) -> tuple[Float[Array, ""], Float[Array, ""], Any]:
    """Sums of loss, weight and gradient over `parts` equal parts of the batch, one part in memory at a time."""
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        (loss, weight), grads = gradient(params, batch, 0)
        return loss, weight, grads

    def split(x):
        # Strided rows, so that each part lies on all devices of a batch split into blocks of rows.
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def body_fn(sums, xs):
        part, index = xs
        (loss, weight), grads = gradient(params, part, index)
        return jax.tree.map(jnp.add, sums, (loss, weight, jax.tree.map(lambda g: g.astype(jnp.float32), grads))), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    start = (jnp.float32(0), jnp.float32(0), zeros)
    sums, _ = jax.lax.scan(body_fn, start, (jax.tree.map(split, batch), jnp.arange(parts)))
    return sums


def eval_step(params: Any, batch: Batch, *, model: nn.Module) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(sum of -log p in nats, sum of weights) over a batch, without dropout, smoothing or z-loss."""
    logits = model.apply({"params": params}, **model_inputs(batch))
    return losses.cross_entropy(logits, batch["targets"], batch["weights"])


def compile_train_step(model: nn.Module, plan: StatePlan, experiment: Experiment, mesh: jax.sharding.Mesh):
    """`train_step` under `jax.jit` with shardings for state and batch; the state's memory is reused (donated)."""
    ways = sharding.batch_ways(mesh, experiment.mesh.rules)
    if experiment.batch_size % (ways * experiment.accumulation_steps):
        raise UserError(
            f"batch_size: {experiment.batch_size} examples cannot be split over {ways} groups of devices and "
            f"{experiment.accumulation_steps} accumulation steps; it must be a multiple of "
            f"{ways * experiment.accumulation_steps}"
        )
    schedule = learning_rate(experiment.optimizer, experiment.num_steps)
    step = partial(train_step, model=model, optimizer=plan.optimizer, schedule=schedule, experiment=experiment)
    data = sharding.batch_sharding(mesh, experiment.mesh.rules)
    return jax.jit(step, in_shardings=(plan.shardings, data), out_shardings=(plan.shardings, None), donate_argnums=0)
