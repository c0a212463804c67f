"""Position-wise feed-forward layers."""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from model.config import TransformerConfig
from model.layers import Projection, residual_stddev

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "swiglu": jax.nn.silu,
    "geglu": lambda x: jax.nn.gelu(x, approximate=True),
}
GATED = ("swiglu", "geglu")


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) for the gated kinds (Shazeer 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        hidden = Projection(config, (config.size_of_mlp,), ("mlp",), name="up")(x)
        if config.activation in GATED:
            hidden *= activation(Projection(config, (config.size_of_mlp,), ("mlp",), name="gate")(x))
        else:
            hidden = activation(hidden)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        stddev = residual_stddev(config)
        return Projection(config, (config.embed_dim,), ("embed",), input_axes=("mlp",), stddev=stddev, name="down")(
            hidden
        )
