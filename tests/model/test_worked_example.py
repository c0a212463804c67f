"""The Transformer (Vaswani et al. 2017) by hand, on one sentence: 我今天吃饭吃得很好很开心.

    pytest -s tests/model/test_worked_example.py

The model reads the sentence character by character and writes it word by word: 我 今天 吃饭 吃 得 很 好 很 开心.
Each test is one stage, in the order in which numbers flow; it takes the stage's input from the one before, computes
the stage with plain NumPy where that is short, and checks that the library's numbers are the same:

    characters → ids → embeddings + positions → encoder (attention) → decoder → softmax → the most likely word

Shapes are named as everywhere here: batch (1 sentence), length (12 characters), target (10 words), embed (32),
heads (4), head_dim (8), vocab (16).
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model import attention, decoding, tree
from model.config import TransformerConfig
from model.taps import capture
from model.transformer import EncoderDecoder, initialize

SENTENCE = "我今天吃饭吃得很好很开心"
WORDS = "我 今天 吃饭 吃 得 很 好 很 开心".split()

# One vocabulary for both sides: three special tokens, then every character and every word once.
PAD, BEGIN, END = 0, 1, 2
VOCABULARY = ["<pad>", "<begin>", "<end>", *dict.fromkeys([*SENTENCE, *WORDS])]
IDS = {token: number for number, token in enumerate(VOCABULARY)}

CHARACTERS = np.array([[IDS[character] for character in SENTENCE]])
# The decoder reads what has been written so far and predicts what comes next: the same words, moved by one.
READ = np.array([[BEGIN, *(IDS[word] for word in WORDS)]])
NEXT = np.array([[*(IDS[word] for word in WORDS), END]])

CONFIG = TransformerConfig(
    stack="encoder_decoder",
    vocab_size=len(VOCABULARY),
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    mlp_dim=64,
    max_length=16,
    # As in the paper: fixed sines and cosines, a norm after each residual sum, ReLU, embeddings times sqrt(embed),
    # and one table for source, target and output.
    positions="sinusoidal",
    norm_placement="post",
    activation="relu",
    scale_embeddings=True,
    tie_embeddings=True,
    init_stddev=0.1,
    decoder_start_id=BEGIN,
)
MODEL = EncoderDecoder(CONFIG)


@pytest.fixture(scope="module")
def untrained() -> dict:
    """The parameters before training: a nested dict of random arrays."""
    return tree.unbox(jax.jit(lambda key: initialize(MODEL, key))(jax.random.key(0)))


@pytest.fixture(scope="module")
def stages(untrained) -> SimpleNamespace:
    """What the library computes on the way, compiled as one function."""

    def compute(params: dict) -> dict[str, jax.Array]:
        variables = {"params": params}
        tokens, places = jnp.asarray(CHARACTERS), jnp.arange(12)[None]

        def embed(model: EncoderDecoder) -> jax.Array:
            return model.encoder.embed(model.token_embedding(tokens), places, None, deterministic=True)

        with capture("encoder/layers/*/output") as taps:
            encoded = MODEL.apply(variables, CHARACTERS, method="encode")
        return dict(
            embedded=MODEL.apply(variables, method=embed),
            layers=taps.stack("encoder/layers/*/output"),
            encoded=encoded,
            logits=MODEL.apply(variables, encoded, READ, method="decode"),
        )

    return SimpleNamespace(**jax.device_get(jax.jit(compute)(untrained)))


def test_1_characters_become_ids():
    print(f"\nvocab {len(VOCABULARY)}: {' '.join(VOCABULARY)}\nids {CHARACTERS.tolist()}")
    assert CHARACTERS.shape == (1, 12) and READ.shape == NEXT.shape == (1, 10)
    assert "".join(VOCABULARY[number] for number in CHARACTERS[0]) == SENTENCE
    assert CHARACTERS[0, 3] == CHARACTERS[0, 5] == IDS["吃"]  # one id, wherever the character stands


def test_2_embeddings_and_positions_are_added(untrained, stages):
    table = np.asarray(untrained["token_embedding"]["embedding"])
    assert table.shape == (len(VOCABULARY), 32)
    meaning = table[CHARACTERS] * np.sqrt(32)  # look up one row for each character
    place, pair = np.arange(12)[:, None], np.arange(16)
    angles = place / 10_000 ** (pair / 16)
    position = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    print(f"\nembeddings {meaning.shape} + positions {position.shape} = {stages.embedded.shape}")
    np.testing.assert_allclose(stages.embedded, meaning + position, atol=1e-5)
    # The two 吃 mean the same and stand elsewhere; from the sum the model can tell them apart.
    np.testing.assert_array_equal(meaning[0, 3], meaning[0, 5])
    assert np.abs(stages.embedded[0, 3] - stages.embedded[0, 5]).max() > 0.1


def test_3_attention_mixes_the_values_with_weights_that_sum_to_one(untrained, stages):
    first = jax.tree.map(lambda array: np.asarray(array[0]), untrained["encoder"]["layers"]["self_attention"])

    def heads(name: str) -> np.ndarray:  # every head looks at the same vectors through a kernel of its own
        return np.einsum("ble,ehd->blhd", stages.embedded, first[name]["kernel"]) + first[name]["bias"]

    query, key, value = heads("query"), heads("key"), heads("value")
    assert query.shape == key.shape == value.shape == (1, 12, 4, 8)

    # softmax(QKᵀ / sqrt(head_dim)) V, equation 1 of the paper: row q of a head says how much q takes of each key.
    weights = softmax(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(8))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
    print(f"\nquery {query.shape}, weights {weights.shape}, mixed {mixed.shape}")
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda *a: attention.attend(*a, CONFIG))(query, key, value), mixed, atol=1e-5)


def test_4_the_encoder_keeps_the_shape_and_every_character_sees_all(untrained, stages):
    print(f"\nlayers {stages.layers.shape} → encoded {stages.encoded.shape}")
    assert stages.layers.shape == (2, 1, 12, 32)  # each layer gives one vector for each character
    np.testing.assert_array_equal(stages.layers[-1], stages.encoded)
    # The norm after the last sum leaves every vector with mean 0 and variance 1: scale is 1 and bias 0 at first.
    np.testing.assert_allclose(stages.encoded.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(stages.encoded.var(axis=-1), 1, atol=1e-3)
    changed = CHARACTERS.copy()
    changed[0, -1] = IDS["我"]  # another last character
    encoded = jax.jit(lambda params: MODEL.apply({"params": params}, changed, method="encode"))(untrained)
    assert (np.abs(encoded - stages.encoded).max(axis=-1) > 1e-4).all()  # is noticed everywhere, the first included


def test_5_the_decoder_does_not_see_what_it_has_not_written(untrained, stages):
    assert stages.logits.shape == (1, 10, len(VOCABULARY))  # at each place a score for each word that may come next
    changed = READ.copy()
    changed[0, 6] = IDS["我"]  # another word at place 6
    decode = jax.jit(lambda params, encoded: MODEL.apply({"params": params}, encoded, changed, method="decode"))
    logits = decode(untrained, stages.encoded)
    np.testing.assert_allclose(logits[:, :6], stages.logits[:, :6], atol=1e-5)
    assert (np.abs(logits[:, 6:] - stages.logits[:, 6:]).max(axis=-1) > 1e-4).all()


def test_6_softmax_turns_scores_into_probabilities(stages):
    probabilities = softmax(stages.logits)
    guess = probabilities.argmax(axis=-1)
    print(f"\nbefore training: {' '.join(VOCABULARY[number] for number in guess[0])}")
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    assert guess.shape == (1, 10) and (guess != NEXT).any()
    # Nothing has been learned yet: the output's table is that of the input, so the likeliest word is the one just read.
    assert (guess == READ).mean() > 0.5


def test_7_training_makes_the_right_words_the_most_likely(untrained):
    """Adam lowers the cross entropy, -ln p(next word), until greedy decoding writes the sentence in words."""
    optimizer = optax.adam(3e-3)

    def loss_fn(params: dict) -> jax.Array:
        logits = MODEL.apply({"params": params}, CHARACTERS, READ)
        return optax.softmax_cross_entropy_with_integer_labels(logits, NEXT).mean()

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def train(params: dict):
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=150)
        return params, losses

    trained, losses = train(untrained)
    print(f"\nloss {losses[0]:.2f} → {losses[-1]:.4f}")
    assert losses[0] > 2 and losses[-1] < 0.05
    assert words_of(trained) == WORDS


def words_of(params: dict) -> list[str]:
    """The sentence in words: each is the most likely one after those before, until the end is."""
    state = decoding.start(CONFIG, jax.random.key(0)[None], capacity=16, source_length=12)
    state = decoding.read(
        MODEL, params, state, np.array([[BEGIN]]), np.array([1]), source=CHARACTERS, source_lengths=np.array([12])
    )
    greedy = decoding.Sampling(temperature=0)
    everything = jnp.ones(len(VOCABULARY), bool)
    _, written = decoding.decode(MODEL, params, state, everything, num_steps=15, eos_id=END, sampling=greedy)
    words = [VOCABULARY[number] for number in written[0] if number >= 0]
    print(f"{SENTENCE} → {' '.join(words)}")
    return words[:-1] if words[-1] == "<end>" else words


def softmax(x: np.ndarray) -> np.ndarray:
    """e^x / sum(e^x) over the last dim; the largest x is moved to 0, which changes nothing but overflow."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
