"""Every architectural choice of a Transformer: one field, one published mechanism."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


class _Part(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Immutable, typed, and closed to unknown fields."""


class Unscaled(_Part):
    """Rotary frequencies as Su et al. (2021) define them."""

    kind: Literal["none"] = "none"


class LinearScaling(_Part):
    """Positions divided by a factor: position interpolation (Chen et al. 2023)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(1.0, ge=1, description="Divides every position.")


class NTKScaling(_Part):
    """The base grows with the length of the text ("dynamic NTK", emozilla 2023); up to `original_length` nothing."""

    kind: Literal["ntk"] = "ntk"
    factor: float = Field(2.0, ge=1, description="How fast the base grows beyond the original length.")
    original_length: int = Field(2048, gt=0, description="Longest text seen in pretraining.")


class YaRNScaling(_Part):
    """High frequencies kept, low ones interpolated, a ramp between (Peng et al. 2023, section 3)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(4.0, ge=1, description="Extension of the context.")
    original_length: int = Field(2048, gt=0, description="Longest text seen in pretraining.")
    beta_fast: float = Field(32.0, gt=0, description="Rotations over the original length above which none is changed.")
    beta_slow: float = Field(1.0, gt=0, description="Rotations below which frequencies are divided by the factor.")
    attention_factor: float | None = Field(
        None, gt=0, description="Multiplies query and key; none: 0.1 * ln(factor) + 1 (equation 22)."
    )
    truncate: bool = Field(True, description="Round the ramp's ends to whole dims, as the authors' code does.")


