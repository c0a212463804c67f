"""Laws of writing after whole test sets: order, company, shapes and limits change no text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.batch_decoding import decode_all
from model import decoding, tree
from model.beam_search import BeamSearch, beam_search
from model.config import TransformerConfig
from model.decoding import Constraints, Sampling
from model.transformer import initialize, transformer
from train.config import UserError

VOCAB, EOS = 20, 3
SIZES = dict(vocab_size=VOCAB, num_layers=1, embed_dim=16, num_heads=2, max_length=64, init_stddev=0.4, head_bias=True)
KINDS = {"decoder": dict(positions="learned"), "encoder_decoder": dict(stack="encoder_decoder", positions="sinusoidal")}
BEAMS = BeamSearch(3, length_penalty=0.6, n_best=2)
GREEDY = Sampling(temperature=0.0)


@functools.cache
def build(kind):
    model = transformer(TransformerConfig(**SIZES | KINDS[kind]))
    params = tree.unbox(jax.jit(lambda key: initialize(model, key))(jax.random.key(1)))
    params["head"]["bias"] = params["head"]["bias"].at[EOS].set(0.5)
    return model, params


@functools.cache
def texts(count: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(count)
    return [rng.integers(4, VOCAB, n).tolist() for n in rng.integers(1, longest + 1, count)]


def prompts(kind, count, longest=16):
    if kind == "decoder":
        return [(None, text) for text in texts(count, longest)]
    return [([*text, EOS], [1]) for text in texts(count, longest)]


def write(kind, prompts, **changes):
    options = dict(method=BEAMS, eos_id=EOS, allowed=np.arange(VOCAB) > 2, max_new_tokens=10)
    return decode_all(*build(kind), prompts, **options | changes)


def check_equal(found, expected):
    for own, other in zip(found, expected, strict=True):
        assert [(text.tokens, text.finished) for text in own] == [(text.tokens, text.finished) for text in other]
        np.testing.assert_allclose([text.score for text in own], [text.score for text in other], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("decoder", Sampling(top_k=5)), ("decoder", BEAMS), ("encoder_decoder", BEAMS)],
    ids=["sampling", "beams", "encoder_decoder"],
)
def test_a_text_depends_on_its_prompt_and_place_alone(kind, method):
    """Batches of 6 and 4, then of 10 in another order, then of one."""
    ten = prompts(kind, 10)
    found = write(kind, ten, method=method, batch_size=6)
    assert all(len(own) == getattr(method, "n_best", 1) for own in found)
    lengths = [len(text.tokens) for own in found for text in own]
    assert max(lengths) <= 10 and min(lengths) < 8
    check_equal(write(kind, ten[:1], method=method), found[:1])
    if method is BEAMS:
        check_equal(write(kind, ten[::-1], method=method), found[::-1])
    else:
        assert write(kind, ten, method=method, batch_size=6, seed=1) != found
        check_equal(write(kind, ten, method=method, seed=2**32), found)


@pytest.mark.parametrize("method", [BEAMS, GREEDY], ids=["beams", "greedy"])
def test_few_programs_write_after_a_whole_test_set(method):
    many = prompts("encoder_decoder", 60, longest=40)
    assert len({len(source) for source, _ in many}) > 25
    program = beam_search if method is BEAMS else decoding.decode
    before = program._cache_size()
    write("encoder_decoder", many, method=method, batch_size=8)
    assert 2 <= program._cache_size() - before <= 4


@pytest.mark.parametrize("method", [BEAMS, GREEDY], ids=["beams", "greedy"])
def test_no_text_goes_beyond_its_limit_or_the_context(method):
    endless = dict(method=method, allowed=np.arange(VOCAB) > EOS, constraints=Constraints(first_token=1))
    found = write("decoder", [(None, [5] * 9), (None, [5] * 60), (None, [5] * 63)], max_new_tokens=50, **endless)
    assert [len(text.tokens) for text, *_ in found] == [50, 4, 1]
    assert all(text.tokens[0] == 1 and not text.finished for text, *_ in found)


def test_a_samples_score_is_log_p_with_the_end():
    model, params = build("decoder")
    ten = prompts("decoder", 10)
    found = write("decoder", ten, method=GREEDY)
    apply = jax.jit(lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)))
    for (_, prompt), [text] in zip(ten, found, strict=True):
        written = text.tokens + [EOS] * text.finished
        read = np.zeros((1, 64), np.int32)
        read[0, : len(prompt) + len(written)] = prompt + written
        steps = np.asarray(apply(read)[0])
        expected = sum(steps[len(prompt) + i - 1, token] for i, token in enumerate(written))
        np.testing.assert_allclose(text.score, expected, rtol=1e-4, atol=1e-5)
    assert {text.finished for [text] in found} == {True, False}


def test_no_prompts_and_no_text():
    assert write("decoder", []) == []
    stuck = dict(allowed=np.arange(VOCAB) == 5, constraints=Constraints(no_repeat_ngram=1))
    [[best, other]] = write("decoder", [(None, [5])], **stuck)
    assert best == other and (best.tokens, best.score, best.finished) == ([], -np.inf, False)


def test_a_diverged_model_is_refused_with_the_prompt():
    model, params = build("decoder")
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    options = dict(method=GREEDY, eos_id=EOS, allowed=np.ones(VOCAB, bool), max_new_tokens=3)
    with pytest.raises(UserError, match="prompt 1: the model's logits are not finite"):
        decode_all(model, broken, [(None, [4])], **options)


@pytest.mark.parametrize(
    ("kind", "prompt", "options", "message"),
    [
        ("decoder", (None, []), {}, "prompt 1: the decoder starts from 1 to 63 tokens, not 0"),
        ("decoder", (None, [4] * 64), {}, "prompt 1: the decoder starts from 1 to 63 tokens, not 64"),
        ("decoder", ([4], [1]), {}, "prompt 1 has a source, but the model has no encoder"),
        ("encoder_decoder", (None, [1]), {}, "prompt 1: the encoder reads 1 to 64 tokens, not 0"),
        ("encoder_decoder", ([4] * 65, [1]), {}, "the encoder reads 1 to 64 tokens, not 65"),
        ("decoder", (None, [4]), dict(batch_size=0), "batch_size must be at least 1, not 0"),
        ("decoder", (None, [4]), dict(max_new_tokens=0), "max_new_tokens must be at least 1, not 0"),
        ("decoder", (None, [4]), dict(method=BeamSearch(coverage_penalty=0.1)), "coverage_penalty needs an encoder"),
        ("decoder", (None, [4]), dict(constraints=Constraints(first_token=20)), "first_token=20 is not among"),
    ],
)
def test_impossible_arguments(kind, prompt, options, message):
    with pytest.raises(UserError, match=message):
        write(kind, [prompt], **options)
