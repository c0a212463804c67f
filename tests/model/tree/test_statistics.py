"""Numbers, differences and places equal what NumPy gives for the whole arrays."""

import math

import numpy as np
import pytest

from model.tree import edit, named_leaves, statistics
from model.tree.statistics import diff, effective_rank, find_dead, find_value, layers, singular_values, stats


@pytest.fixture(params=[1 << 25, 256], ids=["one block", "many blocks"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", request.param)


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", [(), (7,), (5, 9), (3, 4, 5, 6), (0, 3)])
def test_stats_are_numpys(shape):
    array = random(*shape) + 3
    if array.size > 3:
        array.flat[:3] = (np.nan, np.inf, 0)
    found, finite = stats(array), array[np.isfinite(array)].astype(np.float64)
    assert (found.count, found.zeros, found.nans, found.infinities) == (
        array.size,
        (array == 0).sum(),
        np.isnan(array).sum(),
        np.isinf(array).sum(),
    )
    if not finite.size:
        assert math.isnan(found.mean) and math.isnan(found.least)
        return
    expected = (np.linalg.norm(finite), finite.mean(), finite.std(), finite.min(), finite.max())
    numbers = (found.norm, found.mean, found.standard_deviation, found.least, found.greatest)
    np.testing.assert_allclose(numbers, expected, rtol=1e-9, atol=1e-12)


def test_layers_of_stacked_arrays():
    kernel = random(3, 4, 5)
    found = layers({"decoder/layers/up/kernel": kernel, "head/kernel": kernel[0]})
    assert list(found) == [f"decoder/layers/{i}/up/kernel" for i in range(3)] + ["head/kernel"]
    for i in range(3):
        assert stats(found[f"decoder/layers/{i}/up/kernel"]) == stats(kernel[i])
        np.testing.assert_array_equal(found[f"decoder/layers/{i}/up/kernel"][1:, 2], kernel[i, 1:, 2])


def test_singular_values_and_effective_rank():
    kernel = random(2, 6, 2, 4)
    found = singular_values("decoder/layers/self_attention/query/kernel", kernel)
    np.testing.assert_allclose(found[1], np.linalg.svd(kernel[1].reshape(6, 8), compute_uv=False), rtol=1e-5)
    out = singular_values("decoder/layers/self_attention/out/kernel", random(2, 2, 4, 6))
    assert out.shape == (2, 6)
    np.testing.assert_allclose(effective_rank(np.array([[1.0, 1, 1, 1], [5, 0, 0, 0]])), [4, 1])
    with pytest.raises(ValueError, match="is no matrix"):
        singular_values("decoder/layers/norm/scale", random(2, 6))


@pytest.mark.usefixtures("_blocks")
def test_diff_says_what_is_missing_reshaped_and_changed_most_first():
    first = {"a": random(4, 5), "b": random(6), "c": random(2, 3), "d": random(30), "gone": random(2)}
    second = {name: array.copy() for name, array in first.items() if name != "gone"} | {"new": random(3)}
    second["a"][1, 2] += 0.5
    second["b"] *= 3
    second["c"] = second["c"].T
    found = diff(first, second)
    assert [(one.name, one.kind) for one in found] == [
        ("gone", "only in the first"),
        ("new", "only in the second"),
        ("c", "another shape"),
        ("b", "changed"),
        ("a", "changed"),
        ("d", "same"),
    ]
    assert found[3].relative == pytest.approx(2, rel=1e-6)
    assert found[4].greatest == pytest.approx(0.5, rel=1e-6)
    assert all(one.kind == "same" for one in diff(first, first))
    nan = {"a": np.array([np.nan, 1.0])}
    assert diff(nan, nan)[0].kind == "same"
    assert diff(nan, {"a": np.array([2.0, 1.0])})[0].greatest == math.inf


@pytest.mark.usefixtures("_blocks")
def test_find():
    array = random(6, 50)
    array[2, 30] = array[5, 1] = np.nan
    array[3, 3] = 7.25
    found = find_value({"x": array, "y": random(4)}, math.nan)
    assert [(place.name, place.count, set(place.first)) for place in found] == [("x", 2, {(2, 30), (5, 1)})]
    assert find_value({"x": array}, 7.2, 0.1)[0].first == ((3, 3),)
    assert find_value({"x": array}, 7.2) == []
    kernel, embedding = random(2, 8, 6), random(10, 4)
    kernel[1, :, 4] = 0
    embedding[7] = 1e-9
    dead = {"decoder/layers/up/kernel": kernel, "token_embedding/embedding": embedding, "scale": np.zeros(3)}
    assert [(place.name, place.first) for place in find_dead(dead)] == [("decoder/layers/up/kernel", ((1, 4),))]
    assert [place.first for place in find_dead(dead, 1e-6)] == [((1, 4),), ((7,),)]


# Work on trees


def params(seed=0):
    random = np.random.default_rng(seed)
    up = {"kernel": random.standard_normal((2, 4, 6)), "bias": random.standard_normal((2, 6))}
    return {"decoder": {"layers": {"up": up}}, "head": {"kernel": random.standard_normal((4, 3)).astype(np.float32)}}


def equal(a, b):
    first, second = named_leaves(a), named_leaves(b)
    return set(first) == set(second) and all(np.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_select_partition_and_replace():
    tree = params()
    assert set(named_leaves(edit.select(tree, "**/kernel"))) == {"decoder/layers/up/kernel", "head/kernel"}
    chosen, rest = edit.partition(tree, "head/**")
    assert list(named_leaves(chosen)) == ["head/kernel"] and equal(edit.combine(chosen, rest), tree)
    with pytest.raises(ValueError, match="is in two of the parts"):
        edit.combine(tree, chosen)
    doubled = edit.map_leaves(lambda name, x: 2 * x, tree, "**/bias")
    assert np.allclose(doubled["decoder"]["layers"]["up"]["bias"], 2 * tree["decoder"]["layers"]["up"]["bias"])
    assert doubled["head"]["kernel"] is tree["head"]["kernel"]
    other = edit.replace(tree, {"head/kernel": np.zeros((4, 3))})
    assert not other["head"]["kernel"].any() and tree["head"]["kernel"].any()
    for call, said in [
        (lambda: edit.replace(tree, {"head/kernel": np.zeros((3, 4))}), "its replacement"),
        (lambda: edit.replace(tree, {"head/kernl": 0}), "did you mean head/kernel"),
        (lambda: edit.select(tree, "heads/**"), "no path is like that"),
    ]:
        with pytest.raises(ValueError, match=said):
            call()


def test_average_interpolate_and_merge():
    a, b, c = params(0), params(1), params(2)
    assert equal(edit.average([a, a]), a)
    assert equal(edit.average([a, b], [3, 1]), edit.interpolate(a, b, 0.25))
    assert equal(edit.interpolate(a, b, 0), a) and equal(edit.interpolate(a, b, 1), b)
    assert equal(edit.merge(a, [b]), b)
    assert equal(edit.merge(edit.merge(a, [b, c], [0.5, 0.3]), [a], [0]), edit.merge(a, [c, b], [0.3, 0.5]))
    with pytest.raises(ValueError, match="tree 2 has nothing at"):
        edit.average([a, {"head": a["head"]}])


@pytest.mark.parametrize("across", ["each", "all"])
def test_prune_keeps_the_largest(across):
    tree = params()
    pruned, kept = edit.prune(tree, 0.5, across=across)
    kernels = [(np.asarray(tree[s][k]), np.asarray(kept[s][k])) for s, k in [("head", "kernel")]]
    kernels.append((tree["decoder"]["layers"]["up"]["kernel"], kept["decoder"]["layers"]["up"]["kernel"]))
    assert sum(keep.sum() for _, keep in kernels) == sum(x.size for x, _ in kernels) // 2
    for x, keep in kernels if across == "each" else []:
        assert np.abs(x[~keep]).max() <= np.abs(x[keep]).min()
    assert kept["decoder"]["layers"]["up"]["bias"].all()
    assert equal(edit.map_leaves(lambda name, x: x, pruned), pruned)
    with pytest.raises(ValueError, match="fraction must be at least 0"):
        edit.prune(tree, 1.0)
