"""Laws of the decoder: causality, packing, loops that change nothing, published sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import tree
from model.config import TransformerConfig
from model.transformer import Decoder
from model.tree import unbox

SMALL = dict(vocab_size=61, num_layers=2, embed_dim=32, num_heads=4, max_length=24)
KINDS = {
    "gpt2": dict(positions="learned"),
    "llama": dict(
        positions="rotary", norm="rms", activation="swiglu", use_bias=False, num_kv_heads=2, tie_embeddings=False
    ),
    "alibi_mqa": dict(positions="alibi", num_kv_heads=1, activation="relu"),
    "t5": dict(positions="t5_relative", norm="rms", activation="geglu", head_dim=16),
    "original": dict(positions="sinusoidal", norm_placement="post", scale_embeddings=True, activation="relu"),
    "window": dict(positions="rotary", sliding_window=5),
    "none": dict(positions="none", activation="gelu"),
}


def build(**choices):
    config = TransformerConfig(**(SMALL | choices))
    model = Decoder(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 4, config.vocab_size)
    params = initialize(model)
    # Larger than at initialization, so that every mechanism leaves a mark on the logits.
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.3 * noise.standard_normal(p.shape).astype(np.float32), params)
    return config, model, params, tokens


def initialize(model):
    return jax.jit(lambda key: unbox(model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]))(jax.random.key(0))


def apply(model, params, tokens, **arguments):
    """Compiled as a whole: one by one, the operations take longer to compile."""
    static = {name: value for name, value in arguments.items() if isinstance(value, bool)}
    traced = {name: value for name, value in arguments.items() if name not in static}
    return jax.jit(lambda p, t, rest: model.apply({"params": p}, t, **rest, **static))(params, tokens, traced)


@pytest.mark.parametrize("kind", KINDS)
def test_no_logit_depends_on_a_later_token(kind):
    config, model, params, tokens = build(**KINDS[kind])
    probe = jnp.zeros((1, tokens.shape[1], config.embed_dim))

    def logits(noise):
        def add_noise(next_fun, args, kwargs, context):
            out = next_fun(*args, **kwargs)
            return (
                out + noise if context.module.name == "token_embedding" and context.method_name == "__call__" else out
            )

        with nn.intercept_methods(add_noise):
            return model.apply({"params": params}, tokens[:1])[0].sum(axis=-1)

    influence = np.abs(np.asarray(jax.jit(jax.jacobian(logits))(probe)))[:, 0].sum(
        axis=-1
    )  # [output place, input place]
    assert np.all(np.triu(influence, 1) == 0)
    assert np.all(np.diag(influence) > 0)
    reach = config.num_layers * (config.sliding_window - 1) if config.sliding_window else tokens.shape[1]
    seen = np.tril(np.ones_like(influence)) * (np.subtract.outer(range(16), range(16)) <= reach)
    assert np.all((influence > 0) == (seen > 0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_document_has_the_logits_it_has_alone(kind):
    config, model, params, tokens = build(**KINDS[kind])
    first, second = tokens[:1, :7], tokens[1:, :9]
    packed = jnp.concatenate([first, second], axis=1)
    segment_ids = jnp.array([[1] * 7 + [2] * 9])
    positions = jnp.array([[*range(7), *range(9)]])
    together = apply(model, params, packed, positions=positions, segment_ids=segment_ids)
    np.testing.assert_allclose(together[:, :7], apply(model, params, first), atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(together[:, 7:], apply(model, params, second), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("change", [dict(layer_loop="unroll"), dict(remat="full"), dict(remat="dots")], ids=str)
def test_loops_and_recomputation_change_neither_tree_nor_numbers(kind, change):
    config, model, params, tokens = build(**KINDS[kind])
    other = Decoder(config.model_copy(update=change))

    def loss(model, params):
        return jnp.square(model.apply({"params": params}, tokens)).mean()

    shapes = jax.eval_shape(lambda: unbox(other.init(jax.random.key(0), tokens)["params"]))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    value, grads = jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(params)
    other_value, other_grads = jax.jit(jax.value_and_grad(lambda p: loss(other, p)))(params)
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, other_grads)


def test_remat_really_recomputes():
    """With recomputation the backward pass contains a `remat` call; without, it does not."""
    for remat, expected in (("none", False), ("full", True), ("dots", True)):
        _, model, params, tokens = build(remat=remat)
        program = jax.make_jaxpr(jax.grad(lambda p, m=model, t=tokens: m.apply({"params": p}, t).sum()))(params)
        assert ("remat" in str(program) or "checkpoint" in str(program)) == expected


def test_grouped_heads_equal_repeated_heads():
    _, model, params, tokens = build(num_kv_heads=2)
    _, full, _, _ = build()
    repeated = jax.tree.map(lambda x: x, params)
    for name in ("key", "value"):
        part = repeated["decoder"]["layers"]["self_attention"][name]
        part["kernel"] = jnp.repeat(part["kernel"], 2, axis=2)
        part["bias"] = jnp.repeat(part["bias"], 2, axis=1)
    np.testing.assert_allclose(apply(model, params, tokens), apply(full, repeated, tokens), atol=1e-5, rtol=1e-5)


def test_attention_dropout_path_is_the_same_attention():
    """The written-out formula, with nothing dropped, equals the library's kernel."""
    from model import attention

    config = TransformerConfig(**SMALL, num_kv_heads=2, sliding_window=6, attention_dropout_rate=1e-9)
    shapes = [(2, 16, 4, 8), (2, 16, 2, 8), (2, 16, 2, 8)]
    query, key, value = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))
    plain = attention.attend(query, key, value, config, is_causal=True)
    written = attention.attend(query, key, value, config, is_causal=True, dropout_key=jax.random.key(0))
    np.testing.assert_allclose(written, plain, atol=1e-6)


