"""Losses of several terms add up; evaluation repeats itself; an encoder–decoder goes all the way from text to text."""

import json

import jax
import numpy as np
import pytest
import tiny

from data.pipeline import prepare, train_batches
from eval.evaluators import loss_evaluator, term_measures
from model import tree
from model.config import TransformerConfig
from model.transformer import initialize, transformer
from train import config as cfg
from train import load_run, sharding
from train.metrics import flops_per_token
from train.objective import Term, coefficients, example_options, make_model
from train.optimizer import learning_rate, make_optimizer
from train.step import plan_state, train_step


@pytest.fixture(autouse=True)
def _text(tmp_path):
    tiny.write_text(tmp_path)


def abstract(**changes):
    """Abstract parameters, in boxes."""
    model = transformer(TransformerConfig(**tiny.SIZES | changes))
    return jax.eval_shape(lambda: initialize(model, jax.random.key(0)))


def test_terms_of_unequal_weight_accumulate_to_the_big_batch():
    """Masked words and sentence pairs have weights of their own, which differ from part to part."""

    def step(parts):
        model = tiny.encoder().model.model_copy(update=dict(dropout_rate=0.0))
        experiment = tiny.encoder().model_copy(
            update=dict(model=model, accumulation_steps=parts, mesh=cfg.Mesh(data=1))
        )
        corpus = prepare(experiment.data, objective=experiment.objective)
        options = dict(tokenizer=corpus.tokenizer, batch_size=8, seed=0, **example_options(experiment))
        with train_batches(corpus.train, **options) as batches:
            batch = next(batches)
        network = make_model(experiment)
        plan = plan_state(network, experiment, sharding.make_mesh(experiment.mesh))
        schedule = learning_rate(experiment.optimizer, experiment.num_steps)
        arguments = dict(model=network, plan=plan, schedule=schedule, experiment=experiment)
        return jax.jit(lambda state, batch: train_step(state, batch, **arguments))(plan.init_state(), batch)[1]

    whole, in_parts = step(1), step(4)
    assert {"lm_loss", "sentence_pair_loss"} <= set(whole)
    np.testing.assert_allclose(whole["loss"], whole["lm_loss"] + whole["sentence_pair_loss"], rtol=1e-6)
    for name in ("loss", "lm_loss", "sentence_pair_loss", "tokens"):
        np.testing.assert_allclose(in_parts[name], whole[name], rtol=1e-5)
    np.testing.assert_allclose(in_parts["grad_norm"], whole["grad_norm"], rtol=1e-4)


def test_an_evaluation_is_the_same_for_every_batch_size_and_every_time():
    experiment = tiny.encoder()
    corpus = prepare(experiment.data, objective=experiment.objective)
    params = tree.unbox(jax.jit(lambda key: initialize(make_model(experiment), key))(jax.random.key(0)))
    mesh = sharding.make_mesh(cfg.Mesh(data=1))

    def evaluate(batch_size):
        return loss_evaluator(experiment, corpus.validation, corpus.tokenizer, mesh=mesh, batch_size=batch_size)(params)

    first = evaluate(8)
    assert first["lm_loss"] == pytest.approx(np.log(261), rel=0.05)
    assert first["sentence_pair_loss"] == pytest.approx(np.log(2), rel=0.2)
    assert evaluate(3) == pytest.approx(first, rel=1e-5)


def test_measures_of_terms_by_hand():
    terms = {"lm": Term(6.0, 3.0, 1.0), "detection": Term(2.0, 8.0, 6.0)}
    assert term_measures(terms, {"lm": 1.0, "detection": 50.0}) == pytest.approx(
        {
            "loss": 2.0 + 50 * 0.25,
            "perplexity": np.exp(2.0),
            "lm_loss": 2.0,
            "lm_accuracy": 1 / 3,
            "detection_loss": 0.25,
            "detection_accuracy": 0.75,
            "tokens": 3.0,
        }
    )
    assert coefficients(tiny.experiment())["detection"] == 1.0


def test_from_text_to_text(tmp_path, capsys):
    """Train, evaluate and generate with an encoder–decoder, from the commands a user types."""
    from eval.__main__ import main as evaluate
    from eval.generate import main as generate
    from train.__main__ import main as train

    run = str(tmp_path / "run")
    flags = ["--num-steps", "6", "--mesh.data", "1", "--evaluation.sample-tokens", "4"]
    assert train([f"{tiny.__file__}:encoder_decoder", "--run-dir", run, *flags]) == 0
    assert "sample, prompt" in capsys.readouterr().out
    assert evaluate([run, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["loss"] == pytest.approx(load_run(run).validation_loss, rel=1e-5)
    assert 0 <= measured["lm_accuracy"] <= 1
    assert generate([run, "--prompt", "The square", "--max-new-tokens", "5", "--greedy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tokens"] <= 5


@pytest.mark.parametrize(
    "changes",
    [
        dict(stack="encoder"),
        dict(stack="encoder", share_layers=True),
        dict(stack="encoder_decoder"),
        dict(num_experts=4),
    ],
    ids=str,
)
def test_muon_knows_the_kernels_of_every_stack(changes):
    """An encoder's, a shared block's and an expert's kernels are orthogonalized, a router is not."""
    boxed = abstract(**changes)
    state = jax.eval_shape(make_optimizer(cfg.Muon(), 10, boxed).init, tree.unbox(boxed))
    places = [name for name in tree.named_leaves(state) if "muon" in name]
    for name in tree.named_leaves(tree.unbox(boxed)):
        is_kernel = "/layers/" in name and name.endswith("/kernel") and "/router/" not in name
        assert any(place.endswith(name) for place in places) == is_kernel, name


def test_flops_count_what_a_token_passes():
    def flops(target_length=0, **changes):
        config = TransformerConfig(**tiny.SIZES | dict(use_bias=False, norm="rms") | changes)
        return flops_per_token(tree.unbox(abstract(**changes)), config, 32, target_length)

    dense = flops()
    assert flops(share_layers=True) == pytest.approx(dense, rel=0.05)  # biases and norms apart
    assert flops(num_experts=8, experts_per_token=1) == pytest.approx(dense, rel=0.1)  # the router apart
    assert flops(stack="encoder") == pytest.approx(dense, rel=0.05)
    shared = flops(stack="encoder_decoder", share_encoder_decoder=True, target_length=32)
    assert shared == pytest.approx(flops(stack="encoder_decoder", target_length=32), rel=0.05)
