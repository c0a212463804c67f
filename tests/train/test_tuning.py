"""What is not trained stays as it is bit for bit; low-rank additions start from the model and merge into it."""

import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from model import tree
from model.config import TransformerConfig
from model.transformer import initialize, transformer
from train import config as cfg
from train import lora
from train.config import UserError
from train.objective import make_model
from train.optimizer import layer_factors, learning_rate, make_optimizer
from train.sharding import make_mesh
from train.step import plan_state, train_step
from train.tuning import initialize_all, trained_parameters

LORA = cfg.LoRA(rank=3, alpha=6.0)


@pytest.fixture(autouse=True)
def _text(tmp_path):
    tiny.write_text(tmp_path)


def setup(tuning, model=None, **changes):
    """A model, its plan, and `step(state, batch)`, on one device."""
    model = model or {}
    config = TransformerConfig(**tiny.SIZES | dict(tie_embeddings=False, num_layers=3) | model)
    changes = dict(mesh=cfg.Mesh(data=1)) | changes
    experiment = tiny.experiment(model=config, tuning=tuning, **changes)
    network = make_model(experiment)
    plan = plan_state(network, experiment, make_mesh(experiment.mesh))
    schedule = learning_rate(experiment.optimizer, experiment.num_steps)
    fixed = dict(model=network, plan=plan, schedule=schedule, experiment=experiment)
    return network, plan, jax.jit(lambda state, batch: train_step(state, batch, **fixed))


def batch(seed=0):
    tokens = np.random.default_rng(seed).integers(4, 260, (8, 17)).astype(np.int32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 16), np.float32)}


