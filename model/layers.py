"""The small parts every block is made of: projections, embeddings, norms. Parameters get their logical axes here."""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.config import TransformerConfig
from model.taps import tap

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "swiglu": jax.nn.silu,
    "geglu": lambda x: jax.nn.gelu(x, approximate=True),
    "reglu": jax.nn.relu,
}
GATED = ("swiglu", "geglu", "reglu")


@flax.struct.dataclass
class Parameter(nn.LogicallyPartitioned):
    """A new parameter's box: its value, the names of its dims, and what it began as."""

    initializer: str = flax.struct.field(default="", pytree_node=False)


def _born(initializer: nn.initializers.Initializer, told: str, axes: tuple[str | None, ...]):
    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Parameter:
        return Parameter(initializer(key, shape, dtype), axes, initializer=told)

    return init


def normal(stddev: float, axes: tuple[str | None, ...]) -> nn.initializers.Initializer:
    """Gaussian initializer whose parameter knows its logical axes."""
    return _born(nn.initializers.normal(stddev), f"normal {stddev:.6g}", axes)


def truncated_normal(stddev: float, axes: tuple[str | None, ...]) -> nn.initializers.Initializer:
    """The same, without what is beyond two standard deviations."""
    return _born(nn.initializers.truncated_normal(stddev), f"truncated_normal {stddev:.6g}", axes)


def zeros(axes: tuple[str | None, ...]) -> nn.initializers.Initializer:
    return _born(nn.initializers.zeros, "zeros", axes)


def ones(axes: tuple[str | None, ...]) -> nn.initializers.Initializer:
    return _born(nn.initializers.ones, "ones", axes)


def kernel_init(
    config: TransformerConfig, axes: tuple[str, ...], num_inputs: int, scale: float = 1.0
) -> nn.initializers.Initializer:
    """Initializer of a kernel over `num_inputs` inputs; `scale` multiplies its standard deviation."""
    if config.initializer == "fan_in":
        return normal(scale / math.sqrt(num_inputs), axes)
    kind = truncated_normal if config.initializer == "truncated_normal" else normal
    return kind(scale * config.init_stddev, axes)


def residual_scale(config: TransformerConfig) -> float:
    """Factor of the initial weights of projections that write to the residual stream (GPT-2, section 2.3)."""
    is_scaled = config.scale_residual_init and config.initializer != "fan_in"
    return 1.0 / math.sqrt(2 * config.num_layers) if is_scaled else 1.0


def softcap(logits: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """`logits` bounded smoothly by `cap` (Bello et al. 2017; Gemma 2); None leaves them."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


class Projection(nn.Module):
    """Linear map from the trailing dims named `input_axes` to `features`, in the compute dtype.

    The kernel is [*inputs, *features]; no reshape hides the heads, so they can be sharded by name.
    """

    config: TransformerConfig
    features: tuple[int, ...]
    feature_axes: tuple[str, ...]
    input_axes: tuple[str, ...] = ("embed",)
    use_bias: bool = True
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "batch length ..."]) -> Float[Array, "batch length ..."]:
        config, inputs = self.config, x.shape[-len(self.input_axes) :]
        init = kernel_init(config, self.input_axes + self.feature_axes, math.prod(inputs), self.init_scale)
        kernel = self.param("kernel", init, inputs + self.features, jnp.dtype(config.param_dtype))
        contract = tuple(range(x.ndim - len(inputs), x.ndim)), tuple(range(len(inputs)))
        y = jax.lax.dot_general(x.astype(config.dtype), kernel.astype(config.dtype), (contract, ((), ())))
        if self.use_bias:
            bias = self.param("bias", zeros(self.feature_axes), self.features, jnp.dtype(config.param_dtype))
            y += bias.astype(config.dtype)
        return tap(self, "output", y)


class Embedding(nn.Module):
    """A table [rows, width]; `__call__` looks rows up, `attend` scores every row (tied output projection)."""

    config: TransformerConfig
    rows: int
    axis: str
    stddev: float

    def setup(self):
        config = self.config
        axes = (self.axis, "embed" if config.embedding_dim is None else "features")
        init = (truncated_normal if config.initializer == "truncated_normal" else normal)(self.stddev, axes)
        shape = (self.rows, config.size_of_embedding)
        self.embedding = self.param("embedding", init, shape, jnp.dtype(config.param_dtype))

    def __call__(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
        # A gather from a table sharded on both dims makes XLA replicate its result; gather from whole rows instead.
        table = nn.with_logical_constraint(self.embedding.astype(self.config.dtype), (None, None))
        return tap(self, "output", jnp.take(table, ids, axis=0))

    def attend(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length rows"]:
        return jnp.einsum("ble,ve->blv", x.astype(self.config.dtype), self.embedding.astype(self.config.dtype))


def token_embedding(config: TransformerConfig) -> Embedding:
    """The table of the vocabulary."""
    stddev = 1.0 if config.initializer == "fan_in" else config.init_stddev
    return Embedding(config, config.vocab_size, "vocab", stddev)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last dim, statistics in float32; `kind` None is the config's."""

    config: TransformerConfig
    kind: str | None = None
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        config, kind = self.config, self.kind or self.config.norm
        dtype = jnp.dtype(config.param_dtype)
        shape = (x.shape[-1],)
        y = x.astype(jnp.float32)
        if kind == "layer":
            y -= y.mean(axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + config.norm_epsilon)
        start = zeros if config.norm_zero_centered else ones
        scale = self.param("scale", start((self.axis,)), shape, dtype)
        y *= scale.astype(jnp.float32) + (1.0 if config.norm_zero_centered else 0.0)
        if kind == "layer" and config.use_bias:
            y += self.param("bias", zeros((self.axis,)), shape, dtype).astype(jnp.float32)
        return tap(self, "output", y.astype(config.dtype))
