"""Laws of taps: what is read is what was computed, unused they are not there, a change reaches what depends on it."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from model import tree
from model.attention import attention_weights
from model.config import TransformerConfig
from model.layers import ACTIVATIONS
from model.taps import add, addresses, capture, replace, zero
from model.transformer import ReplacedTokenDetector, initialize, transformer
from train import sharding
from train.config import RULES, Mesh

SMALL = dict(vocab_size=61, num_layers=3, embed_dim=32, num_heads=4, max_length=24, positions="learned")
MODELS = {
    "decoder": {},
    "rotary decoder": dict(positions="rotary", norm="rms", activation="swiglu", num_kv_heads=2, tie_embeddings=False),
    "peri decoder": dict(norm_placement="peri", query_key_norm=True),
    "parallel decoder": dict(parallel_blocks=True),
    "mixture": dict(num_experts=4),
    "encoder": dict(stack="encoder", heads=("lm", "sequence", "tokens"), num_labels=3, pooler="tanh"),
    "shared layers": dict(stack="encoder", share_layers=True, embedding_dim=16, heads=("lm",), head_transform=True),
    "encoder_decoder": dict(stack="encoder_decoder", num_encoder_layers=2),
    "t5": dict(stack="encoder_decoder", positions="t5_relative", norm="rms", use_bias=False),
    "shared stacks": dict(stack="encoder_decoder", share_encoder_decoder=True),
}
LOOPS = {
    "scan": {},
    "unroll": dict(layer_loop="unroll"),
    "remat": dict(remat="full"),
    "remat of dots": dict(remat="dots", layer_loop="unroll"),
}


def build(**choices):
    model = transformer(TransformerConfig(**(SMALL | choices)))
    return model, parameters(model)


def parameters(model):
    params = tree.unbox(jax.jit(lambda key: initialize(model, key))(jax.random.key(0)))
    noise = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * noise.standard_normal(p.shape).astype(np.float32), params)


def inputs(model, rows=2):
    tokens = np.random.default_rng(1).integers(0, 61, (rows, 9)).astype(np.int32)
    return (tokens, tokens[:, :7]) if model.config.stack == "encoder_decoder" else (tokens,)


def close(found, expected, address):
    """Equal to a millionth of the greatest."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6 * max(1.0, np.abs(expected).max()), address


def captured(model, params, *args, pattern="**", patch=None):
    """What a compiled call gives, and what it taps."""

    @jax.jit
    def call(params, *args):
        with capture(pattern, patch=patch) as taps:
            outputs = model.apply({"params": params}, *args)
        return outputs, dict(taps)

    return call(params, *args)


def eager(model, params, *args):
    """Address → output of every module, as Flax itself intercepts it, layer by layer and without compilation."""
    with jax.disable_jit():
        _, state = nn.Module.apply(
            model, {"params": params}, *args, capture_intermediates=True, mutable=["intermediates"]
        )
    found = {}
    for path, calls in flatten_dict(state["intermediates"]).items():
        if path[-1] != "__call__":
            continue
        for number, value in enumerate(calls):
            value = value[0] if isinstance(value, tuple) else value
            if isinstance(value, dict) or value is None:
                continue
            module = path[:-1]
            at = module.index("layers") + 1 if "layers" in module else None
            suffix = f"@{number}" if len(calls) > 1 else ""
            for layer in range(len(value) if at else 1):
                parts = (*module[:at], str(layer), *module[at:]) if at else module
                found["/".join((*parts, "output")) + suffix] = value[layer] if at else value
    return found


IN_LOOPS = [*((name, "scan") for name in MODELS), *(("decoder", loop) for loop in LOOPS)]


@pytest.mark.parametrize(
    ("name", "loop"), dict.fromkeys([*IN_LOOPS, ("encoder", "remat"), ("encoder_decoder", "remat")])
)
def test_what_is_captured_is_what_eager_modules_give(name, loop):
    few = dict(num_layers=2)
    model, params = build(**MODELS[name] | few, **LOOPS[loop])
    args = inputs(model)
    outputs, taps = captured(model, params, *args)
    for found, plain in zip(
        jax.tree.leaves(outputs), jax.tree.leaves(model.apply({"params": params}, *args)), strict=True
    ):
        np.testing.assert_allclose(found, plain, atol=1e-5)
    expected = eager(build(**MODELS[name] | few)[0], params, *args)
    common = sorted(set(taps) & set(expected))
    assert len(common) > 15, f"{sorted(taps)} and {sorted(expected)}"
    for address in common:
        close(taps[address], expected[address], address)
    # Of what is no module's output: the same by hand, from what is.
    for address in set(taps) - set(expected):
        close_to_what_follows(address, taps, outputs, params, model.config)


