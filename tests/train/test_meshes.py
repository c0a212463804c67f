"""The same experiment on one device and on any mesh is the same experiment."""

import jax
import numpy as np
import pytest
import tiny

from data.config import (
    UL2,
    CausalLM,
    GapSentences,
    MaskedLM,
    PrefixLM,
    ReplacedTokens,
    SpanCorruption,
    TextInfilling,
)
from data.pipeline import prepare, train_batches
from model import tree
from model.config import TransformerConfig
from model.transformer import Decoder
from train import config as cfg
from train import sharding
from train.config import Mesh, UserError
from train.objective import example_options, make_model
from train.step import compile_train_step, plan_state

MESHES = {
    "one device": Mesh(data=1),
    "data=8": Mesh(data=8),
    "fsdp=8": Mesh(data=1, fsdp=8),
    "tensor=4, data=2": Mesh(data=2, tensor=4),
    "data=2, fsdp=2, tensor=2": Mesh(data=2, fsdp=2, tensor=2),
}
MODELS = {
    "gpt2": dict(positions="learned", dropout_rate=0.1, attention_dropout_rate=0.1),
    "llama": dict(positions="rotary", norm="rms", activation="swiglu", use_bias=False, tie_embeddings=False),
}


ENCODER = dict(stack="encoder", positions="learned", norm_placement="post", embedding_norm=True)
PAIRS = dict(heads=("lm", "sentence_pair"), num_sentence_types=2, pooler="tanh", head_transform=True, head_bias=True)
T5 = dict(positions="t5_relative", norm="rms", use_bias=False, initializer="fan_in", attention_scale=1.0)
OBJECTIVES = {
    "bert": (ENCODER | PAIRS, MaskedLM(sentence_pairs="next_sentence", masking="whole_word")),
    "albert": (ENCODER | dict(share_layers=True, embedding_dim=16, head_transform=True), MaskedLM(masking="ngram")),
    "electra": (ENCODER | dict(heads=("detection",)), ReplacedTokens()),
    "t5": (T5 | dict(stack="encoder_decoder"), SpanCorruption()),
    "shared": (T5 | dict(stack="encoder_decoder", share_encoder_decoder=True), UL2()),
    "bart": (dict(stack="encoder_decoder", positions="learned", head_bias=True), TextInfilling()),
    "pegasus": (dict(stack="encoder_decoder", positions="sinusoidal"), GapSentences()),
    "prefix": (dict(positions="rotary", norm="rms"), PrefixLM()),
    "denoising decoder": (dict(positions="rotary", norm="rms"), SpanCorruption()),
    "mixture": (dict(num_experts=4, num_shared_experts=1, activation="swiglu"), CausalLM()),
    "mixture with capacity": (dict(num_experts=4, experts_per_token=1, expert_capacity_factor=1.25), CausalLM()),
}


def train(experiment, steps=20):
    """Initial parameters, the losses of the first steps, and how the query kernel is split."""
    corpus = prepare(experiment.data, objective=experiment.objective)
    mesh = sharding.make_mesh(experiment.mesh)
    model = make_model(experiment)
    with sharding.use(mesh, experiment.mesh.rules):
        plan = plan_state(model, experiment, mesh)
        state = plan.init_state()
        step = compile_train_step(model, plan, experiment, mesh)
        initial = jax.tree.map(np.array, state.params)
        queries = (x for name, x in tree.named_leaves(state.params).items() if name.endswith("attention/query/kernel"))
        query = str(next(queries).sharding.spec)
        batches = train_batches(
            corpus.train,
            tokenizer=corpus.tokenizer,
            batch_size=experiment.batch_size,
            seed=0,
            **example_options(experiment),
        )
        losses = []
        for _ in range(steps):
            batch = sharding.place_batch(next(batches), sharding.batch_sharding(mesh, experiment.mesh.rules))
            state, metrics = step(state, batch)
            losses.append(metrics["loss"].item())
        batches.close()
    return initial, losses, query


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    tiny.write_text(tmp_path_factory.mktemp("text"))
    return {name: train(make(name, "one device")) for name in MODELS}


def make(model: str, mesh: str):
    fields = dict(vocab_size=260, num_layers=2, embed_dim=32, num_heads=4, max_length=32)
    return tiny.experiment(model=TransformerConfig(**(fields | MODELS[model])), mesh=MESHES[mesh])


