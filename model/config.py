"""Every architectural choice of a Transformer: one field, one published mechanism."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator


class TransformerConfig(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Shapes and mechanisms of one Transformer stack; passed whole to every block."""

    vocab_size: int = Field(8192, gt=0, description="Rows of the embedding table; at least the tokenizer's size.")
    num_layers: int = Field(6, gt=0, description="Number of Transformer blocks.")
    embed_dim: int = Field(256, gt=0, description="Width of the residual stream.")
    num_heads: int = Field(4, gt=0, description="Query heads.")
    num_kv_heads: int | None = Field(
        None,
        gt=0,
        description="Key/value heads: none = num_heads (multi-head), 1 = multi-query (Shazeer 2019), "
        "between = grouped-query (Ainslie et al. 2023).",
    )
    head_dim: int | None = Field(None, gt=0, description="Width of one head: none = embed_dim / num_heads.")
    mlp_dim: int | None = Field(None, gt=0, description="Hidden width of the feed-forward: none = 4 * embed_dim.")
    max_length: int = Field(256, gt=0, description="Longest sequence in tokens.")

    positions: Literal["sinusoidal", "learned", "rotary", "alibi", "t5_relative", "none"] = Field(
        "rotary",
        description="Sinusoidal (Vaswani et al. 2017), learned (GPT), rotary (Su et al. 2021), "
        "alibi (Press et al. 2022), t5_relative (Raffel et al. 2020), or none.",
    )
    rotary_base: float = Field(10_000.0, gt=0, description="Base wavelength of rotary positions.")
    relative_buckets: int = Field(32, ge=4, description="Buckets of the T5 relative bias.")
    relative_max_distance: int = Field(128, gt=0, description="Distance at which the T5 buckets saturate.")

    norm: Literal["layer", "rms"] = Field(
        "layer", description="LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019)."
    )
    norm_placement: Literal["pre", "post"] = Field(
        "pre", description="Pre: before each sublayer plus a final norm (GPT-2); post: after each residual sum (2017)."
    )
    norm_epsilon: float = Field(1e-5, gt=0, description="Added to the variance.")
    activation: Literal["relu", "gelu", "gelu_tanh", "swiglu", "geglu"] = Field(
        "gelu_tanh", description="Of the feed-forward; swiglu and geglu are gated (Shazeer 2020)."
    )
    use_bias: bool = Field(True, description="Biases in projections and in LayerNorm.")
    sliding_window: int | None = Field(
        None, gt=0, description="Each token sees at most this many tokens, itself included (Mistral)."
    )
    tie_embeddings: bool = Field(True, description="Output projection = input embedding table (Press & Wolf 2017).")
    scale_embeddings: bool = Field(False, description="Multiply input embeddings by sqrt(embed_dim) (Vaswani et al.).")

    dropout_rate: float = Field(0.0, ge=0, lt=1, description="On embeddings and on each sublayer's output.")
    attention_dropout_rate: float = Field(
        0.0, ge=0, lt=1, description="On attention weights; excludes fused attention."
    )
    init_stddev: float = Field(0.02, gt=0, description="Standard deviation of normal initial weights (GPT-2).")
    position_init_stddev: float = Field(0.01, gt=0, description="The same for learned positions (GPT-2 code).")
    scale_residual_init: bool = Field(
        True, description="Divide the initial weights of residual projections by sqrt(2 * num_layers) (GPT-2 paper)."
    )

    param_dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type parameters are stored in.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type the layers compute in.")
    remat: Literal["none", "full", "dots"] = Field(
        "none", description="Recompute in the backward pass: nothing, whole layers, or all but matrix products."
    )
    layer_loop: Literal["scan", "unroll"] = Field(
        "scan", description="Compile one layer in a loop, or every layer; same parameters, same numbers."
    )
    attention_implementation: Literal["auto", "xla", "cudnn"] = Field(
        "auto", description="Kernel of jax.nn.dot_product_attention; auto = cuDNN on GPU when it applies, else XLA."
    )

    @model_validator(mode="after")
    def _possible(self) -> TransformerConfig:
        problems = []
        if self.head_dim is None and self.embed_dim % self.num_heads:
            problems.append(
                f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}; "
                "change one of them or set head_dim"
            )
        elif self.positions == "rotary" and self.size_of_head % 2:
            problems.append(f"rotary positions need an even head_dim, not {self.size_of_head}")
        if self.num_heads % self.count_of_kv_heads:
            problems.append(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}")
        if self.positions == "sinusoidal" and self.embed_dim % 2:
            problems.append(f"sinusoidal positions need an even embed_dim, not {self.embed_dim}")
        if self.attention_implementation == "cudnn":
            if self.dtype != "bfloat16":
                problems.append("attention_implementation=cudnn needs dtype=bfloat16")
            if self.attention_dropout_rate:
                problems.append("attention_implementation=cudnn cannot apply attention_dropout_rate; set it to 0")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def size_of_head(self) -> int:
        """`head_dim`, resolved."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def count_of_kv_heads(self) -> int:
        """`num_kv_heads`, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def size_of_mlp(self) -> int:
        """`mlp_dim`, resolved."""
        return self.mlp_dim or 4 * self.embed_dim
