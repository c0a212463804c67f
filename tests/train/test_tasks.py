"""Every task learns what its batches say: losses by hand, on a mesh, and down to nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from data.task_config import Classification, Dialogue, Regression, SpanAnswering, Tagging, TextToText, num_outputs
from eval.evaluators import term_measures
from model import tree
from model.config import TransformerConfig
from model.heads import pool
from model.transformer import initialize
from train import config as cfg
from train import losses, sharding
from train.config import Experiment, Mesh, UserError
from train.objective import check_heads, coefficients, loss_terms, main_term, make_model
from train.step import compile_train_step, eval_step, plan_state

TASKS = {
    "classification": Classification(labels=("a", "b", "c")),
    "regression": Regression(),
    "tagging": Tagging(types=("PER", "LOC")),
    "span_answering": SpanAnswering(),
    "text_to_text": TextToText(),
    "text_to_text by a decoder": TextToText(),
    "dialogue": Dialogue(),
}
STACKS = {"text_to_text": "encoder_decoder", "text_to_text by a decoder": "decoder", "dialogue": "decoder"}
LENGTH = 12


def experiment(name, **changes) -> Experiment:
    """One layer of width 32 that learns the task `name`."""
    objective = TASKS[name]
    stack = STACKS.get(name, "encoder")
    heads = {"tagging": ("tokens",), "span_answering": ("span",)}.get(name, ("sequence",))
    model = TransformerConfig(
        stack=stack, vocab_size=64, num_layers=1, embed_dim=32, num_heads=4, max_length=16, positions="learned",
        heads=("lm",) if stack != "encoder" else heads, num_labels=num_outputs(objective) or 2, num_sentence_types=2,
    )  # fmt: skip
    fields = dict(
        name="task", num_steps=60, batch_size=16, model=model, objective=objective, mesh=Mesh(data=1),
        data=tiny.experiment().data.model_copy(update=dict(length=16)),
        optimizer=cfg.AdamW(peak_learning_rate=1e-2, schedule=cfg.Constant(), weight_decay=0.0),
    )  # fmt: skip
    return Experiment(**fields | changes)


def batch(name, rows=16, seed=0) -> dict[str, np.ndarray]:
    """Rows of random tokens of unequal length, with random targets."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(4, LENGTH + 1, rows)
    is_real = np.arange(LENGTH) < lengths[:, None]

    def row() -> dict[str, np.ndarray]:
        places = np.where(is_real, np.arange(LENGTH), 0).astype(np.int32)
        tokens = np.where(is_real, draw.integers(4, 64, (rows, LENGTH)), 0).astype(np.int32)
        return {"inputs": tokens, "segment_ids": is_real.astype(np.int32), "positions": places}

    match TASKS[name]:
        case Classification():
            weights = draw.uniform(0.2, 2, rows).astype(np.float32)
            return row() | {"targets": draw.integers(0, 3, rows).astype(np.int32), "weights": weights}
        case Regression():
            return row() | {
                "targets": draw.uniform(0, 5, rows).astype(np.float32),
                "weights": np.ones(rows, np.float32),
            }
        case Tagging():
            is_first = is_real & (draw.random((rows, LENGTH)) < 0.7)
            tags = draw.integers(0, 5, (rows, LENGTH)).astype(np.int32)
            return row() | {"targets": tags, "weights": is_first.astype(np.float32)}
        case SpanAnswering():
            ends = np.sort(draw.integers(0, lengths[:, None], (rows, 2)), axis=1).astype(np.int32)
            more = {"sentence_ids": (np.arange(LENGTH) > 3) * is_real.astype(np.int32), "candidates": is_real}
            return row() | more | {"targets": ends, "weights": np.ones(rows, np.float32)}
        case TextToText() if STACKS[name] == "encoder_decoder":
            source, target = ({f"{side}_{key}": x for key, x in row().items()} for side in ("encoder", "decoder"))
            wanted = {"decoder_targets": target["decoder_inputs"][:, ::-1].copy()}
            return source | target | wanted | {"decoder_weights": is_real.astype(np.float32)}
    is_learned = (is_real & (np.arange(LENGTH) >= 2)).astype(np.float32)
    more = {"prefix": np.arange(LENGTH) < 2 * np.ones((rows, 1))} if name.startswith("text") else {}
    one = row()
    return one | more | {"targets": np.roll(one["inputs"], -1, axis=1), "weights": is_learned}


