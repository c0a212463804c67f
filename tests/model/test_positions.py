"""Position schemes against literal values and the laws that define them."""

import jax
import jax.numpy as jnp
import numpy as np

from model import masks, positions
from model.config import Unscaled


def test_sinusoids_are_the_papers():
    table = positions.sinusoidal(jnp.arange(6)[None], 8)[0]
    for place in range(6):
        for i in range(4):
            angle = place / 10_000 ** (i / 4)
            np.testing.assert_allclose(table[place, i], np.sin(angle), atol=1e-6)
            np.testing.assert_allclose(table[place, 4 + i], np.cos(angle), atol=1e-6)


def test_rotary_products_depend_on_distance_only_and_keep_length():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def turned(x, at):
        return positions.rotary(x, *positions.rotation(jnp.array([[at]]), 16, 10_000.0, Unscaled()))

    def product(at_query, at_key):
        return jnp.vdot(turned(query, at_query), turned(key, at_key))

    np.testing.assert_allclose(product(5, 3), product(105, 103), rtol=1e-4)
    assert abs(product(5, 3) - product(5, 2)) > 1e-3
    np.testing.assert_allclose(jnp.linalg.norm(turned(query, 77)), jnp.linalg.norm(query), rtol=1e-6)


def test_alibi_slopes_of_the_paper():
    np.testing.assert_allclose(positions.alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(
        positions.alibi_slopes(12), [*(2.0**-i for i in range(1, 9)), *(2.0 ** -(i + 0.5) for i in range(4))]
    )


def test_t5_buckets_are_exact_near_and_logarithmic_far():
    buckets = np.asarray(positions.t5_bucket(jnp.array([-3, 0, 1, 15, 16, 32, 64, 127, 128, 1000]), 32, 128))
    assert buckets.tolist() == [0, 0, 1, 15, 16, 21, 26, 31, 31, 31]


def test_bidirectional_t5_buckets_tell_before_from_after():
    buckets = np.asarray(positions.t5_bucket(jnp.array([-128, -9, -1, 0, 1, 9, 128]), 32, 128, is_causal=False))
    assert buckets.tolist() == [31, 24, 17, 0, 1, 8, 15]


def test_masks_as_literal_matrices():
    place = jnp.arange(4)[None]
    np.testing.assert_array_equal(masks.causal(place, place)[0], np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(
        masks.causal(place, place, window=2)[0],
        np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], bool),
    )
    segments = jnp.array([[1, 1, 2, 0]])
    np.testing.assert_array_equal(
        masks.same_segment(segments, segments)[0],
        np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], bool),
    )
