"""Position-wise feed-forward layers."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float

from model.config import TransformerConfig
from model.layers import ACTIVATIONS, GATED, Projection, residual_scale
from model.taps import tap


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) for the gated kinds (Shazeer 2020)."""

    config: TransformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"]) -> Float[Array, "batch length embed"]:
        config = self.config

        def widen(name: str) -> Array:
            return Projection(config, (config.size_of_mlp,), ("mlp",), use_bias=config.use_bias, name=name)(x)

        activation = ACTIVATIONS[config.activation]
        hidden = widen("up") * activation(widen("gate")) if config.activation in GATED else activation(widen("up"))
        hidden = tap(self, "hidden", nn.with_logical_constraint(hidden, ("batch", "length", "mlp")))
        hidden = nn.Dropout(config.activation_dropout_rate, deterministic=self.deterministic)(hidden)
        return Projection(
            config,
            (config.embed_dim,),
            ("embed",),
            input_axes=("mlp",),
            use_bias=config.use_bias,
            init_scale=residual_scale(config),
            name="down",
        )(hidden)