def close_to_what_follows(address, taps, outputs, params, config):
    """What is tapped within a module agrees with the outputs around it."""
    found, (path, _, call) = taps[address], address.partition("@")
    at, _, word = path.rpartition("/")

    def of(name):
        return taps.get(f"{name}@{call}" if call else name, taps.get(name))

    if word == "embedded":
        tokens = taps.get("token_embedding/output")
        if tokens is None:  # one table for both stacks, the encoder's call the first
            tokens = taps[f"token_embedding/output@{call or int(at == 'decoder')}"]
        places = of(f"{at}/position_embedding/output") if config.positions == "learned" else 0
        expected = tokens + places
    elif word == "hidden":
        up, gate = of(f"{at}/up/output"), of(f"{at}/gate/output")
        expected = ACTIVATIONS[config.activation](up) if gate is None else jax.nn.silu(gate) * up
    elif at.endswith("attention") and word == "probabilities":
        value = of(f"{at}/value/output")
        value = jnp.repeat(value, found.shape[1] // value.shape[2], axis=2)
        found, expected = of(f"{at}/attended"), jnp.einsum("bhqk,bkhd->bqhd", found, value)
    elif word == "probabilities":
        expected = jax.nn.softmax(of(f"{at}/router/output"))
    elif word == "attended":
        stack, _, layer, attention = at.split("/")
        out = params[stack]["layers"][attention]["out"]
        if not config.share_layers:
            out = jax.tree.map(lambda p: p[int(layer)], out)
        found, expected = of(f"{at}/out/output"), jnp.einsum("blhd,hde->ble", found, out["kernel"]) + out.get("bias", 0)
    else:
        assert word == "pooled", address
        found, expected = found[:, 0], outputs["pooled"]
    np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=address)


def test_probabilities_are_softmax_of_query_and_key():
    model, params = build()
    _, taps = captured(model, params, *inputs(model))
    for layer in range(3):
        at = f"decoder/layers/{layer}/self_attention"
        query, key, value = (taps[f"{at}/{name}/output"] for name in ("query", "key", "value"))
        weights = attention_weights(query, key, model.config, is_causal=True)
        np.testing.assert_allclose(taps[f"{at}/probabilities"], weights, atol=1e-6)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        np.testing.assert_allclose(taps[f"{at}/attended"], mixed, atol=1e-6)


@pytest.mark.parametrize("name", ["decoder", "encoder", "encoder_decoder"])
def test_the_same_on_eight_devices(name):
    model, params = build(**MODELS[name], remat="full")
    args = inputs(model, rows=4)
    _, one = captured(model, params, *args)
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    with sharding.use(mesh, RULES):
        specs, _ = sharding.parameter_specs(boxed, mesh, RULES)
        places = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
        )
        placed = jax.tree.map(jax.device_put, params, places)
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        _, eight = captured(model, placed, *(jax.device_put(x, rows) for x in args))
    assert set(one) == set(eight)
    assert len(next(iter(eight.values())).sharding.device_set) == 8
    for address in one:
        close(one[address], eight[address], address)


