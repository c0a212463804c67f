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

from model import tree
from train import lora, sharding
from train.config import Experiment, UserError
from train.objective import Batch, Term, coefficients, loss_terms, num_tokens, term_weights
from train.optimizer import learning_rate, make_optimizer
from train.tuning import Trained, initialize_all, trained_parameters

Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. `next_step` is the index of the step to be taken next."""

    next_step: Int[Array, ""]
    params: Any
    """Of the model, trained or not, and with LoRA also its factors; `lora.merge` gives the model's own."""
    ema: Any
    """Moving average of the trained parameters alone, or None when the experiment keeps none."""
    opt_state: Any
    """Of the trained parameters alone."""
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
    trained: Trained
    optimizer: optax.GradientTransformation
    notes: list[str]
    """Sentences about dims that the mesh does not divide."""
    init_state: Callable[[], TrainState]
    """Computes a new state in place, each device making its own part: no parameter is ever whole on one device."""

    def averaged(self, state: TrainState) -> Any:
        """The parameters that are evaluated: with the moving averages where they are kept."""
        return state.params if state.ema is None else self.trained.insert(state.params, state.ema)


def plan_state(model: nn.Module, experiment: Experiment, mesh: jax.sharding.Mesh) -> StatePlan:
    """Trace initialization abstractly and place every array by rule. The random bits do not depend on the mesh."""
    key = jax.random.key(experiment.seed)
    boxed = jax.eval_shape(partial(initialize_all, model, experiment.tuning), key)
    specs, notes = sharding.parameter_specs(boxed, mesh, experiment.mesh.rules)
    trained = trained_parameters(experiment.tuning, boxed)
    boxes = trained.select_boxes(boxed)
    optimizer = make_optimizer(experiment.optimizer, experiment.num_steps, boxed, boxes)

    def init(key) -> TrainState:
        params = tree.unbox(initialize_all(model, experiment.tuning, key))
        zero = jnp.int32(0)
        chosen = trained.select(params)
        ema = jax.tree.map(jnp.copy, chosen) if experiment.ema_decay else None
        return TrainState(zero, params, ema, optimizer.init(chosen), zero, zero)

    abstract = jax.eval_shape(init, key)
    shardings = sharding.state_shardings(abstract, abstract.params, specs, mesh)
    # Of stacked layers only some may be trained, and those may not be divisible where all of them are.
    specs, _ = sharding.parameter_specs(boxes, mesh, experiment.mesh.rules)
    parts = (abstract.ema, abstract.opt_state)
    ema, moments = sharding.state_shardings(parts, tree.unbox(boxes), specs, mesh)
    shardings = shardings.replace(ema=ema, opt_state=moments)
    init_state = lambda: jax.jit(init, out_shardings=shardings)(key)  # noqa: E731
    return StatePlan(abstract, shardings, trained, optimizer, notes, init_state)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    plan: StatePlan,
    schedule: optax.Schedule,
    experiment: Experiment,
) -> tuple[TrainState, Metrics]:
    """One update from one batch. Pure; randomness is `fold_in(seed, step)`.

    The loss is the sum of its terms' weighted means over the whole batch, also when it is computed in parts. When
    the loss, the gradient or the update is not finite, the old parameters, averages and moments are kept as they
    are, and the step is counted as skipped.
    """
    dropout_key = jax.random.fold_in(jax.random.key(experiment.seed + 1), state.next_step)
    factors = coefficients(experiment)
    weights = term_weights(experiment, batch)
    scales = {name: 1.0 / jnp.where(weight > 0.0, weight, 1.0) for name, weight in weights.items()}
    trained = plan.trained.select(state.params)

    def loss_fn(trained, part: Batch, part_index):
        params = lora.merge(plan.trained.insert(state.params, trained), experiment.tuning)
        terms = loss_terms(experiment, model, params, part, jax.random.fold_in(dropout_key, part_index))
        means = {name: term.loss * scales[name] for name, term in terms.items()}
        return sum(factors[name] * mean for name, mean in means.items()), means

    loss, means, grads = _accumulate(loss_fn, trained, batch, experiment.accumulation_steps)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, trained)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = plan.optimizer.update(grads, state.opt_state, trained)
    new = optax.apply_updates(trained, updates)
    decay = experiment.ema_decay
    new_average = jax.tree.map(lambda e, p: e * decay + p * (1.0 - decay), state.ema, new) if decay else None
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
    # Select, never multiply: 0 * NaN is NaN.
    new, new_average, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (new, new_average, opt_state),
        (trained, state.ema, state.opt_state),
    )
    skipped = 1 - finite.astype(jnp.int32)
    new_state = TrainState(
        state.next_step + 1,
        plan.trained.insert(state.params, new),
        new_average,
        opt_state,
        state.skipped_steps + skipped,
        (state.nonfinite_streak + 1) * skipped,
    )
    metrics = {
        "loss": loss,
        "grad_norm": grad_norm,
        "learning_rate": schedule(state.next_step - state.skipped_steps),
        "tokens": num_tokens(batch),
        "skipped_steps": new_state.skipped_steps,
        "nonfinite_streak": new_state.nonfinite_streak,
    }
    if len(means) > 1:
        metrics |= {f"{name}_loss": mean for name, mean in means.items()}
    return new_state, metrics


def _accumulate(loss_fn: Callable, params: Any, batch: Batch, parts: int) -> tuple[Float[Array, ""], Metrics, Any]:
    """Sums of the loss, its terms and the gradient over `parts` equal parts of the batch, one in memory at a time."""
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def compute(part: Batch, index):
        (loss, means), grads = gradient(params, part, index)
        return loss, means, grads

    if parts == 1:
        return compute(batch, 0)

    def split(x):
        # Strided rows, so that each part lies on all devices of a batch split into blocks of rows.
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def body_fn(sums, xs):
        return jax.tree.map(lambda total, new: total + new.astype(jnp.float32), sums, compute(*xs)), None

    xs = jax.tree.map(split, batch), jnp.arange(parts)
    shapes = jax.eval_shape(compute, *jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(body_fn, zeros, xs)[0]


def eval_step(params: Any, batch: Batch, *, model: nn.Module, experiment: Experiment) -> dict[str, Term]:
    """The terms of the loss over a batch, without dropout, smoothing or z-loss."""
    return loss_terms(experiment, model, params, batch, None, smooth=False)


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
    step = partial(train_step, model=model, plan=plan, schedule=schedule, experiment=experiment)
    data = sharding.batch_sharding(mesh, experiment.mesh.rules)
    return jax.jit(step, in_shardings=(plan.shardings, data), out_shardings=(plan.shardings, None), donate_argnums=0)
