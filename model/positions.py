"""How a Transformer knows the order of its tokens: pure functions, one per published scheme."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def sinusoidal(positions: Int[Array, "batch length"], embed_dim: int) -> Float[Array, "batch length embed"]:
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5), sines in the first half of the dims."""
    half = embed_dim // 2
    frequencies = jnp.exp(-np.log(10_000.0) * jnp.arange(half) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotary(
    x: Float[Array, "batch length heads head_dim"], positions: Int[Array, "batch length"], base: float
) -> Float[Array, "batch length heads head_dim"]:
    """Rotate pairs (i, i + head_dim/2) by position-dependent angles (Su et al. 2021; the half-split layout of Llama).

    Angles are computed in float32 whatever the type of `x`.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Head slopes of ALiBi (Press et al. 2022, section 3): a geometric sequence from 2^(-8/n).

    When `num_heads` is not a power of two, the slopes of the next power of two fill in (the authors' code).
    """
    power = 2 ** int(np.floor(np.log2(num_heads)))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    extra = 2.0 ** (-4.0 * np.arange(1, 2 * (num_heads - power), 2) / power)
    return np.concatenate([slopes, extra]).astype(np.float32)


def alibi_bias(distance: Int[Array, "batch query key"], num_heads: int) -> Float[Array, "batch heads query key"]:
    """Linear penalty -slope * distance, `distance` = query position - key position."""
    return -alibi_slopes(num_heads)[None, :, None, None] * jnp.maximum(distance, 0)[:, None].astype(jnp.float32)


def t5_bucket(distance: Int[Array, "..."], num_buckets: int, max_distance: int) -> Int[Array, "..."]:
    """Causal T5 bucket of `distance` = query position - key position (Raffel et al. 2020, section 2.1).

    The first half of the buckets are exact distances, the rest grow logarithmically up to `max_distance`.
    """
    distance = jnp.maximum(distance, 0)
    exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / np.log(max_distance / exact)
    logarithmic = exact + (ratio * (num_buckets - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(logarithmic, num_buckets - 1))


def default_positions(tokens: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """0, 1, 2, … for every row."""
    return jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1)