class Llama3Scaling(_Part):
    """Wavelengths beyond the old context divided by the factor, a smooth change before (Llama 3.1's code)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(8.0, ge=1, description="Divides the low frequencies.")
    low_freq_factor: float = Field(1.0, gt=0, description="Wavelengths above original_length / this are divided.")
    high_freq_factor: float = Field(4.0, gt=0, description="Wavelengths below original_length / this are kept.")
    original_length: int = Field(8192, gt=0, description="Longest text of the first pretraining stage.")


RotaryScaling = Annotated[
    Unscaled | LinearScaling | NTKScaling | YaRNScaling | Llama3Scaling, Field(discriminator="kind")
]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu", "reglu"]
Head = Literal["lm", "sentence_pair", "sequence", "tokens", "span", "choice", "detection"]


class TransformerConfig(_Part):
    """Shapes and mechanisms of one Transformer; passed whole to every block."""

    stack: Literal["decoder", "encoder", "encoder_decoder"] = Field(
        "decoder", description="Decoder (GPT), encoder (BERT), or both with cross attention (Vaswani et al. 2017, T5)."
    )
    vocab_size: int = Field(8192, gt=0, description="Rows of the embedding table; at least the tokenizer's size.")
    num_layers: int = Field(6, gt=0, description="Number of Transformer blocks; of an encoder–decoder, the decoder's.")
    num_encoder_layers: int | None = Field(
        None, gt=0, description="Blocks of an encoder–decoder's encoder: none = num_layers."
    )
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

    embedding_dim: int | None = Field(
        None,
        gt=0,
        description="Width of the embedding tables, projected to embed_dim (factorized, ALBERT, section 3.1): "
        "none = embed_dim, without a projection.",
    )
    embedding_norm: bool = Field(False, description="Normalize the sum of the embeddings (BERT, BART).")
    num_sentence_types: int = Field(0, ge=0, description="Rows of the sentence (segment) embedding; BERT: 2.")
    share_layers: bool = Field(False, description="One block's parameters for all depths (ALBERT, section 3.1).")
    share_encoder_decoder: bool = Field(
        False, description="The encoder uses the decoder's parameters, cross attention apart (T5's 'shared', table 2)."
    )
    share_embeddings: bool = Field(True, description="Source and target tokens use one table (Vaswani et al., T5).")

    positions: Literal["sinusoidal", "learned", "rotary", "alibi", "t5_relative", "none"] = Field(
        "rotary",
        description="Sinusoidal (Vaswani et al. 2017), learned (GPT), rotary (Su et al. 2021), "
        "alibi (Press et al. 2022), t5_relative (Raffel et al. 2020), or none.",
    )
    position_offset: int = Field(
        0, ge=0, description="Row of the first position in the learned table; RoBERTa and BART: 2."
    )
    rotary_base: float = Field(10_000.0, gt=0, description="Base wavelength of rotary positions.")
    local_rotary_base: float | None = Field(
        None, gt=0, description="The same for sliding-window layers, unscaled (Gemma 3: 10,000): none = rotary_base."
    )
    rotary_scaling: RotaryScaling = Field(Unscaled(), description="Extension of rotary positions to longer texts.")
    relative_buckets: int = Field(32, ge=4, description="Buckets of the T5 relative bias.")
    relative_max_distance: int = Field(128, gt=0, description="Distance at which the T5 buckets saturate.")

    norm: Literal["layer", "rms"] = Field(
        "layer", description="LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019)."
    )
    norm_placement: Literal["pre", "post", "peri"] = Field(
        "pre",
        description="Pre: before each sublayer plus a final norm (GPT-2); post: after each residual sum (2017); "
        "peri: before each sublayer and on its output (Gemma 2; Kim et al. 2025).",
    )
    norm_epsilon: float = Field(1e-5, gt=0, description="Added to the variance.")
    norm_zero_centered: bool = Field(False, description="Store the norms' scale minus one (Gemma).")
    query_key_norm: bool = Field(
        False, description="RMSNorm of each query and key head (Dehghani et al. 2023; Qwen 3, Gemma 3)."
    )
    parallel_blocks: bool = Field(
        False, description="Attention and feed-forward side by side from one norm (GPT-J; PaLM, section 2)."
    )
    activation: Activation = Field(
        "gelu_tanh", description="Of the feed-forward; swiglu, geglu and reglu are gated (Shazeer 2020)."
    )
    use_bias: bool = Field(True, description="Biases in projections and in LayerNorm.")
    attention_bias: Literal["none", "qkv", "all"] | None = Field(
        None, description="Biases in attention: none = as use_bias; qkv: not in its output (Qwen 2)."
    )
    sliding_window: int | None = Field(
        None, gt=0, description="Each token sees at most this many tokens, itself included (Mistral)."
    )
    global_every: int | None = Field(
        None, gt=1, description="Every n-th layer ignores the sliding window (Gemma 2: 2, Gemma 3: 6)."
    )
    attention_scale: float | None = Field(
        None, gt=0, description="Multiplies attention logits: none = 1 / sqrt(head_dim); T5: 1; Gemma 2 sets it."
    )
    attention_logit_cap: float | None = Field(
        None, gt=0, description="Bound attention logits by cap * tanh(logits / cap) (Gemma 2: 50)."
    )
    attention_sinks: bool = Field(
        False, description="A learned logit per head that takes attention and gives nothing (gpt-oss)."
    )

    num_experts: int | None = Field(
        None, gt=0, description="Experts of a mixture in place of the feed-forward (Shazeer et al. 2017): none = dense."
    )
    experts_per_token: int = Field(2, gt=0, description="Experts each token is sent to (Switch: 1, Mixtral: 2).")
    num_shared_experts: int = Field(0, ge=0, description="Experts that see every token (DeepSeekMoE).")
    normalize_router: bool = Field(True, description="Weights of the chosen experts sum to 1 (Mixtral; Switch: not).")
    expert_capacity_factor: float | None = Field(
        None,
        gt=0,
        description="Each expert takes at most this times its even share of a sequence's tokens, the rest pass by "
        "(GShard, Switch): none = no token is dropped.",
    )
    load_balance_weight: float = Field(0.01, ge=0, description="Weight of the load-balancing loss (Switch, eq. 4).")
    router_z_weight: float = Field(0.001, ge=0, description="Weight of the router's z-loss (ST-MoE, equation 5).")

    heads: tuple[Head, ...] = Field(
        ("lm",),
        description="What is read off the last layer. lm: a distribution over the vocabulary; of an encoder also "
        "sentence_pair (next sentence, sentence order), sequence and choice (from the pooled text), "
        "tokens, span, detection (replaced tokens).",
    )
    num_labels: int = Field(2, gt=0, description="Outputs of the sequence and tokens heads; regression: 1.")
    pooling: Literal["first", "mean", "max"] = Field(
        "first",
        description="One vector of a text: the first token's (BERT), or the mean or maximum over its tokens "
        "(Reimers & Gurevych 2019).",
    )
    pooler: Literal["none", "tanh", "gelu", "relu"] = Field(
        "none", description="Activation of a dense layer over that vector (BERT, RoBERTa: tanh, ELECTRA: gelu)."
    )
    tie_embeddings: bool = Field(True, description="Output projection = input embedding table (Press & Wolf 2017).")
    head_transform: bool = Field(False, description="Dense layer, activation and norm before the output (BERT).")
    head_bias: bool = Field(False, description="A bias for every word of the output (BERT, BART).")
    scale_embeddings: bool = Field(False, description="Multiply input embeddings by sqrt(their width) (2017).")
    scale_logits: bool = Field(False, description="Divide the last hidden state by sqrt(embed_dim) (T5 1.0).")
    logit_cap: float | None = Field(None, gt=0, description="Bound logits by cap * tanh(logits / cap) (Gemma 2).")
    decoder_start_id: int | None = Field(
        None, ge=0, description="First token a decoder reads after an encoder: none = begin of document; T5: 0 (pad)."
    )

    dropout_rate: float = Field(0.0, ge=0, lt=1, description="On embeddings and on each sublayer's output.")
    attention_dropout_rate: float = Field(
        0.0, ge=0, lt=1, description="On attention weights; excludes fused attention."
    )
    activation_dropout_rate: float = Field(0.0, ge=0, lt=1, description="Inside the feed-forward (T5).")
    initializer: Literal["normal", "truncated_normal", "fan_in"] = Field(
        "normal",
        description="Normal or truncated normal of init_stddev (GPT-2; BERT), or N(0, 1/inputs) with queries divided "
        "by sqrt(head_dim) and token embeddings of 1 (T5).",
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
        problems = [*self._impossible_shapes(), *self._impossible_mechanisms()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _impossible_shapes(self) -> list[str]:
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
        if self.positions == "sinusoidal" and self.size_of_embedding % 2:
            problems.append(f"sinusoidal positions need an even width, not {self.size_of_embedding}")
        if self.num_experts and self.experts_per_token > self.num_experts:
            problems.append(f"experts_per_token={self.experts_per_token} is more than num_experts={self.num_experts}")
        return problems

    def _impossible_mechanisms(self) -> list[str]:
        problems = []
        if self.attention_implementation == "cudnn":
            if self.dtype != "bfloat16":
                problems.append("attention_implementation=cudnn needs dtype=bfloat16")
            for field in ("attention_dropout_rate", "attention_logit_cap", "attention_sinks"):
                if getattr(self, field):
                    problems.append(f"attention_implementation=cudnn cannot apply {field}; leave it out")
        if self.stack != "encoder" and self.heads != ("lm",):
            problems.append(f"heads={list(self.heads)} need stack=encoder; a {self.stack} has the head lm")
        if len(set(self.heads)) != len(self.heads):
            problems.append(f"heads={list(self.heads)} names a head twice")
        if self.stack == "encoder" and self.sliding_window:
            problems.append("sliding_window looks back only, so it needs stack=decoder or encoder_decoder")
        if self.stack != "encoder_decoder":
            for field, default in (
                ("num_encoder_layers", None),
                ("share_encoder_decoder", False),
                ("share_embeddings", True),
                ("decoder_start_id", None),
            ):
                if getattr(self, field) != default:
                    problems.append(f"{field} is for stack=encoder_decoder, not {self.stack}")
        if self.share_encoder_decoder and self.num_encoder_layers not in (None, self.num_layers):
            problems.append(
                f"share_encoder_decoder needs as many layers in the encoder ({self.num_encoder_layers}) as in the "
                f"decoder ({self.num_layers})"
            )
        if self.share_encoder_decoder and not self.share_embeddings:
            problems.append("share_encoder_decoder shares the embeddings too; leave share_embeddings on")
        if self.global_every and not self.sliding_window:
            problems.append("global_every needs a sliding_window for the other layers")
        if self.local_rotary_base and not self.global_every:
            problems.append("local_rotary_base needs global_every")
        if self.parallel_blocks and (self.norm_placement != "pre" or self.stack == "encoder_decoder"):
            problems.append("parallel_blocks needs norm_placement=pre and a single stack")
        narrow = self.size_of_embedding != self.embed_dim
        if "lm" in self.heads and self.tie_embeddings and narrow and not self.head_transform:
            problems.append("tied embeddings narrower than embed_dim need head_transform, which narrows the output")
        if self.positions != "learned" and self.position_offset:
            problems.append("position_offset is for positions=learned")
        return problems

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

    @property
    def size_of_embedding(self) -> int:
        """`embedding_dim`, resolved."""
        return self.embedding_dim or self.embed_dim

    @property
    def count_of_encoder_layers(self) -> int:
        """Blocks of the encoder, where there is one."""
        return self.num_layers if self.stack == "encoder" else self.num_encoder_layers or self.num_layers

    @property
    def biased_attention(self) -> Literal["none", "qkv", "all"]:
        """`attention_bias`, resolved."""
        return self.attention_bias or ("all" if self.use_bias else "none")