def train(name, steps, **changes):
    """Metrics of each step on one batch, and the measures of the trained parameters on it."""
    chosen = experiment(name, **changes)
    mesh = sharding.make_mesh(chosen.mesh)
    model = make_model(chosen)
    with sharding.use(mesh, chosen.mesh.rules):
        plan = plan_state(model, chosen, mesh)
        state, step = plan.init_state(), compile_train_step(model, plan, chosen, mesh)
        placed = sharding.place_batch(batch(name), sharding.batch_sharding(mesh, chosen.mesh.rules))
        found = []
        for _ in range(steps):
            state, metrics = step(state, placed)
            found.append(metrics["loss"].item())
        terms = jax.jit(lambda params: eval_step(params, placed, model=model, experiment=chosen))(state.params)
    return found, term_measures(jax.tree.map(float, terms), coefficients(chosen))


@pytest.fixture(scope="module", autouse=True)
def _text(tmp_path_factory):
    tiny.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def on_one_device():
    return {name: train(name, 60) for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_sixteen_examples_are_learned_by_heart(on_one_device, name):
    _, measured = on_one_device[name]
    if name == "regression":
        assert measured["loss"] < 0.01
        assert "sequence_accuracy" not in measured
    else:
        assert measured[f"{main_term(experiment(name))}_accuracy"] == 1.0


QUICK = ("tagging", "span_answering", "text_to_text")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TASKS])
def test_the_same_losses_on_a_mesh(on_one_device, name):
    found, _ = train(name, 4, mesh=Mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(found, on_one_device[name][0][:4], rtol=1e-5)


def log_softmax(x):
    x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


OWN = """
import jax, jax.numpy as jnp

def same(outputs, targets):
    if outputs.shape == targets.shape:
        return (outputs - targets) ** 2
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[..., None], -1)[..., 0]

@jax.jit
def thrice(outputs, targets):
    return 3 * same(outputs, targets)

def mean(outputs, targets):
    return same(outputs, targets).mean()
"""


@pytest.mark.parametrize("name", ["causal", "classification", "regression", "tagging"])
def test_a_loss_of_ones_own_is_minimized_and_not_measured(name, tmp_path, on_one_device):
    (tmp_path / "own.py").write_text(OWN)

    def terms(function, smooth=True):
        if name == "causal":
            tokens = np.random.default_rng(0).integers(0, 260, (4, 8))
            arrays = dict(inputs=tokens, targets=tokens, weights=np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8))
            chosen = tiny.experiment(loss=cfg.Loss(function=function))
        else:
            arrays, chosen = batch(name, rows=4), experiment(name, loss=cfg.Loss(function=function))
        model = make_model(chosen)
        params = tree.unbox(initialize(model, jax.random.key(1)))
        found = loss_terms(chosen, model, params, jax.tree.map(jnp.asarray, arrays), None, smooth=smooth)
        return found[main_term(chosen)]

    plain = terms(None)
    for function, times in (("same", 1), ("thrice", 3)):
        own = terms(f"{tmp_path}/own.py:{function}")
        np.testing.assert_allclose(own.loss, times * plain.loss, rtol=1e-5)
        assert own.weight == plain.weight and own.correct == plain.correct
    assert terms(f"{tmp_path}/own.py:thrice", smooth=False).loss == terms(None, smooth=False).loss
    with pytest.raises(UserError, match=r"own.py:mean gives \(\) for targets .*expected the loss of each target"):
        terms(f"{tmp_path}/own.py:mean")
    with pytest.raises(UserError, match=r"own.py has no function 'thrise'. Did you mean 'thrice'?"):
        terms(f"{tmp_path}/own.py:thrise")
    with pytest.raises(ValueError, match="span_answering has no loss of one's own"):
        experiment("span_answering", loss=cfg.Loss(function="own.py:same"))


@pytest.mark.parametrize("name", ["classification", "regression", "tagging", "span_answering"])
def test_losses_by_hand(on_one_device, name):
    """Each term's sum and weight from the model's outputs, in plain NumPy; smoothing and z-loss too."""
    smoothing, z = 0.1, 0.01
    chosen = experiment(name, loss=cfg.Loss(label_smoothing=smoothing, z_loss=z))
    arrays, model = jax.tree.map(jnp.asarray, batch(name, rows=4)), make_model(chosen)

    @jax.jit
    def compute(key):
        params = jax.tree.map(lambda x: 20 * x, tree.unbox(initialize(model, key)))  # far from uniform
        inputs = [arrays["inputs"], arrays["positions"], arrays["segment_ids"], arrays.get("sentence_ids")]
        return model.apply({"params": params}, *inputs), loss_terms(chosen, model, params, arrays, None)

    outputs, terms = compute(jax.random.key(1))
    head = main_term(chosen)
    logits, targets, weights = (np.array(x) for x in (outputs[head], arrays["targets"], arrays["weights"]))
    if name == "regression":
        expected, right = (weights * (logits[:, 0] - targets) ** 2).sum(), None
    elif name == "span_answering":
        expected, right = 0.0, 0.0
        for row in range(4):
            real = np.array(arrays["segment_ids"][row] > 0)
            hits = 0
            for side in range(2):
                some = logits[row, real, side]
                log_p, log_z = log_softmax(some), np.log(np.exp(some.astype(np.float64)).sum())
                wanted = np.full(real.sum(), smoothing / real.sum())
                wanted[targets[row, side]] += 1 - smoothing
                expected += 0.5 * (-(wanted * log_p).sum() + z * log_z**2)
                hits += some.argmax() == targets[row, side]
            right += hits == 2
    else:
        log_p, log_z = log_softmax(logits), np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))
        picked = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        nats = -(1 - smoothing) * picked - smoothing * log_p.mean(axis=-1) + z * log_z**2
        expected, right = (weights * nats).sum(), (weights * (logits.argmax(axis=-1) == targets)).sum()
    np.testing.assert_allclose(terms[head].loss, expected, rtol=1e-4)
    np.testing.assert_allclose(terms[head].weight, weights.sum(), rtol=1e-6)
    assert (terms[head].correct is None) if right is None else terms[head].correct == pytest.approx(right, rel=1e-6)


