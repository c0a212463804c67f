"""The small parts every block is made of: projections, embeddings, norms. Parameters get their logical axes here."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.config import TransformerConfig


def normal(stddev: float, axes: tuple[str, ...]) -> nn.initializers.Initializer:
    """Gaussian initializer whose parameter knows its logical axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


def residual_stddev(config: TransformerConfig) -> float:
    """Initial standard deviation of projections that write to the residual stream (GPT-2, section 2.3)."""
    return config.init_stddev / (math.sqrt(2 * config.num_layers) if config.scale_residual_init else 1.0)


class Projection(nn.Module):
    """Linear map from the trailing dims named `input_axes` to `features`, in the compute dtype.

    The kernel is [*inputs, *features]; no reshape hides the heads, so they can be sharded by name.
    """

    config: TransformerConfig
    features: tuple[int, ...]
    feature_axes: tuple[str, ...]
    input_axes: tuple[str, ...] = ("embed",)
    stddev: float | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch length ..."]) -> Float[Array, "batch length ..."]:
        config, inputs = self.config, x.shape[-len(self.input_axes) :]
        init = normal(self.stddev or config.init_stddev, self.input_axes + self.feature_axes)
        kernel = self.param("kernel", init, inputs + self.features, jnp.dtype(config.param_dtype))
        contract = tuple(range(x.ndim - len(inputs), x.ndim)), tuple(range(len(inputs)))
        y = jax.lax.dot_general(x.astype(config.dtype), kernel.astype(config.dtype), (contract, ((), ())))
        if self.use_bias and config.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.feature_axes)
            y += self.param("bias", zeros, self.features, jnp.dtype(config.param_dtype)).astype(config.dtype)
        return y


class Embedding(nn.Module):
    """A table [rows, embed]; `__call__` looks rows up, `attend` scores every row (tied output projection)."""

    config: TransformerConfig
    rows: int
    axes: tuple[str, str]
    stddev: float

    def setup(self):
        shape = (self.rows, self.config.embed_dim)
        self.embedding = self.param(
            "embedding", normal(self.stddev, self.axes), shape, jnp.dtype(self.config.param_dtype)
        )

    def __call__(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        # A gather from a table sharded on both dims makes XLA replicate its result; gather from whole rows instead.
        table = nn.with_logical_constraint(self.embedding.astype(self.config.dtype), (None, None))
        return jnp.take(table, ids, axis=0)

    def attend(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length rows"]:
        return jnp.einsum("ble,ve->blv", x.astype(self.config.dtype), self.embedding.astype(self.config.dtype))


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last dim, statistics in float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        config = self.config
        dtype = jnp.dtype(config.param_dtype)
        shape = (x.shape[-1],)
        y = x.astype(jnp.float32)
        if config.norm == "layer":
            y -= y.mean(axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + config.norm_epsilon)
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        y *= self.param("scale", ones, shape, dtype).astype(jnp.float32)
        if config.norm == "layer" and config.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
            y += self.param("bias", zeros, shape, dtype).astype(jnp.float32)
        return y.astype(config.dtype)
