"""The same experiment on one device and on any mesh is the same experiment."""

import jax
import numpy as np
import pytest
import tiny

from data.pipeline import prepare, train_batches
from model.config import TransformerConfig
from model.transformer import Decoder
from train import config as cfg
from train import sharding
from train.config import Mesh, UserError
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


def train(experiment, steps=20):
    """Initial parameters, the losses of the first steps, and how the query kernel is split."""
    corpus = prepare(experiment.data)
    mesh = sharding.make_mesh(experiment.mesh)
    model = Decoder(experiment.model)
    with sharding.use(mesh, experiment.mesh.rules):
        plan = plan_state(model, experiment, mesh)
        state = plan.init_state()
        step = compile_train_step(model, plan, experiment, mesh)
        initial = jax.tree.map(np.array, state.params)
        query = str(state.params["decoder"]["layers"]["self_attention"]["query"]["kernel"].sharding.spec)
        batches = train_batches(
            corpus.train,
            tokenizer=corpus.tokenizer,
            length=experiment.data.length,
            batch_size=experiment.batch_size,
            seed=0,
            attend_across_documents=False,
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


@pytest.mark.parametrize("kind", [cfg.SGD, cfg.Adafactor, cfg.Lion, cfg.Muon])
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
