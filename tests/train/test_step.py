"""Laws of one training step: accumulation, skipping, averaging, losses, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from model import tree
from model.config import TransformerConfig
from model.transformer import Decoder
from train import config as cfg
from train import losses
from train.config import UserError
from train.metrics import flops_per_token
from train.optimizer import learning_rate, make_optimizer
from train.sharding import make_mesh
from train.step import plan_state, train_step


@pytest.fixture(autouse=True)
def _text(tmp_path):
    tiny.write_text(tmp_path)


def setup(**changes):
    """A state on one device, and `step(state, batch)`."""
    experiment = tiny.experiment(mesh=cfg.Mesh(data=1), **changes)
    model = Decoder(experiment.model)
    plan = plan_state(model, experiment, make_mesh(experiment.mesh, jax.devices()[:1]))
    schedule = learning_rate(experiment.optimizer, experiment.num_steps)

    @jax.jit
    def step(state, batch):
        return train_step(state, batch, model=model, plan=plan, schedule=schedule, experiment=experiment)

    return plan.init_state(), step


def batch(seed, rows=8, length=32):
    """Random tokens with very unequal weights per row."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(4, 260, (rows, length + 1)).astype(np.int32)
    weights = (draw.random((rows, length)) < np.linspace(0.1, 1.0, rows)[:, None]).astype(np.float32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def assert_trees(check, a, b):
    jax.tree.map(check, jax.tree.map(np.asarray, a), jax.tree.map(np.asarray, b))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_equals_the_big_batch(parts):
    state, whole = setup()
    _, in_parts = setup(accumulation_steps=parts)
    other = state
    for i in range(4):
        state, metrics = whole(state, batch(i))
        other, other_metrics = in_parts(other, batch(i))
        np.testing.assert_allclose(other_metrics["loss"], metrics["loss"], rtol=1e-5)
        np.testing.assert_allclose(other_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-4)
        assert other_metrics["tokens"] == metrics["tokens"]
    assert_trees(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), other.params, state.params)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_nonfinite_step_is_skipped_exactly_and_costs_no_other(poison, parts):
    state, step = setup(ema_decay=0.5, accumulation_steps=parts)
    clean = state
    bad = batch(99)
    bad["weights"][0, 0] = poison
    state, _ = step(state, batch(0))
    before = state
    state, metrics = step(state, bad)
    for part in ("params", "ema", "opt_state"):
        assert_trees(np.testing.assert_array_equal, getattr(state, part), getattr(before, part))
    assert (state.next_step, state.skipped_steps, state.nonfinite_streak) == (2, 1, 1)
    assert not np.isfinite(metrics["loss"])
    state, metrics = step(state, batch(1))
    assert (metrics["skipped_steps"], metrics["nonfinite_streak"]) == (1, 0)
    for i in range(2):
        clean, _ = step(clean, batch(i))
    assert_trees(np.testing.assert_array_equal, state.params, clean.params)
    assert_trees(np.testing.assert_array_equal, state.opt_state, clean.opt_state)


def test_moving_average_is_the_papers_formula():
    state, step = setup(ema_decay=0.75)
    average = jax.tree.map(np.asarray, state.params)
    for i in range(3):
        state, _ = step(state, batch(i))
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * np.asarray(p), average, state.params)
    assert_trees(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, average)


def test_dropout_follows_seed_and_step_only():
    model = tiny.experiment().model.model_copy(update=dict(dropout_rate=0.5))
    state, step = setup(model=model)
    again, _ = setup(model=model)
    first, second = step(state, batch(0))[1]["loss"], step(again, batch(0))[1]["loss"]
    assert first == second
    later = step(again.replace(next_step=jnp.int32(7)), batch(0))[1]["loss"]
    assert first != later


def test_cross_entropy_against_a_literal_computation():
    draw = np.random.default_rng(0)
    logits = draw.standard_normal((2, 3, 5)).astype(np.float32) * 3
    targets, weights = draw.integers(0, 5, (2, 3)), np.array([[1, 1, 0], [0.5, 1, 1]], np.float32)
    smoothing, z = 0.1, 0.01
    total = 0.0
    for b in range(2):
        for t in range(3):
            log_z = np.log(np.exp(logits[b, t].astype(np.float64)).sum())
            wanted = np.full(5, smoothing / 5)
            wanted[targets[b, t]] += 1 - smoothing
            total += weights[b, t] * ((wanted * (log_z - logits[b, t])).sum() + z * log_z**2)
    loss, weight = losses.cross_entropy(jnp.array(logits), jnp.array(targets), jnp.array(weights), smoothing, z)
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert float(weight) == 4.5


