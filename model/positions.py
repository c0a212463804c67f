"""How a Transformer knows the order of its tokens: pure functions, one per published scheme."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from model import config as cfg


def sinusoidal(positions: Int[Array, "batch length"], width: int) -> Float[Array, "batch length width"]:
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5), sines in the first half of the dims."""
    half = width // 2
    frequencies = jnp.exp(-np.log(10_000.0) * jnp.arange(half) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


# Rotary ----------------------------------------------------------------------------------------------------

Rotation = tuple[Float[Array, "batch length 1 half"], Float[Array, "batch length 1 half"]]
"""Sines and cosines of every position's angles."""


def rotation(
    positions: Int[Array, "batch length"], head_dim: int, base: float, scaling: cfg.RotaryScaling
) -> tuple[Float[Array, "batch length 1 half"], Float[Array, "batch length 1 half"]]:
    """Sines and cosines by which `rotary` turns queries and keys (Su et al. 2021), computed in float32."""
    exponents = np.arange(head_dim // 2, dtype=np.float32) / (head_dim // 2)
    frequencies, factor = base**-exponents, 1.0
    match scaling:
        case cfg.LinearScaling():
            frequencies = frequencies / scaling.factor
        case cfg.NTKScaling():
            # The length is that of the text at hand, known only when the program runs.
            stretch = scaling.factor * (positions.max() + 1) / scaling.original_length - (scaling.factor - 1)
            power = head_dim / (head_dim - 2)
            frequencies = (base * jnp.maximum(stretch, 1.0) ** power) ** -exponents
        case cfg.YaRNScaling():
            frequencies = _yarn(frequencies, head_dim, base, scaling)
            factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
        case cfg.Llama3Scaling():
            frequencies = _llama3(frequencies, scaling)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.sin(angles) * factor, jnp.cos(angles) * factor


def _yarn(frequencies: np.ndarray, head_dim: int, base: float, scaling: cfg.YaRNScaling) -> np.ndarray:
    """Peng et al. (2023), equations 20 and 21, the ramp placed as in the authors' code."""

    def dim_of(rotations: float) -> float:
        return head_dim * math.log(scaling.original_length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dim_of(scaling.beta_fast), dim_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low or 0.001)
    interpolated = ramp.clip(0, 1)
    return frequencies / scaling.factor * interpolated + frequencies * (1 - interpolated)


def _llama3(frequencies: np.ndarray, scaling: cfg.Llama3Scaling) -> np.ndarray:
    """Llama 3.1: long wavelengths divided by the factor, short ones kept, in between a mixture of both."""
    rotations = scaling.original_length * frequencies / (2 * np.pi)
    smooth = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clip(0, 1)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def rotary(
    x: Float[Array, "batch length heads head_dim"],
    sin: Float[Array, "batch length 1 half"],
    cos: Float[Array, "batch length 1 half"],
) -> Float[Array, "batch length heads head_dim"]:
    """Turn the pairs (i, i + head_dim/2) of each head, the half-split layout of Llama."""
    half = x.shape[-1] // 2
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


# Biases ----------------------------------------------------------------------------------------------------


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Head slopes of ALiBi (Press et al. 2022, section 3): a geometric sequence from 2^(-8/n).

    When `num_heads` is not a power of two, the slopes of the next power of two fill in (the authors' code).
    """
    power = 2 ** int(np.floor(np.log2(num_heads)))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    extra = 2.0 ** (-4.0 * np.arange(1, 2 * (num_heads - power), 2) / power)
    return np.concatenate([slopes, extra]).astype(np.float32)


def alibi_bias(distance: Int[Array, "batch query key"], num_heads: int) -> Float[Array, "batch heads query key"]:
    """Linear penalty -slope * |distance|, `distance` = query position - key position."""
    return -alibi_slopes(num_heads)[None, :, None, None] * jnp.abs(distance)[:, None].astype(jnp.float32)


def t5_bucket(
    distance: Int[Array, "..."], num_buckets: int, max_distance: int, is_causal: bool = True
) -> Int[Array, "..."]:
    """T5 bucket of `distance` = query position - key position (Raffel et al. 2020, section 2.1).

    The first half of the buckets are exact distances, the rest grow logarithmically up to `max_distance`. When
    not causal, keys after the query have the second half of all buckets for their own.
    """
    offset = 0
    if not is_causal:
        num_buckets //= 2
        offset = jnp.where(distance < 0, num_buckets, 0)
        distance = jnp.abs(distance)
    distance = jnp.maximum(distance, 0)
    exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / np.log(max_distance / exact)
    logarithmic = exact + (ratio * (num_buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(logarithmic, num_buckets - 1))


def default_positions(tokens: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """0, 1, 2, … for every row."""
    return jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1)
