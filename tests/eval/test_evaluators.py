"""Measures against arithmetic done by hand, windows against a loop without any, meshes against one device."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.cache import build
from data.config import Bytes, Cleaning, DataConfig, Files
from data.tokenizer import ByteTokenizer
from eval.evaluators import loss_evaluator, measures
from model.config import TransformerConfig
from model.transformer import Decoder
from train import sharding
from train.config import Experiment, Mesh, UserError

TEXT = "It was the best of times,\nit was the worst of times.\n"
CONFIG = TransformerConfig(vocab_size=264, num_layers=2, embed_dim=16, num_heads=2, max_length=16, init_stddev=0.3)
MODEL = Decoder(CONFIG)
EXPERIMENT = Experiment(model=CONFIG, data=DataConfig(tokenizer=Bytes(), length=16))


@functools.cache
def params() -> dict:
    return nn.meta.unbox(jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return build((Files(path=str(tmp_path / "text.txt")),), Cleaning(), ByteTokenizer(), tmp_path / "cache")


def evaluate(cache, weights=None, *, devices=1, batch_size=2, length=16, **options) -> dict[str, float]:
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:devices])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    evaluator = loss_evaluator(
        EXPERIMENT, cache, ByteTokenizer(), mesh=mesh, length=length, batch_size=batch_size, **options
    )
    return evaluator(jax.device_put(params() if weights is None else weights, everywhere))


def test_measures_by_hand():
    result = measures(3 * math.log(10), 6, num_words=3, num_bytes=4)
    assert result == pytest.approx(
        {
            "loss": math.log(10) / 2,
            "perplexity": math.sqrt(10),
            "word_perplexity": 10,
            "bits_per_byte": 3 * math.log2(10) / 4,
            "tokens": 6,
        }
    )
    assert "word_perplexity" not in measures(1e6, 1e6, num_words=3, num_bytes=1000)  # no float64
    assert measures(1e6, 1, num_words=None)["perplexity"] == math.inf


def test_a_uniform_model_has_the_loss_of_a_uniform_guess(cache):
    result = evaluate(cache, jax.tree.map(jnp.zeros_like, params()))
    num_bytes, num_words = len(TEXT), len(TEXT.split()) + 2
    assert (num_bytes, num_words) == (cache.num_bytes, cache.num_words)
    assert result["loss"] == pytest.approx(math.log(264), rel=1e-6)
    assert result["perplexity"] == pytest.approx(264, rel=1e-5)
    assert result["tokens"] == num_bytes + 1
    assert result["word_perplexity"] == pytest.approx(264 ** ((num_bytes + 1) / num_words), rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(math.log2(264) * (num_bytes + 1) / num_bytes, rel=1e-6)


@pytest.mark.parametrize("stride", [None, 5, 1])
def test_every_token_is_predicted_once_with_the_context_that_stride_promises(cache, stride):
    ids = ByteTokenizer().encode(TEXT)
    inputs, targets = np.array([2, *ids]), np.array([*ids, 3])
    log_p = jax.jit(lambda tokens: jax.nn.log_softmax(MODEL.apply({"params": params()}, tokens)))
    nats, counted, start = 0.0, 0, 0
    while counted < len(targets):
        window = slice(start, min(start + 16, len(targets)))
        padded = np.zeros((1, 16), np.int32)
        padded[0, : window.stop - start] = inputs[window]
        losses = -np.asarray(log_p(padded), np.float64)[0, np.arange(window.stop - start), targets[window]]
        nats += losses[counted - start :].sum()
        counted, start = window.stop, start + (stride or 16)
    result = evaluate(cache, stride=stride)
    assert result["tokens"] == len(targets)
    assert result["loss"] == pytest.approx(nats / len(targets), rel=1e-6)


def test_a_mesh_measures_what_one_device_measures(cache):
    # The loss differs by rounding; exp(nats per word) makes more of it.
    assert evaluate(cache, devices=8, batch_size=8) == pytest.approx(evaluate(cache), rel=1e-5)
    with pytest.raises(UserError, match="multiple of 8"):
        evaluate(cache, devices=8, batch_size=12)


def test_of_a_prefix_only_measures_per_token_are_known(cache):
    result = evaluate(cache, max_batches=1)
    assert set(result) == {"loss", "perplexity", "tokens"}
    assert result["tokens"] == 32
    assert "word_perplexity" in evaluate(cache, max_batches=100)


def test_documents_packed_together_lose_what_they_lose_alone(tmp_path):
    """From text to loss: the nats of five documents in shared windows are the sum of the nats of each."""
    lines = ["Tea.", "It was the best", "of times", "it was the worst", "of times."]
    (tmp_path / "all.txt").write_text("\n".join(lines) + "\n")
    caches = []
    for name, text in [("all.txt", None), *((f"{i}.txt", line) for i, line in enumerate(lines))]:
        if text:
            (tmp_path / name).write_text(text + "\n")
        source = Files(path=str(tmp_path / name), document="line")
        caches.append(build((source,), Cleaning(), ByteTokenizer(), tmp_path / "cache"))
    # One window holds everything, so that no document is cut.
    total, *alone = (evaluate(cache, length=64) for cache in caches)
    nats = [result["loss"] * result["tokens"] for result in alone]
    assert total["tokens"] == sum(result["tokens"] for result in alone)
    assert total["loss"] * total["tokens"] == pytest.approx(sum(nats), rel=1e-5)