def schedule(kind, num_steps=100, **fields):
    rate = learning_rate(cfg.AdamW(peak_learning_rate=2.0, schedule=kind(**fields)), num_steps)
    return lambda step: float(rate(step))


def test_schedules_have_their_published_shapes():
    constant = schedule(cfg.Constant, warmup_steps=10)
    assert [constant(s) for s in (0, 4, 9, 10, 99)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])
    linear = schedule(cfg.Linear, warmup_steps=20, final_fraction=0.5)
    assert [linear(s) for s in (19, 20, 60, 100)] == pytest.approx([2.0, 2.0, 1.5, 1.0])
    cosine = schedule(cfg.Cosine, final_fraction=0.1)
    assert [cosine(s) for s in (0, 50, 100)] == pytest.approx([2.0, 1.1, 0.2])
    root = schedule(cfg.InverseSquareRoot, warmup_steps=25)
    assert [root(s) for s in (24, 25, 100)] == pytest.approx([2.0, 2.0, 1.0])
    stable = schedule(cfg.WarmupStableDecay, warmup_steps=10, decay_steps=20)
    assert [stable(s) for s in (9, 50, 79, 90, 100)] == pytest.approx([2.0, 2.0, 2.0, 1.0, 0.0])


def test_weight_decay_spares_biases_and_scales_only():
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    optimizer = make_optimizer(cfg.AdamW(peak_learning_rate=0.5, schedule=cfg.Constant()), 10, params)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.05 * np.ones(3), rtol=1e-6)
    assert not updates["a"]["bias"].any() and not updates["norm"]["scale"].any()


def test_a_decay_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match=r"optimizer.no_decay: pattern 'nothing/.\*' matches no parameter"):
        make_optimizer(cfg.Lion(no_decay=("nothing/.*",)), 10, {"kernel": jnp.ones(3)})


@pytest.mark.parametrize("kind", [cfg.SGD, cfg.Adam, cfg.AdamW, cfg.Adafactor, cfg.Lion, cfg.Muon])
def test_every_optimizer_learns_one_batch(kind):
    optimizer = kind(peak_learning_rate={cfg.SGD: 0.5, cfg.Adafactor: 3e-2}.get(kind, 3e-3), schedule=cfg.Constant())
    state, step = setup(optimizer=optimizer)
    data = batch(0)
    seen = []
    for _ in range(20):
        state, metrics = step(state, data)
        seen.append(float(metrics["loss"]))
    assert seen[-1] < seen[0] - 0.1


def test_clipping_bounds_the_gradient():
    params = {"kernel": jnp.zeros(4)}
    optimizer = make_optimizer(
        cfg.SGD(peak_learning_rate=1.0, momentum=0.0, schedule=cfg.Constant(), clip_norm=0.5), 10, params
    )
    updates, _ = optimizer.update({"kernel": jnp.full(4, 10.0)}, optimizer.init(params), params)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5)


def test_muon_orthogonalizes_layer_matrices_and_leaves_the_rest_to_adam():
    params, _ = setup(optimizer=cfg.Muon())
    names = list(tree.named_leaves(params.opt_state))
    muon = {n.split("/mu/")[1] for n in names if "muon" in n and "/mu/" in n}
    kernels = {n for n in tree.named_leaves(params.params) if n.startswith("decoder/layers/") and n.endswith("kernel")}
    assert muon == kernels


def test_flops_per_token_is_palms_formula():
    config = TransformerConfig(
        vocab_size=50257, num_layers=12, embed_dim=768, num_heads=12, max_length=1024, positions="learned"
    )
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    from model.tree import unbox

    # nanoGPT's estimate for GPT-2 124M: 6 * (124,439,808 - 1024 * 768) + 12 * 12 * 12 * 64 * 1024
    assert flops_per_token(unbox(params), config, 1024) == 6 * 123_653_376 + 12 * 12 * 768 * 1024