def leaves(params):
    return {name: np.array(x) for name, x in tree.named_leaves(params).items()}


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize(
    "tuning, is_trained",
    [
        (cfg.Full(), lambda name: True),
        (
            cfg.Frozen(train=(".*final_norm/.*", ".*/query/bias")),
            lambda n: "final_norm" in n or n.endswith("query/bias"),
        ),
        (cfg.LastLayers(count=2), lambda n: n.startswith("head/") or "/layers/" in n or "/final_norm/" in n),
        (LORA.model_copy(update=dict(also_train=(".*norm/.*",))), lambda n: n.startswith("lora/") or "norm/" in n),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_what_is_frozen_stays_bit_for_bit(tuning, is_trained, tied):
    """Also under weight decay and averaging, and there are moments and averages of nothing else."""
    changes = dict(ema_decay=0.9, optimizer=cfg.AdamW(peak_learning_rate=0.01, weight_decay=1.0))
    _, plan, step = setup(tuning, dict(tie_embeddings=tied), **changes)
    state = plan.init_state()
    before = leaves(state.params)
    for i in range(3):
        state, metrics = step(state, batch(i))
    assert np.isfinite(metrics["loss"])
    for params in (leaves(state.params), leaves(plan.averaged(state))):
        for name, old in before.items():
            new = params[name]
            if isinstance(tuning, cfg.LastLayers) and "/layers/" in name:  # of three layers, two are trained
                np.testing.assert_array_equal(new[0], old[0], err_msg=name)
                assert (new[1] != old[1]).any() and (new[2] != old[2]).any(), name
            elif is_trained(name):
                assert (new != old).any(), name
            else:
                np.testing.assert_array_equal(new, old, err_msg=name)
    trained = tree.count(plan.trained.select(state.params))
    assert tree.count(state.ema) == trained
    assert tree.count(state.opt_state) == 2 * trained + sum(x.ndim == 0 for x in jax.tree.leaves(state.opt_state))
    assert trained < tree.count(state.params) or isinstance(tuning, cfg.Full)


def flops(tuning, **model):
    _, plan, step = setup(tuning, model)
    return step.lower(plan.abstract, batch()).compile().cost_analysis()["flops"]


def test_gradients_of_what_is_frozen_are_not_computed():
    """A frozen model costs a forward pass, a third of a whole step; unrolled, frozen layers below cost no more."""
    whole = flops(cfg.Full(), layer_loop="unroll")
    assert flops(cfg.Frozen(train=("head/.*",)), layer_loop="unroll") < 0.6 * whole
    assert flops(cfg.LastLayers(count=1), layer_loop="unroll") < 0.75 * whole


# Low-rank additions


STACKS = [
    dict(stack="encoder", heads=("sequence",), positions="learned"),
    dict(stack="encoder_decoder", share_layers=True, num_kv_heads=2),
    dict(num_experts=4),
]


@pytest.mark.parametrize("model", STACKS, ids=str)
def test_factors_of_every_kernel_start_at_the_model_and_merge_into_it(model):
    """Every kernel of any rank: with b = 0 nothing changes at all; else the kernel is W + alpha / rank * a b."""
    config = TransformerConfig(**tiny.SIZES | model)
    tuning = LORA.model_copy(update=dict(targets=(".*/kernel",)))
    merge = jax.jit(lora.merge, static_argnums=1)
    params = jax.jit(lambda key: tree.unbox(initialize_all(transformer(config), tuning, key)))(jax.random.key(0))
    plain = {name: x for name, x in leaves(params).items() if not name.startswith("lora/")}
    jax.tree.map(np.testing.assert_array_equal, leaves(merge(params, tuning)), plain)
    draw = np.random.default_rng(0)
    moved = {
        name: draw.standard_normal(x.shape).astype(np.float32) if name.endswith("kernel/b") else x
        for name, x in leaves(params).items()
    }
    merged = leaves(merge(flax.traverse_util.unflatten_dict(moved, sep="/"), tuning))
    for name in [name for name in plain if name.endswith("kernel")]:
        a, b = (moved[f"lora/{name}/{side}"] for side in "ab")
        stacked = 0 if name.startswith("head") or config.share_layers else 1
        stacked += bool(config.num_experts and re.search("(up|gate|down)/kernel", name))
        shape, inputs = merged[name].shape, int(np.prod(a.shape[stacked:-1]))
        assert a.shape[-1] == 3 == b.shape[stacked] and a.shape[:stacked] == b.shape[:stacked] == shape[:stacked]
        flat_a, flat_b = a.reshape(-1, inputs, 3), b.reshape(-1, 3, int(np.prod(b.shape[stacked + 1 :])))
        expected = moved[name].reshape(-1, inputs, flat_b.shape[-1]) + 2.0 * np.einsum("sir,sro->sio", flat_a, flat_b)
        np.testing.assert_allclose(merged[name], expected.reshape(shape), atol=1e-5)


def test_merged_is_the_same_as_beside():
    """x (W + s a b) = x W + s (x a) b, through a query of the trained model, and only a and b were trained."""
    _, plan, step = setup(LORA)
    state = plan.init_state()
    for i in range(3):
        state, _ = step(state, batch(i))
    name = "decoder/layers/self_attention/query/kernel"
    found = leaves(state.params)
    kernel, a, b = found[name], found[f"lora/{name}/a"], found[f"lora/{name}/b"]
    assert a.shape == (3, 32, 3) and b.shape == (3, 3, 4, 8) and (b != 0).any()
    x = np.random.default_rng(0).standard_normal((3, 5, 32)).astype(np.float32)
    beside = np.einsum("lti,lihd->lthd", x, kernel) + 2 * np.einsum("ltr,lrhd->lthd", x @ a, b)
    merged = leaves(lora.merge(state.params, LORA))[name]
    np.testing.assert_allclose(np.einsum("lti,lihd->lthd", x, merged), beside, atol=1e-6)
    # 3 layers * (query, value) * (a: 32 * 3, b: 3 * 4 * 8)
    assert tree.count(plan.trained.select(state.params)) == 3 * 2 * (32 * 3 + 3 * 32)


def test_lora_on_a_mesh_is_the_same():
    def losses(mesh):
        _, plan, step = setup(LORA, mesh=mesh)
        state, found = plan.init_state(), []
        for i in range(4):
            state, metrics = step(state, batch(i))
            found.append(metrics["loss"].item())
        return found, tree.named_leaves(plan.shardings.opt_state)

    expected, _ = losses(cfg.Mesh(data=1))
    found, places = losses(cfg.Mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    specs = {name: str(s.spec) for name, s in places.items() if "mu/lora" in name and "query" in name}
    assert any("fsdp" in spec for name, spec in specs.items() if name.endswith("/a"))
    assert any("tensor" in spec for name, spec in specs.items() if name.endswith("/b"))


def test_the_last_layers_on_a_mesh_that_divides_only_all_of_them():
    """Two of four layers, split over four devices: their moments and averages are copied."""
    mesh = cfg.Mesh(data=1, fsdp=4, rules=cfg.RULES | {"layers": ("fsdp",), "embed": ()})
    _, plan, _ = setup(cfg.LastLayers(count=2), dict(num_layers=4), mesh=mesh, ema_decay=0.9)
    state = plan.init_state()
    for part, parts in ((state.params, 4), (state.ema, 1), (state.opt_state, 1)):
        kernels = [x for name, x in tree.named_leaves(part).items() if name.endswith("self_attention/query/kernel")]
        assert kernels and {x.shape[0] // x.sharding.shard_shape(x.shape)[0] for x in kernels} == {parts}


@pytest.mark.parametrize(
    "tuning, sentence",
    [
        (cfg.Frozen(), r"tuning.train: pattern 'heads/\.\*' matches no parameter; parameters are decoder/"),
        (cfg.LoRA(targets=("nothing",)), "tuning.targets: pattern 'nothing' matches no parameter"),
        (cfg.LoRA(targets=(".*/bias",)), "tuning.targets: decoder/.*/bias is no kernel"),
        (cfg.LoRA(also_train=("x",)), "tuning.also_train: pattern 'x' matches no parameter"),
        (
            cfg.LoRA(also_train=("*.bias",)),
            r"tuning.also_train: pattern '\*.bias' is not a regular expression: nothing",
        ),
    ],
)
def test_patterns_that_fit_nothing_are_refused(tuning, sentence):
    with pytest.raises(UserError, match=sentence):
        setup(tuning)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(tuning=cfg.LastLayers(count=3)), "tuning.count=3 is more than the 2 layers of the model"),
        (dict(tuning=cfg.LastLayers(), share=True), "tuning.kind=last_layers needs layers of their own"),
        (dict(optimizer=cfg.Adam(layer_decay=0.8), share=True), "optimizer.layer_decay needs layers of their own"),
    ],
)
def test_layers_that_are_not_there_are_refused(changes, sentence):
    share = changes.pop("share", False)
    with pytest.raises(ValueError, match=sentence):
        tiny.experiment(model=TransformerConfig(**tiny.SIZES, share_layers=share), **changes)


# Layer-wise learning rates


def test_updates_fall_from_layer_to_layer_by_the_formula():
    """An update, decay of weights included, is the plain one times decay ** (n + 2 - depth)."""
    model = dict(stack="encoder_decoder", num_encoder_layers=2, num_layers=3, tie_embeddings=False)
    config = TransformerConfig(**tiny.SIZES | model | dict(positions="t5_relative"))
    boxed = jax.eval_shape(lambda: initialize(transformer(config), jax.random.key(0)))
    params = jax.tree.map(lambda x: jnp.ones(x.shape), tree.unbox(boxed))
    grads = jax.tree.map(lambda x: 0.5 * x, params)

    def updates(decay):
        optimizer = cfg.Lion(peak_learning_rate=0.1, schedule=cfg.Constant(), clip_norm=None, layer_decay=decay)
        transformation = make_optimizer(optimizer, 10, boxed)
        return leaves(jax.jit(lambda g, p: transformation.update(g, transformation.init(p), p)[0])(grads, params))

    plain, decayed = updates(None), updates(0.5)
    depths = {
        "token_embedding/embedding": 0,
        "encoder/relative_bias": 0,
        "encoder/layers/self_attention/query/kernel": [1, 2],
        "encoder/final_norm/scale": 3,
        "decoder/layers/cross_attention/out/bias": [3, 4, 5],
        "decoder/layers/feed_forward_norm/scale": [3, 4, 5],
        "decoder/final_norm/bias": 6,
        "head/kernel": 7,
    }
    for name, depth in depths.items():
        ratio = decayed[name] / plain[name]
        depth = np.array(depth).reshape(-1, *[1] * (ratio.ndim - 1)) if np.ndim(depth) else depth
        np.testing.assert_allclose(ratio, np.broadcast_to(0.5 ** (7.0 - depth), ratio.shape), rtol=1e-6, err_msg=name)


def test_layer_factors_of_the_last_layers_and_of_additions_are_those_of_their_layers():
    config = TransformerConfig(**tiny.SIZES | dict(num_layers=4))
    for tuning in (cfg.LastLayers(count=2), LORA):
        boxed = jax.eval_shape(lambda tuning=tuning: initialize_all(transformer(config), tuning, jax.random.key(0)))
        trained = trained_parameters(tuning, boxed).select_boxes(boxed)
        found = tree.named_leaves(layer_factors(0.5, boxed, trained))
        if tuning is LORA:
            factors = found["lora/decoder/layers/self_attention/query/kernel/a"]
            assert factors.ravel().tolist() == [0.5**5, 0.5**4, 0.5**3, 0.5**2]
        else:
            factors = found["decoder/layers/self_attention/query/kernel"]
            assert factors.ravel().tolist() == [0.5**3, 0.5**2]
