"""Which rows are held out, and how they are judged."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from references import random_flow
from scipy.stats import norm

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.training.velocity import SOLVER, HeldRows, _gain, _judge, _repeats_together, _stack


def plain(states: jax.Array, weights: jax.Array | None = None) -> Sample:
    return Sample(states, jnp.zeros((len(states), 0)), weights)


def test_rows_without_repeats_keep_their_order():
    order = jr.permutation(jr.key(0), 50)
    np.testing.assert_array_equal(_repeats_together(order, plain(jr.normal(jr.key(1), (50, 2)))), order)


def test_repeated_rows_are_neighbours():
    """Sixty rows of twenty kinds; the same state in another context is another row."""
    kinds = np.tile(np.arange(20), 3)
    table = Sample(jnp.asarray(kinds[:, None] // 2, float), jnp.asarray(kinds[:, None] % 2, float))
    order = np.asarray(_repeats_together(jr.permutation(jr.key(2), 60), table))
    np.testing.assert_array_equal(np.sort(order), np.arange(60))
    in_order = kinds[order].reshape(20, 3)
    np.testing.assert_array_equal(in_order, in_order[:, :1].repeat(3, axis=1))
    assert np.any(in_order[:, 0] != np.arange(20))


def test_rows_are_judged_by_their_likelihood():
    """Two folds of a flow against the fitted Gaussian: the gain is that of the densities, weighted as the rows are."""
    model, start = random_flow(jr.key(3), 2, size=0.5), random_flow(jr.key(3), 2, size=0.0)
    states = jr.normal(jr.key(4), (2, 30, 2))
    weights = jr.uniform(jr.key(5), (2, 30))
    held = HeldRows(Sample(states, jnp.zeros((2, 30, 0)), weights), jr.split(jr.key(6), 2))
    gain, error = _gain(_stack([start, start]), _stack([model, model]), held)
    density = fd.FlowDensity(model, solver=SOLVER)
    above = np.asarray(density.log_prob(states), np.float64) - norm.logpdf(np.float64(states)).sum(axis=-1)
    share = np.asarray(weights, np.float64)
    share /= share.sum()
    expected = np.sum(share * above)
    np.testing.assert_allclose(gain, expected, atol=1e-5)
    np.testing.assert_allclose(error, np.sqrt(np.sum(np.square(share * (above - expected)))), rtol=1e-4)
    one = HeldRows(plain(states[0], weights[0]), jr.key(6))
    loss = -np.average(density.log_prob(states[0]), weights=weights[0]) / 2.0
    np.testing.assert_allclose(_judge(model, one), loss, rtol=1e-5)