@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "one device"])
@pytest.mark.parametrize("model", MODELS)
def test_same_start_and_same_losses_on_every_mesh(reference, model, mesh):
    initial, losses, query = train(make(model, mesh))
    expected, expected_losses, _ = reference[model]
    jax.tree.map(np.testing.assert_array_equal, initial, expected)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert losses[-1] < losses[0]
    assert ("fsdp" in query) == ("fsdp" in mesh)
    assert ("tensor" in query) == ("tensor" in mesh)


QUICK = ("bert", "electra", "shared", "prefix", "mixture")  # one of each kind of batch and of loss


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in OBJECTIVES]
)
def test_every_objective_is_the_same_on_a_mesh(tmp_path, name):
    tiny.write_text(tmp_path)
    mechanisms, objective = OBJECTIVES[name]
    sizes = dict(vocab_size=400, num_layers=2, embed_dim=32, num_heads=4, max_length=64)
    model = TransformerConfig(**sizes | dict(dropout_rate=0.1) | mechanisms)

    def losses(mesh):
        return train(tiny.experiment(model=model, objective=objective, mesh=MESHES[mesh]), steps=8)[1]

    expected = losses("one device")
    np.testing.assert_allclose(losses("data=2, fsdp=2, tensor=2"), expected, rtol=1e-5)
    assert min(expected[-3:]) < expected[0]


OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in (cfg.SGD, cfg.Lion)]


@pytest.mark.parametrize("kind", [cfg.Adafactor, cfg.Muon, *OTHERS])
def test_every_optimizer_is_the_same_on_a_mesh(reference, kind):
    def with_optimizer(mesh):
        optimizer = kind(peak_learning_rate=0.3 if kind is cfg.SGD else 1e-3)
        return make("llama", mesh).model_copy(update=dict(optimizer=optimizer))

    _, losses, _ = train(with_optimizer("data=2, fsdp=2, tensor=2"), steps=8)
    _, expected, _ = train(with_optimizer("one device"), steps=8)
    # Lion takes signs: a gradient near 0 may fall on either side.
    np.testing.assert_allclose(losses, expected, rtol=1e-4 if kind is cfg.Lion else 1e-5)
    assert losses[-1] < losses[0]


def test_colliding_rules_are_refused_by_name():
    experiment = tiny.experiment(mesh=Mesh(data=4, tensor=2, rules=cfg.RULES | {"embed": ("tensor",)}))
    mesh = sharding.make_mesh(experiment.mesh)
    with pytest.raises(UserError, match=r"dims '(mlp|embed)' and '(mlp|embed)' of parameter .*feed_forward"):
        plan_state(Decoder(experiment.model), experiment, mesh)


def test_dims_that_do_not_divide_are_copied_and_said():
    model = TransformerConfig(vocab_size=261, num_layers=1, embed_dim=32, num_heads=4, num_kv_heads=1)
    boxed = jax.eval_shape(Decoder(model).init, jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    mesh = sharding.make_mesh(Mesh(data=4, tensor=2))
    specs, notes = sharding.parameter_specs(boxed, mesh, cfg.RULES)
    assert "token_embedding/embedding: vocab=261 is not divisible by mesh axes tensor, so it is copied" in notes
    assert sum("kv_heads=1" in note for note in notes) == 4
    assert specs["token_embedding"]["embedding"] == jax.sharding.PartitionSpec(None, None)


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(UserError, match=r"tensor=3 does not fit the 8 cpu device"):
        sharding.make_mesh(Mesh(tensor=3))


def test_initialization_never_holds_a_whole_parameter_on_one_device():
    """Each device's program makes only its own part: no array of the full embedding's size is in it."""
    model = TransformerConfig(vocab_size=4096, num_layers=2, embed_dim=64, num_heads=4)
    experiment = tiny.experiment(model=model, mesh=Mesh(data=1, fsdp=8))
    mesh = sharding.make_mesh(experiment.mesh)
    plan = plan_state(Decoder(model), experiment, mesh)
    with sharding.use(mesh, cfg.RULES):
        program = jax.jit(plan.init_state, out_shardings=plan.shardings).lower().compile()
    assert "4096,8]" in program.as_text()
    assert "4096,64]" not in program.as_text()
