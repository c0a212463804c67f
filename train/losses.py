"""Losses as (sum, weight): the caller divides once, by the weight of the whole batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_IMPOSSIBLE = -1e9  # a finite logit: a row without a single allowed place, of weight 0, then has a finite loss


def cross_entropy(
    logits: Float[Array, "batch length vocab"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    *,
    allowed: Bool[Array, "batch #length vocab"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of -log p(target) in nats and the sum of weights, computed in float32.

    `label_smoothing` mixes that share of the uniform distribution into the targets (Szegedy et al. 2016);
    `z_loss` adds that multiple of log(Z)^2 (Chowdhery et al. 2022, section 5). Where `allowed` is False the
    probability is 0, of the uniform distribution too.
    """
    logits = logits.astype(jnp.float32)
    if allowed is not None:
        logits = jnp.where(allowed, logits, _IMPOSSIBLE)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: it stays local when the vocabulary is sharded.
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])
    target_logit = jnp.where(is_target, logits, 0.0).sum(axis=-1)
    loss = log_z - (1.0 - label_smoothing) * target_logit
    if label_smoothing:
        count = logits.shape[-1] if allowed is None else jnp.maximum(allowed.sum(axis=-1), 1)
        loss -= label_smoothing * logits.sum(axis=-1, where=allowed) / count
    if z_loss:
        loss += z_loss * jnp.square(log_z)
    return (loss * weights).sum(), weights.sum()


def binary_cross_entropy(
    logits: Float[Array, "batch length"], labels: Bool[Array, "batch length"], weights: Float[Array, "batch length"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of -log p(label) in nats, p(true) = sigmoid(logits), and the sum of weights."""
    logits = logits.astype(jnp.float32)
    loss = jax.nn.softplus(jnp.where(labels, -logits, logits))
    return (loss * weights).sum(), weights.sum()


def squared_error(
    estimates: Float[Array, "batch"], targets: Float[Array, "batch"], weights: Float[Array, "batch"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of (estimate - target)^2 and the sum of weights."""
    return (jnp.square(estimates.astype(jnp.float32) - targets) * weights).sum(), weights.sum()
