"""Who may attend to whom: boolean masks, True = may attend."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def causal(
    query: Int[Array, "batch query"], key: Int[Array, "batch key"], window: int | None = None
) -> Bool[Array, "batch query key"]:
    """A query sees keys at its own place and before, at most `window` of them when given (itself included)."""
    distance = query[:, :, None] - key[:, None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def same_segment(query: Int[Array, "batch query"], key: Int[Array, "batch key"]) -> Bool[Array, "batch query key"]:
    """A query sees only keys of its own document."""
    return query[:, :, None] == key[:, None, :]


def prefix(is_prefix: Bool[Array, "batch key"]) -> Bool[Array, "batch 1 key"]:
    """Every query sees every key of the prefix, also later ones (Raffel et al. 2020, section 3.2.1)."""
    return jnp.asarray(is_prefix, bool)[:, None, :]
