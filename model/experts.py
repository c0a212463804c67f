"""Mixture of experts: a router sends each token to a few of many feed-forward layers.

Without a capacity, token-expert pairs are sorted by expert and multiplied in ragged groups, so that no token is
dropped (MegaBlocks, Gale et al. 2022). With one, every expert has a fixed number of places in each sequence, filled
and read by one-hot products (GShard, Lepikhin et al. 2020; Switch, Fedus et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from model.config import TransformerConfig
from model.feed_forward import FeedForward
from model.layers import ACTIVATIONS, GATED, Projection, kernel_init, residual_scale, zeros
from model.taps import tap

Weights = dict[str, tuple[Array, Array | None]]
"""Kernel [experts, inputs, outputs] and bias [experts, outputs] of `up`, `down` and, where it is gated, `gate`."""


class MixtureOfExperts(nn.Module):
    """In place of `FeedForward`: the sum of each token's chosen experts by the router's weights, and shared experts.

    Sows `load_balance` and `router_z` into the collection "losses", unweighted, where that collection is mutable:
    plain scalars, to which a second call of the same module adds; stacked layers give them a leading dim.
    """

    config: TransformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        config = self.config
        in_float32 = config.model_copy(update=dict(dtype="float32"))
        router = Projection(in_float32, (config.num_experts,), ("experts",), use_bias=False, name="router")
        logits = router(x)
        probabilities = tap(self, "probabilities", jax.nn.softmax(logits))
        weights, chosen = _on_own_rows(partial(jax.lax.top_k, k=config.experts_per_token), probabilities)
        if config.normalize_router:
            weights /= weights.sum(axis=-1, keepdims=True)
        self._add_loss("load_balance", load_balance(probabilities, chosen))
        self._add_loss("router_z", router_z(logits))

        x = x.astype(config.dtype)
        if config.expert_capacity_factor is None:
            keep = self._keep(chosen.shape)
            mixture = partial(_dropless, kind=config.activation)
            y = _on_own_rows(mixture, x, chosen, weights, keep, whole=(self._weights(),))
        else:
            capacity = expert_capacity(config, x.shape[1])
            places = dispatch(chosen, config.num_experts, capacity)
            keep = self._keep((x.shape[0], config.num_experts, capacity))
            y = _with_capacity(x, places, weights, keep, self._weights(), config.activation)
        if config.num_shared_experts:
            wide = config.model_copy(update=dict(mlp_dim=config.num_shared_experts * config.size_of_mlp))
            y += FeedForward(wide, self.deterministic, name="shared")(x)
        return y

    def _add_loss(self, name: str, value: Float[Array, ""]) -> None:
        if not self.is_initializing():  # else the losses of `init` would be part of the model's variables
            self.sow("losses", name, value, reduce_fn=jnp.add, init_fn=lambda: jnp.float32(0))

    def _weights(self) -> Weights:
        config = self.config
        names = ("up", "gate") if config.activation in GATED else ("up",)
        weights = {name: ExpertWeights(config, ("embed", "mlp"), name=name)() for name in names}
        return weights | {"down": ExpertWeights(config, ("mlp", "embed"), residual_scale(config), name="down")()}

    def _keep(self, dims: tuple[int, ...]) -> Float[Array, "..."] | None:
        """Dropout's factors [*dims, mlp] of the hidden activations, drawn before devices go their own ways."""
        rate = self.config.activation_dropout_rate
        if self.deterministic or not rate:
            return None
        return nn.Dropout(rate, deterministic=False)(jnp.ones((*dims, self.config.size_of_mlp), self.config.dtype))


class ExpertWeights(nn.Module):
    """One projection of all experts: kernel [experts, inputs, outputs] and bias or None, in the compute dtype."""

    config: TransformerConfig
    axes: tuple[str, str]
    init_scale: float = 1.0

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "experts inputs outputs"], Float[Array, "experts outputs"] | None]:
        config = self.config
        sizes = {"embed": config.embed_dim, "mlp": config.size_of_mlp}
        inputs, outputs = (sizes[axis] for axis in self.axes)
        dtype = jnp.dtype(config.param_dtype)
        init = kernel_init(config, ("experts", *self.axes), inputs, self.init_scale)
        kernel = self.param("kernel", init, (config.num_experts, inputs, outputs), dtype)
        if not config.use_bias:
            return kernel.astype(config.dtype), None
        bias = self.param("bias", zeros(("experts", self.axes[1])), (config.num_experts, outputs), dtype)
        return kernel.astype(config.dtype), bias.astype(config.dtype)


def load_balance(
    probabilities: Float[Array, "batch length experts"], chosen: Int[Array, "batch length chosen"]
) -> Float[Array, ""]:
    """experts * sum over experts of (choices per token * mean probability): Switch, equation 4, for any top-k.

    The choices count whether or not there is a place for them. Even routing gives experts_per_token.
    """
    num_experts = probabilities.shape[-1]
    choices = jax.nn.one_hot(chosen, num_experts).sum(axis=2).mean(axis=(0, 1))
    return num_experts * jnp.sum(choices * probabilities.mean(axis=(0, 1)))


