"""Laws of writing: the cache changes no number, company changes no text, draws follow the distribution."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import decoding
from model.attention import KVCache
from model.config import TransformerConfig
from model.decoding import UNCONSTRAINED, Constraints, Sampling
from model.transformer import Decoder

VOCAB, LENGTH = 24, 16
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "t5_relative", "none")


def tiny(*, sliding_window: int | None = None, **changes) -> tuple[Decoder, dict]:
    """A model whose weights are large enough that its distributions are far from uniform."""
    sizes = dict(vocab_size=VOCAB, num_layers=2, embed_dim=16, num_heads=4, max_length=LENGTH)
    config = TransformerConfig(**sizes | changes, init_stddev=0.3)
    return Decoder(config.model_copy(update={"sliding_window": sliding_window})), initial_params(config)


@functools.cache
def initial_params(config: TransformerConfig) -> dict:
    boxed = jax.jit(Decoder(config).init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
    return nn.meta.unbox(boxed)


def keys(batch: int, seed: int = 0) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(batch))


def write(
    model, params, prompts, num_tokens, sampling, *, chunk=4, seed=0, row_keys=None, eos_id=VOCAB + 1,
    constraints=UNCONSTRAINED, allowed=np.ones(VOCAB, bool),  # noqa: B008 (never changed)
):  # fmt: skip
    """`num_tokens` tokens after each prompt, as a list of lists."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    state = decoding.start(model.config, keys(len(prompts), seed) if row_keys is None else row_keys, LENGTH)
    state = decoding.read(model, params, state, tokens, lengths)
    parts = []
    for _ in range(-(-num_tokens // chunk)):
        options = dict(num_steps=chunk, eos_id=eos_id, sampling=sampling, constraints=constraints)
        state, part = decoding.decode(model, params, state, allowed, **options)
        parts.append(np.asarray(part))
    return np.concatenate(parts, axis=1)[:, :num_tokens].tolist()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("num_kv_heads", [None, 2])
@pytest.mark.parametrize("positions", POSITIONS)
def test_cached_logits_equal_uncached(positions, num_kv_heads, window):
    model, params = tiny(positions=positions, num_kv_heads=num_kv_heads, sliding_window=window)
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, VOCAB)
    expected = jax.jit(model.apply)({"params": params}, tokens)
    prefill, decode_step = (jax.jit(f, static_argnums=0) for f in (decoding.prefill, decoding.decode_step))
    lengths = jnp.array([7, 4])  # the last three tokens of row 1 are padding to `prefill`
    logits, cache, _ = prefill(model, params, tokens[:, :7], lengths, KVCache.empty(model.config, 2, LENGTH))
    for step in range(6):
        places = lengths + step - 1
        np.testing.assert_allclose(logits, expected[jnp.arange(2), places], atol=1e-5, rtol=1e-5)
        logits, cache, _ = decode_step(model, params, tokens[jnp.arange(2), places + 1], places + 1, cache)


def test_rows_of_length_zero_are_left_alone():
    model, params = tiny()
    prompts = np.array([[3, 4, 5], [6, 7, 8]], np.int32)
    state = decoding.start(model.config, keys(2), LENGTH)
    state = decoding.read(model, params, state, prompts, np.array([3, 3]))
    before = [np.array(x) for x in jax.tree.leaves((state.cache, state.logits, state.lengths))]
    state = decoding.read(model, params, state, np.array([[9, 9], [10, 11]], np.int32), np.array([0, 2]))
    after = [np.array(x) for x in jax.tree.leaves((state.cache, state.logits, state.lengths))]
    for old, new in zip(before[:2], after[:2], strict=True):  # keys and values
        np.testing.assert_array_equal(old[:, 0], new[:, 0])
        assert (old[:, 1] != new[:, 1]).any()
    np.testing.assert_array_equal(before[2][0], after[2][0])
    assert after[3].tolist() == [3, 2]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(top_p=0.9, repetition_penalty=1.3)])
@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
def test_a_batch_of_unequal_prompts_equals_each_alone(positions, sampling):
    model, params = tiny(positions=positions)
    prompts = [[3], [4, 5, 6, 7, 8], [9, 10]]
    together = write(model, params, prompts, 8, sampling)
    row_keys = keys(3)
    for row, prompt in enumerate(prompts):
        alone = write(model, params, [prompt], 8, sampling, row_keys=row_keys[row : row + 1])
        assert alone == [together[row]]


def test_greedy_is_the_argmax_of_the_uncached_model_at_every_step():
    model, params = tiny()
    text = [3, 4, 5]
    apply = jax.jit(model.apply)
    for _ in range(10):
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(text)] = text
        text.append(int(apply({"params": params}, padded)[0, len(text) - 1].argmax()))
    assert write(model, params, [[3, 4, 5]], 10, Sampling(temperature=0.0)) == [text[3:]]
    assert write(model, params, [[3, 4, 5]], 10, Sampling(top_k=1)) == [text[3:]]


