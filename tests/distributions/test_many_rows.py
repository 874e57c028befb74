"""Many rows are computed in blocks: memory does not grow with them, and no value changes."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from references import EPS32, random_flow

import flowdensity as fd
from flowdensity._blocks import CACHE, block_rows, over_rows

WIDE = fd.FlowDensity(random_flow(jr.key(0), 2, width=256), solver=fd.FixedStep(1))
BLOCK = CACHE // (2 * 256 * 4)
"""Rows in a block: the largest array of a row is a hidden layer of 256 float32 numbers for each column of the Jacobian."""
ROWS = jr.normal(jr.key(1), (2 * BLOCK + 5, 2))
BASE = dist.Normal(0.0, 1.0).expand([2]).to_event(1)


def slopes(density, rows):
    return jax.grad(lambda rows: jnp.sum(density.log_prob(rows)))(rows)


def test_the_values_of_a_block_are_those_of_its_rows_alone():
    together = np.asarray(WIDE.log_prob(ROWS))
    np.testing.assert_array_equal(together[:BLOCK], WIDE.log_prob(ROWS[:BLOCK]))
    np.testing.assert_array_equal(together[BLOCK : 2 * BLOCK], WIDE.log_prob(ROWS[BLOCK : 2 * BLOCK]))
    # The last block is filled up with the first rows.
    filled = jnp.concatenate([ROWS[2 * BLOCK :], ROWS[: BLOCK - 5]])
    np.testing.assert_array_equal(together[2 * BLOCK :], WIDE.log_prob(filled)[:5])


@pytest.mark.slow
def test_the_gradients_of_a_block_are_those_of_its_rows_alone_up_to_rounding():
    # The backward pass of a loop is compiled on its own, and may add in another order.
    together, alone = np.asarray(slopes(WIDE, ROWS)), np.asarray(slopes(WIDE, ROWS[:BLOCK]))
    np.testing.assert_allclose(together[:BLOCK], alone, rtol=0, atol=64 * EPS32 * np.abs(alone).max())


@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
def test_memory_does_not_grow_with_the_rows(gradient):
    function = (lambda rows: slopes(WIDE, rows)) if gradient else WIDE.log_prob

    def temporary(blocks):
        rows = jax.ShapeDtypeStruct((blocks * BLOCK, 2), jnp.float32)
        return jax.jit(function).lower(rows).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(2), temporary(200)
    # A copy of the rows may be made, but nothing of the size of a layer.
    assert many - few <= 198 * BLOCK * 2 * 4 * 2
    assert many <= 198 * BLOCK * 256 * 4


def test_rows_with_contexts_of_their_own_and_rows_of_one_context():
    flow = fd.FlowDensity(random_flow(jr.key(2), 2, 1, width=256), solver=fd.FixedStep(1))
    contexts = jnp.linspace(-1.0, 1.0, len(ROWS))[:, None]
    own = np.asarray(flow.given(contexts).log_prob(ROWS))
    np.testing.assert_array_equal(own[:BLOCK], flow.given(contexts[:BLOCK]).log_prob(ROWS[:BLOCK]))
    shared = np.asarray(flow.given(contexts[0]).log_prob(ROWS))
    np.testing.assert_array_equal(shared[:BLOCK], flow.given(contexts[0]).log_prob(ROWS[:BLOCK]))


def elementwise(row):
    return jnp.sum(row * row) + row[0]


def test_whole_blocks_give_what_one_block_would():
    rows = jr.normal(jr.key(3), (3 * CACHE // 8 + 7, 2))
    assert block_rows(elementwise, rows) < len(rows)
    np.testing.assert_array_equal(over_rows(elementwise, rows), jax.vmap(elementwise)(rows))
    np.testing.assert_array_equal(
        jax.grad(lambda rows: jnp.sum(over_rows(elementwise, rows)))(rows), jax.vmap(jax.grad(elementwise))(rows)
    )


def test_rows_with_keys_of_their_own():
    rows, keys = jr.normal(jr.key(3), (CACHE // 4 + 7, 2)), jr.split(jr.key(4), CACHE // 4 + 7)

    def noised(key, row):
        return row + jr.normal(key, row.shape)

    np.testing.assert_array_equal(over_rows(noised, keys, rows), jax.vmap(noised)(keys, rows))


def test_a_block_is_as_large_as_the_cache_and_weights_do_not_count():
    weights = jnp.ones((512, 512))
    assert block_rows(lambda row: (weights.T * 2.0)[:, :2] @ row, ROWS) == CACHE // (512 * 4)


def test_few_rows_are_not_divided():
    text = str(jax.make_jaxpr(lambda rows: over_rows(lambda row: jnp.tanh(row), rows))(ROWS[:BLOCK]))
    assert "scan" not in text
    assert "remat" not in text


def test_rounded_events_take_a_few_points_at_a_time(monkeypatch):
    rounded = fd.Rounded(BASE, 0.1, points=8)
    expected = np.asarray(rounded.log_prob(ROWS))
    slope = slopes(rounded, ROWS)
    monkeypatch.setattr("flowdensity.distributions.rounded.MAX_EVENTS", 2 * len(ROWS))
    assert "scan" in str(jax.make_jaxpr(rounded.log_prob)(ROWS))
    np.testing.assert_array_equal(rounded.log_prob(ROWS), expected)
    np.testing.assert_allclose(slopes(rounded, ROWS), slope, rtol=1e-5, atol=1e-6)