def test_dropout_acts_only_when_asked_and_follows_its_key():
    _, model, params, tokens = build(dropout_rate=0.5, attention_dropout_rate=0.5)

    def run(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return apply(model, params, tokens, deterministic=False, rngs=rngs)

    assert np.array_equal(run(0), run(0))
    assert not np.allclose(run(0), run(1))
    assert not np.allclose(run(0), apply(model, params, tokens))


def test_bfloat16_computes_near_float32():
    config, model, params, tokens = build(positions="rotary")
    low = apply(Decoder(config.model_copy(update=dict(dtype="bfloat16"))), params, tokens)
    high = apply(model, params, tokens)
    assert low.dtype == jnp.bfloat16
    assert np.linalg.norm(low.astype(jnp.float32) - high) < 0.05 * np.linalg.norm(high)


def test_initial_weights_have_their_published_spread():
    config = TransformerConfig(vocab_size=512, num_layers=8, embed_dim=128, num_heads=4, positions="learned")
    params = initialize(Decoder(config))
    spread = {name: float(np.std(x)) for name, x in tree.named_leaves(params).items()}
    assert spread["token_embedding/embedding"] == pytest.approx(0.02, rel=0.02)
    assert spread["decoder/position_embedding/embedding"] == pytest.approx(0.01, rel=0.02)
    assert spread["decoder/layers/self_attention/query/kernel"] == pytest.approx(0.02, rel=0.02)
    assert spread["decoder/layers/self_attention/out/kernel"] == pytest.approx(0.02 / 4, rel=0.02)
    assert spread["decoder/layers/feed_forward/down/kernel"] == pytest.approx(0.02 / 4, rel=0.02)


def test_tree_of_a_decoder():
    """Paths, shapes and logical axes, in full: renaming a parameter breaks every checkpoint."""
    config = TransformerConfig(
        vocab_size=64, num_layers=3, embed_dim=16, num_heads=4, num_kv_heads=2, max_length=8, positions="learned"
    )
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    found = {
        tree.path_name(path): (box.value.shape, box.names)
        for path, box in jax.tree_util.tree_leaves_with_path(
            boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
        )
    }
    layers = {
        "feed_forward/down/bias": ((3, 16), ("layers", "embed")),
        "feed_forward/down/kernel": ((3, 64, 16), ("layers", "mlp", "embed")),
        "feed_forward/up/bias": ((3, 64), ("layers", "mlp")),
        "feed_forward/up/kernel": ((3, 16, 64), ("layers", "embed", "mlp")),
        "feed_forward_norm/bias": ((3, 16), ("layers", "embed")),
        "feed_forward_norm/scale": ((3, 16), ("layers", "embed")),
        "self_attention/key/bias": ((3, 2, 4), ("layers", "kv_heads", "head_dim")),
        "self_attention/key/kernel": ((3, 16, 2, 4), ("layers", "embed", "kv_heads", "head_dim")),
        "self_attention/out/bias": ((3, 16), ("layers", "embed")),
        "self_attention/out/kernel": ((3, 4, 4, 16), ("layers", "heads", "head_dim", "embed")),
        "self_attention/query/bias": ((3, 4, 4), ("layers", "heads", "head_dim")),
        "self_attention/query/kernel": ((3, 16, 4, 4), ("layers", "embed", "heads", "head_dim")),
        "self_attention/value/bias": ((3, 2, 4), ("layers", "kv_heads", "head_dim")),
        "self_attention/value/kernel": ((3, 16, 2, 4), ("layers", "embed", "kv_heads", "head_dim")),
        "self_attention_norm/bias": ((3, 16), ("layers", "embed")),
        "self_attention_norm/scale": ((3, 16), ("layers", "embed")),
    }
    expected = {f"decoder/layers/{name}": value for name, value in layers.items()} | {
        "decoder/final_norm/bias": ((16,), ("embed",)),
        "decoder/final_norm/scale": ((16,), ("embed",)),
        "decoder/position_embedding/embedding": ((8, 16), ("length", "embed")),
        "token_embedding/embedding": ((64, 16), ("vocab", "embed")),
    }
    assert found == expected