def test_rows_that_fill_up_count_for_nothing():
    """A row of padding has weight 0 and no NaN, in the loss, its gradient and every pooling."""
    logits = jnp.array([[[1.0, 2.0], [0.5, 0.1]], [[3.0, 1.0], [2.0, 2.0]]])
    allowed = jnp.array([[[True, True]], [[False, False]]])
    targets, weights = jnp.zeros((2, 2), jnp.int32), jnp.array([[1.0, 1.0], [0.0, 0.0]])

    def loss(logits):
        return losses.cross_entropy(logits, targets, weights, 0.1, 0.01, allowed=allowed)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    assert value == pytest.approx(float(jax.jit(loss)(logits.at[1].set(7.0))), rel=1e-6)
    assert np.isfinite(gradient).all() and not gradient[1].any()
    hidden, segments = jnp.arange(24.0).reshape(2, 3, 4), jnp.array([[1, 1, 0], [0, 0, 0]])
    for pooling, expected in {"first": hidden[0, 0], "mean": hidden[0, :2].mean(0), "max": hidden[0, 1]}.items():
        pooled, slope = jax.jit(jax.value_and_grad(lambda x, p=pooling: pool(x, segments, p)[0].sum()))(hidden)
        np.testing.assert_allclose(pooled, expected.sum())
        assert np.isfinite(slope).all()
    np.testing.assert_array_equal(pool(hidden, segments, "mean")[1], 0)
    np.testing.assert_array_equal(pool(hidden, segments, "max")[1], 0)
    np.testing.assert_array_equal(pool(hidden, None, "mean")[:, 0], hidden.mean(axis=1))


def test_a_task_and_a_model_that_do_not_fit_are_refused():
    model = experiment("classification").model
    with pytest.raises(ValueError, match=r"objective.kind=classification needs model.num_labels=3 here, not 2"):
        experiment("classification", model=model.model_copy(update=dict(num_labels=2)))
    with pytest.raises(ValueError, match=r"objective.kind=tagging needs model.stack=encoder, not decoder"):
        experiment("tagging", model=experiment("dialogue").model)
    with pytest.raises(ValueError, match=r"data.target_length=17 is longer than model.max_length=16"):
        data = experiment("text_to_text").data
        experiment("text_to_text", data=data.model_copy(update=dict(target_length=17)))
    wrong = experiment("tagging", model=experiment("tagging").model.model_copy(update=dict(heads=("lm", "sequence"))))
    with pytest.raises(UserError, match=r"objective.kind=tagging trains \['tokens'\], the model has \['lm', 'seque"):
        check_heads(wrong)


@pytest.mark.parametrize(
    "name, decoding, sentence",
    [
        ("regression", dict(beam_size=4), "decoding is for objective.kind=text_to_text alone"),
        ("dialogue", dict(min_new_tokens=1), "decoding is for objective.kind=text_to_text alone"),
        ("text_to_text", dict(coverage_penalty=0.2), "coverage_penalty is of beam search; it needs a beam_size"),
        ("text_to_text by a decoder", dict(beam_size=4, coverage_penalty=0.2), "needs model.stack=encoder_decoder"),
        ("text_to_text", dict(min_new_tokens=9, max_new_tokens=8), "min_new_tokens=9 is more than the 8 tokens"),
        ("text_to_text", dict(min_new_tokens=17), "min_new_tokens=17 is more than the 16 tokens"),
    ],
)
def test_a_decoding_that_nothing_could_do_is_refused_before_training(name, decoding, sentence):
    with pytest.raises(ValueError, match=sentence):
        experiment(name, evaluation=cfg.Evaluation(decoding=cfg.Decoding(**decoding)))
