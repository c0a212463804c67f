"""Laws of the mixture of experts: one expert is a feed-forward, no token is lost, every mesh gives the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import experts, tree
from model.config import TransformerConfig
from model.experts import MixtureOfExperts
from model.feed_forward import FeedForward
from model.transformer import Decoder
from train import sharding
from train.config import RULES, Mesh

SMALL = dict(vocab_size=64, num_layers=2, embed_dim=16, num_heads=4, mlp_dim=32, max_length=16, num_experts=4)
MESHES = {
    "data=8": Mesh(data=8),
    "fsdp=8": Mesh(data=1, fsdp=8),
    "tensor=4, data=2": Mesh(data=2, tensor=4),
    "data=2, fsdp=2, tensor=2": Mesh(data=2, fsdp=2, tensor=2),
}


def build(**choices):
    """A mixture, its parameters at a size at which every part leaves a mark, and inputs [2, 12, embed]."""
    config = TransformerConfig(**(SMALL | choices))
    model = MixtureOfExperts(config, deterministic=True)
    x = jax.random.normal(jax.random.key(1), (2, 12, config.embed_dim), config.dtype)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert set(variables) == {"params"}
    return config, model, perturbed(variables["params"]), x


def perturbed(params):
    noise = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.3 * noise.standard_normal(p.shape).astype(np.float32), tree.unbox(params))


def apply(model, params, x, **arguments):
    return jax.jit(lambda p, x: model.apply({"params": p}, x, **arguments))(params, x)


@pytest.mark.parametrize("capacity", [None, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu_tanh", "swiglu"])
def test_one_expert_is_the_feed_forward_bit_for_bit(dtype, use_bias, activation, capacity):
    config, model, params, x = build(
        num_experts=1,
        experts_per_token=1,
        dtype=dtype,
        use_bias=use_bias,
        activation=activation,
        expert_capacity_factor=capacity,
    )
    dense = FeedForward(config, deterministic=True)
    dense_params = {name: jax.tree.map(lambda p: p[0], params[name]) for name in params if name != "router"}
    direction = jax.random.normal(jax.random.key(2), x.shape, dtype)

    def output_and_gradient(model, params):
        y, pull = jax.vjp(lambda x: model.apply({"params": params}, x), x)
        return y, pull(direction)[0]

    # Fused kernels sum in an order that depends on what is around a product; without fusion a product is a product.
    plain = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "fusion"}
    got = jax.jit(lambda p: output_and_gradient(model, p), compiler_options=plain)(params)
    expected = jax.jit(lambda p: output_and_gradient(dense, p), compiler_options=plain)(dense_params)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_array_equal(a, b)


def expert_by_hand(params, index, activation):
    """One expert as a NumPy function of one token [embed]."""

    def project(name, x):
        return x @ np.asarray(params[name]["kernel"][index]) + np.asarray(params[name]["bias"][index])

    if activation == "relu":
        return lambda x: project("down", np.maximum(project("up", x), 0))
    return lambda x: project("down", project("up", x) * np.maximum(project("gate", x), 0))


@pytest.mark.parametrize(
    "choices",
    [
        dict(activation="reglu"),
        dict(activation="relu", experts_per_token=3, normalize_router=False),
        dict(activation="relu", experts_per_token=1, normalize_router=False),
        dict(activation="reglu", experts_per_token=2, num_shared_experts=2),
    ],
    ids=str,
)
def test_each_token_gets_its_experts_and_no_others(choices):
    config, model, params, x = build(**choices)
    expected = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:2]):
        token = np.asarray(x[place], np.float64)
        logits = token @ np.asarray(params["router"]["kernel"])
        probabilities = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-probabilities)[: config.experts_per_token]
        total = probabilities[best].sum() if config.normalize_router else 1
        for index in best:
            expected[place] += probabilities[index] / total * expert_by_hand(params, index, config.activation)(token)
    if config.num_shared_experts:
        shared = params["shared"]
        assert shared["up"]["kernel"].shape == (config.embed_dim, 2 * config.mlp_dim)
        one = jax.tree.map(lambda p: p[None], shared)
        expected += np.apply_along_axis(expert_by_hand(one, 0, config.activation), -1, np.asarray(x))
    np.testing.assert_allclose(apply(model, params, x), expected, atol=1e-4, rtol=1e-5)


def test_a_capacity_that_suffices_changes_nothing():
    config, model, params, x = build(activation="swiglu")
    wide = MixtureOfExperts(config.model_copy(update=dict(expert_capacity_factor=4.0)), deterministic=True)

    def output_and_gradients(model):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, x)))))(params)

    for a, b in zip(*map(jax.tree.leaves, map(output_and_gradients, (model, wide))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max(), rtol=1e-6)


def test_full_experts_take_first_choices_then_earlier_tokens():
    chosen = jnp.array([[[0, 1], [0, 1], [1, 0], [0, 2]]])  # each token's first and second choice of 3 experts
    places = np.asarray(experts.dispatch(chosen, num_experts=3, capacity=2))
    taken = {tuple(map(int, row)) for row in np.argwhere(places)}  # row, token, choice, expert, place
    assert taken == {
        (0, 0, 0, 0, 0),  # expert 0 takes tokens 0 and 1 and is full for token 3 and for the second choice of token 2
        (0, 1, 0, 0, 1),
        (0, 2, 0, 1, 0),  # expert 1 takes the later token 2 first, since it is a first choice
        (0, 0, 1, 1, 1),
        (0, 3, 1, 2, 0),
    }


def test_a_token_without_a_place_gets_nothing_and_rows_do_not_compete():
    """All tokens want one expert, which has 3 places in each sequence."""
    _, model, params, x = build(experts_per_token=1, expert_capacity_factor=1.0)
    x = jnp.abs(x)
    params["router"]["kernel"] = jnp.zeros((16, 4)).at[:, 2].set(1.0)
    y = np.asarray(apply(model, params, x))
    assert np.all(np.abs(y[:, :3]).max(axis=-1) > 0)
    assert np.all(y[:, 3:] == 0)


@pytest.mark.parametrize(("length", "factor", "expected"), [(12, 1.0, 6), (12, 1.25, 8), (12, 100.0, 12), (1, 0.5, 1)])
def test_capacity_is_the_even_share_times_the_factor(length, factor, expected):
    config = TransformerConfig(**SMALL, experts_per_token=2, expert_capacity_factor=factor)
    assert experts.expert_capacity(config, length) == expected


def test_load_balance_is_the_number_of_choices_at_even_routing_and_largest_when_one_expert_takes_all():
    even = jnp.full((1, 4, 4), 0.25)
    balanced = jnp.array([[[0, 1], [1, 2], [2, 3], [3, 0]]])
    np.testing.assert_allclose(experts.load_balance(even, balanced), 2.0)
    np.testing.assert_allclose(experts.load_balance(even, balanced[..., :1]), 1.0)
    collapsed = jnp.array([[[0.97, 0.01, 0.01, 0.01]] * 4])
    np.testing.assert_allclose(experts.load_balance(collapsed, jnp.zeros((1, 4, 1), int)), 4 * 0.97)


def test_router_z_is_the_mean_square_of_log_z():
    logits = jnp.log(jnp.array([[[1.0, 2.0, 1.0], [np.e, 0.0, 0.0]]]))
    np.testing.assert_allclose(experts.router_z(logits), (np.log(4.0) ** 2 + 1.0) / 2, rtol=1e-6)


def test_losses_are_sown_where_asked_and_for_every_layer():
    config, model, params, x = build()
    y, sown = apply(model, params, x, mutable=["losses"])
    assert {name: value.shape for name, value in sown["losses"].items()} == {"load_balance": (), "router_z": ()}
    np.testing.assert_array_equal(y, apply(model, params, x))
    decoder = Decoder(config)
    tokens = jnp.zeros((2, 4), jnp.int32)
    variables = tree.unbox(jax.jit(decoder.init)(jax.random.key(0), tokens))
    _, sown = apply(decoder, variables["params"], tokens, mutable=["losses"])
    sown = sown["losses"]["decoder"]["layers"]["feed_forward"]
    assert {name: value.shape for name, value in sown.items()} == {"load_balance": (2,), "router_z": (2,)}


@pytest.mark.parametrize("capacity", [None, 2.0])
def test_activation_dropout_follows_its_key(capacity):
    config, _, params, x = build(activation_dropout_rate=0.5, expert_capacity_factor=capacity)
    model = MixtureOfExperts(config, deterministic=False)
    run = jax.jit(lambda seed: model.apply({"params": params}, x, rngs={"dropout": jax.random.key(seed)}))
    assert np.array_equal(run(0), run(0))
    assert not np.allclose(run(0), run(1))
    mean = np.mean([run(seed) for seed in range(200)], axis=0)
    kept = apply(MixtureOfExperts(config, deterministic=True), params, x)
    assert np.linalg.norm(mean - kept) < 0.2 * np.linalg.norm(kept)


def test_gradients_in_bfloat16_are_near_on_a_mesh():
    _, model, params, x = build(dtype="bfloat16", activation="swiglu")
    x = jnp.concatenate([x, -x])

    def gradients(params, x):
        return jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, x).astype(jnp.float32))))(params)

    expected = jax.jit(gradients)(params, x)
    mesh = sharding.make_mesh(MESHES["data=2, fsdp=2, tensor=2"])
    with sharding.use(mesh, RULES):
        got = jax.jit(gradients)(params, jax.device_put(x, sharding.batch_sharding(mesh, RULES)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)


def train(mesh, capacity, steps=8):
    """Losses of some steps of a two-layer decoder with all that a mixture has, and the compiled step."""
    config = TransformerConfig(
        **SMALL,
        activation="swiglu",
        num_shared_experts=1,
        activation_dropout_rate=0.1,
        expert_capacity_factor=capacity,
    )
    model = Decoder(config)
    tokens = jax.random.randint(jax.random.key(3), (8, 17), 0, config.vocab_size)
    mesh = sharding.make_mesh(mesh)
    with sharding.use(mesh, RULES):
        boxed = jax.eval_shape(model.init, jax.random.key(0), tokens[:1, :2])["params"]
        specs, _ = sharding.parameter_specs(boxed, mesh, RULES)
        places = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
        init = jax.jit(lambda key: tree.unbox(model.init(key, tokens[:1, :2])["params"]), out_shardings=places)
        params = init(jax.random.key(0))

        def loss_fn(params, tokens, key):
            logits, sown = model.apply(
                {"params": params}, tokens[:, :-1], deterministic=False, rngs={"dropout": key}, mutable=["losses"]
            )
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
            auxiliary = sown["losses"]["decoder"]["layers"]["feed_forward"]
            return -picked.mean() + 0.1 * auxiliary["load_balance"].sum() + 0.01 * auxiliary["router_z"].sum()

        def step(params, tokens, key):
            loss, grads = jax.value_and_grad(loss_fn)(params, tokens, key)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), loss

        rows = sharding.batch_sharding(mesh, RULES)
        tokens = jax.device_put(tokens, rows)
        arguments = (params, tokens, jax.random.key(0))
        jitted = jax.jit(step, in_shardings=(places, rows, None), out_shardings=(places, None))
        step = jitted.lower(*arguments).compile()
        losses = []
        for index in range(steps):
            params, loss = step(params, tokens, jax.random.key(index))
            losses.append(loss.item())
    return losses, step.as_text()


@pytest.fixture(scope="module", params=[None, 1.0], ids=["dropless", "capacity"])
def reference(request):
    return request.param, train(Mesh(data=1), request.param)[0]


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_trains_to_the_same_losses(reference, mesh):
    capacity, expected = reference
    losses, program = train(MESHES[mesh], capacity)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1] < losses[0] - 0.1
    # 8 sequences of 16 tokens, 4 experts, 2 a token: no device may route all tokens or compute all pairs.
    assert "[8,16,4]" not in program
    assert "[256," not in program