def test_chunks_and_seeds():
    model, params = tiny()
    prompts, sampling = [[3], [4, 5]], Sampling(temperature=1.5)
    texts = [write(model, params, prompts, 10, sampling, chunk=chunk) for chunk in (1, 3, 10)]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0] != write(model, params, prompts, 10, sampling, seed=1)


def test_a_row_ends_at_eos_and_when_it_is_full():
    model, params = tiny()
    free = write(model, params, [[3], [4, 5]], 20, Sampling(temperature=0.0))
    assert [sum(token >= 0 for token in row) for row in free] == [LENGTH - 1, LENGTH - 2]
    eos = free[0][4]
    first = free[0].index(eos)
    assert write(model, params, [[3]], 20, Sampling(temperature=0.0), eos_id=eos) == [
        free[0][: first + 1] + [-1] * (19 - first)
    ]


def test_only_allowed_tokens_are_written():
    model, params = tiny()
    allowed = np.isin(np.arange(VOCAB), [5, 6])
    choices = (
        Sampling(temperature=0.0),
        Sampling(temperature=1e300),
        Sampling(top_k=20, top_p=1.0, min_p=0.0),
    )
    for sampling in choices:
        state = decoding.start(model.config, keys(2), LENGTH)
        state = decoding.read(model, params, state, np.array([[3], [4]], np.int32), np.array([1, 1]))
        _, written = decoding.decode(model, params, state, allowed, num_steps=8, eos_id=3, sampling=sampling)
        assert set(np.asarray(written).ravel().tolist()) <= {5, 6}


# Constraints -----------------------------------------------------------------------------------------------


def free_to_follow(text, num_written, constraints, eos_id=3, allowed=range(VOCAB)) -> set[int]:
    """By their definitions."""
    if constraints.first_token is not None and num_written == 0:
        return {constraints.first_token}
    n = constraints.no_repeat_ngram
    known = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)} if n else set()
    ends_too_early = num_written < constraints.min_new_tokens
    return {t for t in allowed if tuple([*text, t][-n:]) not in known and not (t == eos_id and ends_too_early)}


@pytest.mark.parametrize("n", [0, 1, 2, 3, 9])
def test_constraints_leave_what_their_definitions_leave(n):
    rng = np.random.default_rng(n)
    lengths = np.array([0, 1, 2, 7, 9, 9], np.int32)
    num_written = np.minimum(lengths, [0, 0, 2, 5, 3, 4]).astype(np.int32)
    text = rng.integers(3, 6, (6, 9)).astype(np.int32)  # also beyond the lengths
    constraints = Constraints(no_repeat_ngram=n, min_new_tokens=4, first_token=20)
    logits = rng.normal(size=(6, VOCAB)).astype(np.float32)
    allowed = np.arange(VOCAB) < 10
    constrain = jax.jit(decoding.constrain, static_argnums=(5, 6))
    masked = np.asarray(constrain(logits, allowed, text, lengths, num_written, constraints, 3))
    for row in range(6):
        rest = text[row, : lengths[row]].tolist()
        free = sorted(free_to_follow(rest, num_written[row], constraints, allowed=range(10)))
        assert np.flatnonzero(masked[row] > -np.inf).tolist() == free
        np.testing.assert_array_equal(masked[row, free], logits[row, free])


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(temperature=1.5, top_k=5)])
def test_texts_obey_in_any_chunks(sampling):
    model, params = tiny()
    prompts, constraints = [[3, 4, 5, 3], [6, 6]], Constraints(no_repeat_ngram=2, min_new_tokens=6, first_token=9)
    options = dict(constraints=constraints, eos_id=7)
    texts = write(model, params, prompts, 12, sampling, **options)
    assert texts == write(model, params, prompts, 12, sampling, chunk=1, **options)
    assert texts != write(model, params, prompts, 12, sampling, eos_id=7)
    for prompt, text in zip(prompts, texts, strict=True):
        text = [token for token in text if token >= 0]
        for i, token in enumerate(text):
            assert token in free_to_follow(prompt + text[:i], i, constraints, eos_id=7)


def test_a_row_that_nothing_may_follow_is_done_and_others_go_on():
    model, params = tiny()
    few = np.isin(np.arange(VOCAB), [5, 6])
    options = dict(constraints=Constraints(no_repeat_ngram=1), allowed=few)
    once, twice = write(model, params, [[5, 3], [3, 4]], 8, Sampling(temperature=0.0), **options)
    assert once == [6] + [-1] * 7
    assert sorted(twice[:2]) == [5, 6] and twice[2:] == [-1] * 6


def test_log_probability_is_the_models_own():
    """Of what was chosen under constraints and at another temperature; and only up to the row's limit."""
    model, params = tiny()
    prompt = np.array([[3, 4]], np.int32)
    state = decoding.read(model, params, decoding.start(model.config, keys(1), LENGTH), prompt, np.array([2]))
    state = state.replace(limits=jnp.array([9]))
    sampling, constraints = Sampling(temperature=0.7), Constraints(no_repeat_ngram=2)
    allowed = np.arange(VOCAB) > 3
    for _ in range(3):
        state, written = decoding.decode(
            model, params, state, allowed, num_steps=4, eos_id=VOCAB, sampling=sampling, constraints=constraints
        )
    assert state.lengths[0] == 9 and written.tolist() == [[-1] * 4]
    steps = jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, state.text)[0])
    expected = sum(float(steps[place - 1, state.text[0, place]]) for place in range(2, 9))
    np.testing.assert_allclose(state.log_probability[0], expected, rtol=1e-5)


