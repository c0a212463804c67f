"""Laws of encoder, encoder–decoder and ELECTRA pair: who sees whom, what is shared, what the cache changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import decoding, tree
from model.config import TransformerConfig
from model.decoding import Sampling
from model.transformer import Encoder, EncoderDecoder, ReplacedTokenDetector, initialize, transformer

SMALL = dict(vocab_size=61, num_layers=2, embed_dim=32, num_heads=4, max_length=24)
BERT = dict(
    stack="encoder",
    positions="learned",
    norm_placement="post",
    embedding_norm=True,
    num_sentence_types=2,
    head_transform=True,
    head_bias=True,
)
ENCODERS = {
    "bert": BERT,
    "albert": BERT | dict(share_layers=True, embedding_dim=16),
    "t5": dict(stack="encoder", positions="t5_relative", norm="rms", use_bias=False),
    "rotary": dict(stack="encoder", norm_placement="peri", query_key_norm=True),
    "alibi": dict(stack="encoder", positions="alibi", parallel_blocks=True),
}
SEQUENCE_TO_SEQUENCE = {
    "original": dict(positions="sinusoidal", norm_placement="post", scale_embeddings=True, activation="relu"),
    "t5": dict(positions="t5_relative", norm="rms", use_bias=False, attention_scale=1.0, num_encoder_layers=3),
    "shared": dict(positions="t5_relative", norm="rms", use_bias=False, share_encoder_decoder=True),
    "bart": dict(positions="learned", position_offset=2, embedding_norm=True, norm_placement="post", head_bias=True),
    "albert": dict(positions="learned", share_layers=True, share_encoder_decoder=True),
    "apart": dict(positions="rotary", share_embeddings=False, tie_embeddings=False, attention_sinks=True),
}


def build(**choices):
    config = TransformerConfig(**(SMALL | choices))
    model = transformer(config)
    params = tree.unbox(jax.jit(lambda key: initialize(model, key))(jax.random.key(0)))
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.3 * noise.standard_normal(p.shape).astype(np.float32), params)
    return config, model, params


def tokens(seed, length=12):
    return jax.random.randint(jax.random.key(seed), (2, length), 4, 61)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_sees_both_ways_but_no_other_segment_and_no_padding(kind):
    _, model, params = build(**ENCODERS[kind])
    text = tokens(1)
    segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3] * 2)
    positions = jnp.array([[*range(5), *range(4), 0, 0, 0]] * 2)

    @jax.jit
    def hidden(params, text, positions=None, segment_ids=None):
        return model.apply({"params": params}, text, positions, segment_ids)["hidden"]

    packed = hidden(params, text, positions, segments)
    alone = hidden(params, text[:, :5]), hidden(params, text[:, 5:9])
    np.testing.assert_allclose(packed[:, :5], alone[0], atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(packed[:, 5:9], alone[1], atol=2e-5, rtol=1e-4)
    changed = text.at[:, 4].set((text[:, 4] + 1) % 61)
    moved = np.abs(hidden(params, changed, positions, segments) - packed).max(axis=(0, 2)) > 1e-6
    assert moved.tolist() == [True] * 5 + [False] * 7


@pytest.mark.parametrize("kind", SEQUENCE_TO_SEQUENCE)
def test_a_target_sees_its_past_and_all_of_its_source(kind):
    _, model, params = build(stack="encoder_decoder", **SEQUENCE_TO_SEQUENCE[kind])
    source, target = tokens(1), tokens(2, 6)
    real = jnp.array([[1] * 9 + [0] * 3] * 2)

    @jax.jit
    def logits(source, target):
        return model.apply({"params": params}, source, target, encoder_segment_ids=real)

    def moved(source, target):
        return (np.abs(logits(source, target) - before).max(axis=(0, 2)) > 1e-6).tolist()

    before = logits(source, target)
    assert moved(source.at[:, 10].add(1) % 61, target) == [False] * 6
    assert moved(source.at[:, 8].add(1) % 61, target) == [True] * 6
    assert moved(source, target.at[:, 3].add(1) % 61) == [False] * 3 + [True] * 3


@pytest.mark.parametrize("kind", SEQUENCE_TO_SEQUENCE)
def test_greedy_decoding_with_the_cache_takes_the_largest_logits_without_it(kind):
    config, model, params = build(stack="encoder_decoder", **SEQUENCE_TO_SEQUENCE[kind])
    source, lengths = np.asarray(tokens(1)), np.array([12, 7], np.int32)
    state = decoding.start(config, jax.random.split(jax.random.key(0)), 16, source_length=12)
    begin = np.full((2, 1), 3, np.int32)
    state = decoding.read(model, params, state, begin, np.ones(2, np.int32), source=source, source_lengths=lengths)
    greedy = dict(num_steps=8, eos_id=61, sampling=Sampling(temperature=0))
    _, written = decoding.decode(model, params, state, np.ones(61, bool), **greedy)
    real = (np.arange(12) < lengths[:, None]).astype(np.int32)
    read = np.concatenate([begin, written[:, :-1]], axis=1)
    logits = jax.jit(lambda p: model.apply({"params": p}, source, read, encoder_segment_ids=real))(params)
    np.testing.assert_array_equal(written, np.argmax(logits, axis=-1))


def test_sharing_leaves_one_stack_and_cross_attention():
    shapes = {
        name: tree.count(tree.unbox(jax.eval_shape(lambda m=model: initialize(m, jax.random.key(0)))))
        for name, model in {
            "decoder": transformer(TransformerConfig(**SMALL, positions="t5_relative")),
            "shared": transformer(
                TransformerConfig(**SMALL, positions="t5_relative", stack="encoder_decoder", share_encoder_decoder=True)
            ),
        }.items()
    }
    width = SMALL["embed_dim"]
    cross_attention = 2 * (4 * (width * width + width) + 2 * width)  # four projections and a norm in both layers
    assert shapes["shared"] == shapes["decoder"] + cross_attention


def test_one_block_for_all_depths_is_that_block_repeated():
    _, model, params = build(**ENCODERS["albert"])
    _, deep, deep_params = build(**ENCODERS["bert"] | dict(embedding_dim=16))
    layers = jax.tree.map(lambda x: jnp.stack([x, x]), params["encoder"]["layers"])
    deep_params = params | {"encoder": params["encoder"] | {"layers": layers}}
    outputs = [
        jax.jit(lambda p, m=m: m.apply({"params": p}, tokens(1))["lm"])(p)
        for m, p in ((model, params), (deep, deep_params))
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_the_generator_writes_only_where_weights_say_so_and_no_gradient_passes_the_sampling():
    config = TransformerConfig(**SMALL, stack="encoder", positions="learned", heads=("detection",))
    model = ReplacedTokenDetector(config, 0.5)
    params = tree.unbox(jax.jit(lambda key: initialize(model, key))(jax.random.key(0)))
    text = tokens(1)
    weights = (np.random.default_rng(0).random(text.shape) < 0.4).astype(np.float32)

    def run(params):
        rngs = {"sample": jax.random.key(3)}
        return model.apply({"params": params}, text.at[weights > 0].set(0), text, weights, rngs=rngs)

    outputs = jax.jit(run)(params)
    assert not np.asarray(outputs["replaced"])[weights == 0].any()
    assert np.asarray(outputs["replaced"])[weights > 0].mean() > 0.8  # an untrained generator is seldom right
    grads = jax.jit(jax.grad(lambda p: run(p)["detection"].sum()))(params)
    assert all(not np.asarray(x).any() for x in jax.tree.leaves((grads["generator"], grads["head"])))
    assert any(np.asarray(x).any() for x in jax.tree.leaves(grads["encoder"]))


def test_every_head_has_its_shape():
    heads = ("lm", "sentence_pair", "sequence", "tokens", "span", "choice", "detection")
    _, model, params = build(**BERT | dict(heads=heads, pooler="tanh", num_labels=3))
    outputs = jax.eval_shape(lambda p: model.apply({"params": p}, tokens(1)), params)
    assert {name: x.shape for name, x in outputs.items()} == {
        "hidden": (2, 12, 32),
        "pooled": (2, 32),
        "lm": (2, 12, 61),
        "sentence_pair": (2, 2),
        "sequence": (2, 3),
        "tokens": (2, 12, 3),
        "span": (2, 12, 2),
        "choice": (2,),
        "detection": (2, 12),
    }


@pytest.mark.parametrize("stack, model", [("encoder", Encoder), ("encoder_decoder", EncoderDecoder)])
def test_the_config_names_the_model(stack, model):
    assert isinstance(transformer(TransformerConfig(**SMALL, stack=stack)), model)
    assert issubclass(model, nn.Module)