def router_z(logits: Float[Array, "batch length experts"]) -> Float[Array, ""]:
    """Mean over tokens of log(sum(exp(logits)))^2: ST-MoE (Zoph et al. 2022), equation 5."""
    return jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()


def expert_capacity(config: TransformerConfig, length: int) -> int:
    """Places of each expert in a sequence of `length` tokens; it can fill no more than `length`."""
    share = config.expert_capacity_factor * length * config.experts_per_token / config.num_experts
    return min(length, math.ceil(share))


def dispatch(
    chosen: Int[Array, "batch length chosen"], num_experts: int, capacity: int
) -> Float[Array, "batch length chosen experts capacity"]:
    """1 where a token's choice has a place, all 0 for one that found its expert full.

    Every sequence fills the places in order: first choices before second ones, then earlier tokens before later ones
    (GShard, algorithm 1). With two experts a token, a later token may thus take an earlier one's second place.
    """
    batch, length, k = chosen.shape
    experts = jax.nn.one_hot(chosen, num_experts, dtype=jnp.int32)
    queue = experts.swapaxes(1, 2).reshape(batch, k * length, num_experts)
    earlier = (jnp.cumsum(queue, axis=1) - queue).reshape(batch, k, length, num_experts).swapaxes(1, 2)
    place = jnp.sum(earlier * experts, axis=-1)
    return (experts[..., None] * jax.nn.one_hot(place, capacity, dtype=jnp.int32)[..., None, :]).astype(jnp.float32)


def _with_capacity(x: Array, places: Array, router: Array, keep: Array | None, weights: Weights, kind: str) -> Array:
    """GShard's two one-hot products around the experts; `keep` is [batch, experts, capacity, mlp]."""

    def project(rows: Array, kernel: Array, bias: Array | None) -> Array:
        y = jnp.einsum("beci,eio->beco", rows, kernel)
        return y if bias is None else y + bias[:, None]

    rows = jnp.einsum("blec,bld->becd", places.sum(axis=2).astype(x.dtype), x)
    rows = nn.with_logical_constraint(rows, ("batch", "experts", None, None))
    rows = _feed_forward(rows, weights, kind, project, keep)
    combine = jnp.einsum("blkec,blk->blec", places, router).astype(x.dtype)
    return jnp.einsum("blec,becd->bld", combine, rows)


def _dropless(x: Array, chosen: Array, router: Array, keep: Array | None, weights: Weights, kind: str) -> Array:
    """All token-expert pairs sorted by expert, one ragged product a projection; `keep` is [batch, length, k, mlp]."""
    num_experts, k = weights["up"][0].shape[0], chosen.shape[-1]
    expert = chosen.reshape(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=num_experts)
    is_of_expert = jax.nn.one_hot(expert[order], num_experts, dtype=x.dtype)

    def project(rows: Array, kernel: Array, bias: Array | None) -> Array:
        y = jax.lax.ragged_dot(rows, kernel, sizes)
        return y if bias is None else y + is_of_expert @ bias

    # Every pair is a row of its own and the bias a product, so no gradient is a scattered sum in low precision.
    pairs = jnp.repeat(x.reshape(-1, x.shape[-1]), k, axis=0)
    keep = None if keep is None else keep.reshape(-1, keep.shape[-1])[order]
    rows = _feed_forward(pairs.at[order].get(unique_indices=True), weights, kind, project, keep)
    rows = rows.at[jnp.argsort(order)].get(unique_indices=True).reshape(*chosen.shape, -1)
    return jnp.sum(rows * router[..., None], axis=2).astype(x.dtype)


def _feed_forward(rows: Array, weights: Weights, kind: str, project: Callable, keep: Array | None) -> Array:
    """`FeedForward` of each row's expert; `project(rows, kernel, bias)` knows which expert that is."""
    activation = ACTIVATIONS[kind]
    hidden = project(rows, *weights["up"])
    hidden = hidden * activation(project(rows, *weights["gate"])) if kind in GATED else activation(hidden)
    return project(hidden if keep is None else hidden * keep, *weights["down"])


def _on_own_rows(function: Callable, *by_row: Any, whole: tuple[Any, ...] = ()) -> Any:
    """`function(*by_row, *whole)`, each device seeing only its own rows of the batch.

    The partitioner cannot split a sort: it would have every device route and compute every token. So the mesh axes
    of the batch are split by hand, where they divide it; the others stay with the partitioner.
    """
    mesh, (axes,) = jax.sharding.get_abstract_mesh(), nn.logical_to_mesh_axes(("batch",))
    axes = tuple(axis for axis in axes or () if mesh.shape.get(axis, 1) > 1)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if ways == 1 or by_row[0].shape[0] % ways:
        return function(*by_row, *whole)
    # One copy a device, so that gradients are summed outside, by the partitioner, as those of other parameters are.
    copies = jax.tree.map(lambda w: jnp.broadcast_to(w, (ways, *w.shape)), whole)
    rows = PartitionSpec(axes)

    def on_device(by_row, copies):
        return function(*by_row, *jax.tree.map(lambda w: w[0], copies))

    return jax.shard_map(on_device, in_specs=rows, out_specs=rows, axis_names=set(axes))(by_row, copies)