@pytest.mark.parity
def test_ngrams_are_those_of_hugging_face():
    torch = pytest.importorskip("torch")
    generation = pytest.importorskip("transformers.generation")
    rng = np.random.default_rng(0)
    text, logits = rng.integers(0, 4, (5, 12)), rng.normal(size=(5, VOCAB)).astype(np.float32)
    lengths, everything = np.full(5, 12, np.int32), np.ones(VOCAB, bool)
    constrain = jax.jit(decoding.constrain, static_argnums=(5, 6))
    for n in (1, 2, 3, 4):
        expected = generation.NoRepeatNGramLogitsProcessor(n)(torch.tensor(text), torch.tensor(logits))
        constraints = Constraints(no_repeat_ngram=n)
        found = constrain(logits, everything, text, lengths, lengths, constraints, 3)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wrong", [dict(no_repeat_ngram=-1), dict(min_new_tokens=-2), dict(first_token=-1)])
def test_meaningless_constraints_are_refused_with_their_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 0, not -"):
        Constraints(**wrong)


# Choosing, on a known distribution -------------------------------------------------------------------------

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])


def chosen(sampling: Sampling, draws: int = 4000, seen=(), probabilities=PROBABILITIES) -> np.ndarray:
    """How often each token is chosen."""
    shape = (draws, len(probabilities))
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities)) + 7.0, shape)  # a shift changes nothing
    mask = jnp.broadcast_to(jnp.isin(jnp.arange(shape[1]), jnp.array(seen, int)), shape)
    tokens = jax.jit(decoding.choose, static_argnums=3)(logits, mask, keys(draws), sampling)
    return np.bincount(np.asarray(tokens), minlength=shape[1]) / draws


def within_binomial_error(found, expected, draws: int = 4000) -> None:
    expected = np.asarray(expected) / np.sum(expected)
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= 4 * error).all(), (found, expected)


@pytest.mark.parametrize(
    "sampling, expected",
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=2.0), PROBABILITIES**0.5),
        (Sampling(temperature=0.5), PROBABILITIES**2),
        (Sampling(top_k=2), [0, 0.4, 0, 0.3, 0]),
        (Sampling(top_k=99), PROBABILITIES),
        (Sampling(top_p=0.69), [0, 0.4, 0, 0.3, 0]),
        (Sampling(top_p=0.71), [0, 0.4, 0, 0.3, 0.15]),
        (Sampling(top_p=0.01), [0, 1, 0, 0, 0]),
        (Sampling(top_p=1.0), PROBABILITIES),
        (Sampling(min_p=0.36), [0, 0.4, 0, 0.3, 0.15]),
        (Sampling(min_p=0.4), [0, 0.4, 0, 0.3, 0]),
        (Sampling(top_k=3, top_p=0.8), [0, 0.4, 0, 0.3, 0]),  # 0.7 / 0.85 of the three is 0.82
        (Sampling(temperature=1e-300), [0, 1, 0, 0, 0]),
        (Sampling(temperature=1e300), [1, 1, 1, 1, 1]),
        (Sampling(temperature=0.0, top_k=3), [0, 1, 0, 0, 0]),
    ],
)
def test_frequencies(sampling, expected):
    found = chosen(sampling, probabilities=[*PROBABILITIES, 0])  # the last is never allowed
    assert found[-1] == 0
    found = found[:-1]
    assert (found[np.asarray(expected) == 0] == 0).all()
    within_binomial_error(found, expected)


def test_ties_are_cut_to_exactly_k():
    within_binomial_error(chosen(Sampling(top_k=2), probabilities=[0.25] * 4), [1, 1, 0, 0])
    within_binomial_error(chosen(Sampling(top_p=0.5), probabilities=[0.25] * 4), [1, 1, 0, 0])


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = jnp.array([[2.0, 1.5, -1.0]])
    key = keys(1)
    greedy = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert decoding.choose(logits, jnp.array([[True, False, False]]), key, greedy)[0] == 1
    assert decoding.choose(logits, jnp.array([[True, True, True]]), key, greedy)[0] == 0
    negative = jnp.array([[-1.0, -1.5, -3.0]])
    assert decoding.choose(negative, jnp.array([[True, False, False]]), key, greedy)[0] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(top_k=0),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(top_p=float("nan")),
        dict(min_p=1.0),
        dict(min_p=-0.1),
        dict(repetition_penalty=0.0),
        dict(repetition_penalty=float("inf")),
    ],
)
def test_meaningless_sampling_is_refused_with_its_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_buckets():
    assert [decoding.bucket(n, 100) for n in (1, 16, 17, 64, 65, 100)] == [16, 16, 32, 64, 100, 100]