def program(compiled: str) -> str:
    """The text of a compiled module without its places in source files: four tables at its head, and metadata."""
    tables = r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(\d.*\n)*"
    return re.sub(r",? *metadata=\{[^}]*\}", "", re.sub(tables, "", compiled, flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["decoder", "encoder", "encoder_decoder", "mixture"])
def test_unused_taps_are_not_in_the_compiled_program(name, monkeypatch):
    model, params = build(**MODELS[name])
    args = inputs(model)

    def text(*patterns):
        jax.clear_caches()

        def call(params, *args):
            if not patterns:
                return model.apply({"params": params}, *args)
            with capture(*patterns) as taps:
                return model.apply({"params": params}, *args), dict(taps)

        return program(jax.jit(call).lower(params, *args).compile().as_text())

    with capture("head/output") as taps:
        model.apply({"params": params}, *args)
    assert len(taps) == 1
    after_use = text()
    assert after_use.count("\n") > 100 and "ENTRY" in after_use
    assert after_use != text("head/output")  # what is used is there
    for module in ("layers", "attention", "stack", "heads", "feed_forward", "experts"):
        monkeypatch.setattr(f"model.{module}.tap", lambda module, name, x: x)
    monkeypatch.setattr("model.attention.is_tapped", lambda module, name: False)
    assert after_use == text()


def test_a_change_reaches_what_depends_on_it_alone():
    model, params = build()
    [tokens] = inputs(model)
    _, before = captured(model, params, tokens)
    at = np.s_[:, 4, 2]  # the third head at the fifth place
    _, after = captured(model, params, tokens, patch={"decoder/layers/1/self_attention/attended": zero(at)})
    changed = {address for address in before if np.any(np.asarray(before[address]) != np.asarray(after[address]))}
    attended = after["decoder/layers/1/self_attention/attended"]
    assert not np.any(np.asarray(attended)[at])
    below = {address for address in before if address.startswith(("decoder/layers/0", "token", "decoder/embedded"))}
    inside = {f"decoder/layers/1/self_attention/{name}" for name in ("query/output", "key/output", "value/output")}
    assert not changed & (below | inside | {"decoder/layers/1/self_attention/probabilities"})
    assert {"decoder/layers/1/output", "decoder/layers/2/self_attention/probabilities", "head/output"} <= changed
    for address in ("decoder/layers/1/output", "decoder/layers/2/output", "head/output"):  # causal: nothing before it
        np.testing.assert_array_equal(before[address][:, :4], after[address][:, :4])
        assert np.all(np.any(np.asarray(before[address] != after[address]), axis=-1)[:, 4])
    only_here = np.asarray(before["decoder/layers/1/output"] != after["decoder/layers/1/output"]).any(axis=-1)
    assert only_here[:, 4].all() and only_here.sum() == 2


def test_replacing_by_the_same_changes_nothing_and_a_layer_can_be_skipped():
    model, params = build()
    [tokens] = inputs(model)
    outputs, taps = captured(model, params, tokens)
    address = "decoder/layers/1/output"
    same, _ = captured(model, params, tokens, patch={address: replace(taps[address])})
    np.testing.assert_allclose(same, outputs, atol=1e-6)
    skipped, seen = captured(model, params, tokens, patch={address: replace(taps["decoder/layers/0/output"])})
    np.testing.assert_allclose(seen[address], taps["decoder/layers/0/output"], atol=1e-6)
    assert np.abs(skipped - outputs).max() > 1e-3
    more, seen = captured(model, params, tokens, patch={"decoder/layers/*/output": add(1.0)})
    np.testing.assert_allclose(seen["decoder/layers/0/output"], taps["decoder/layers/0/output"] + 1.0, atol=1e-5)


@pytest.mark.parametrize("loop", LOOPS)
def test_gradients_flow_through_a_replaced_value(loop):
    model, params = build(**LOOPS[loop])
    [tokens] = inputs(model)
    _, taps = captured(model, params, tokens)

    def score(embedded):
        with capture(patch={"decoder/embedded": replace(embedded)}):
            return model.apply({"params": params}, tokens)[0, -1, 3]

    gradient = jax.jit(jax.grad(score))(taps["decoder/embedded"])
    step = 1e-2 * np.random.default_rng(2).standard_normal(gradient.shape).astype(np.float32)
    rise = score(taps["decoder/embedded"] + step) - score(taps["decoder/embedded"] - step)
    np.testing.assert_allclose(rise, 2 * (gradient * step).sum(), rtol=2e-2)
    assert not np.any(np.asarray(gradient[1]))


def test_addresses_of_both_networks_of_electra():
    config = TransformerConfig(**SMALL, stack="encoder", heads=("detection",))
    model = ReplacedTokenDetector(config, 0.5)
    tokens = np.ones((1, 4), np.int32)
    rngs = {"sample": jax.random.key(0)}
    found = addresses(model, parameters(model), tokens, tokens, np.ones((1, 4), np.float32), rngs=rngs)
    assert {"generator/layers/2/output", "encoder/layers/2/output", "heads/detection/output"} <= set(found)


def test_what_is_wrong_is_said():
    model, params = build()
    [tokens] = inputs(model)
    with pytest.raises(ValueError, match="did you mean decoder/layers/1/self_attention/probabilities"):
        with capture("decoder/layers/1/self_attention/probabilites"):
            model.apply({"params": params}, tokens)
    with pytest.raises(ValueError, match="no activation of this address"):
        with capture(patch={"decoder/layers/7/output": zero()}):
            model.apply({"params": params}, tokens)
    call = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))
    with pytest.raises(ValueError, match="put it inside, around model.apply"):
        with capture("head/output"):
            call(params, tokens)
    call(params, tokens)
    with pytest.raises(ValueError, match="no model was called within the capture, or it was compiled before"):
        with capture("head/output"):
            call(params, tokens)
    with capture("head/output") as taps:
        model.apply({"params": params}, tokens)
    with pytest.raises(KeyError, match="head/output"):
        taps["head/outputs"]
