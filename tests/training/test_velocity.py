"""Which rows are held out, and how they are judged."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import random_flow
from scipy.stats import norm

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.training.departure import gain_of, some_of
from flowdensity.training.folds import VALIDATION_SOLVER, HeldRows, held_log_likelihoods, stack
from flowdensity.training.splits import splits


def plain(states: jax.Array, weights: jax.Array | None = None) -> Sample:
    return Sample(states, jnp.zeros((len(states), 0)), weights)


def test_each_row_is_held_out_once():
    table = plain(jr.normal(jr.key(1), (50, 2)))
    pairs = splits(jr.key(0), table, 10, 5)
    np.testing.assert_array_equal(np.sort(np.concatenate([out for _, out in pairs])), np.arange(50))
    for kept, out in pairs:
        np.testing.assert_array_equal(np.sort(np.concatenate([kept, out])), np.arange(50))
    assert np.any(pairs[0][1] != np.arange(10))


@pytest.mark.parametrize("held", [3, 6, 7])
def test_no_row_is_trained_on_and_held_out(held):
    """Sixty rows of twenty kinds, three each; the same state in another context is another row."""
    kind = np.tile(np.arange(20), 3)
    table = Sample(jnp.asarray(kind[:, None] // 2, float), jnp.asarray(kind[:, None] % 2, float))
    for kept, out in splits(jr.key(2), table, held, 5):
        assert (len(kept), len(out)) == (60 - held, held)
        assert not set(kind[kept]) & set(kind[out])
        assert len(set(kind[out])) <= 1 + -(-held // 3)


def test_many_weighted_rows_are_judged_by_a_part_that_stands_for_all():
    rng = np.random.default_rng(0)
    states, weights = rng.normal(size=(5000, 1)), rng.exponential(size=5000)
    part = Sample(jnp.asarray(states, float), jnp.zeros((5000, 0)), jnp.asarray(weights / weights.sum(), float))
    some = some_of(jr.key(0), part, 1000)
    np.testing.assert_allclose(jnp.sum(some.weights), 1.0, rtol=1e-5)
    mean = float(jnp.average(some.states[:, 0], weights=some.weights))
    assert abs(mean - np.average(states[:, 0], weights=weights)) < 4.5 / np.sqrt(1000)
    few = part.take(jnp.arange(1000))
    assert some_of(jr.key(0), few, 1000) is few


@pytest.mark.slow
def test_rows_without_weight_are_no_rows():
    """Of a part that is held out none may have any."""
    rng = np.random.default_rng(1)
    data = np.concatenate([rng.normal(size=(30, 2)), 9.0 + rng.normal(size=(270, 2))])
    weights = np.repeat([1.0, 0.0], [30, 270])
    network = fd.networks.ResidualMLP(jr.key(0), 2, width=4, depth=1, experts=0)
    options = {
        "network": network,
        "training": fd.Training(steps=2),
        "divergence": fd.ExactDivergence(),
        "progress": False,
    }
    _, report = fd.fit_flow(jr.key(0), data, weights=weights, **options)
    history = report.histories["flow"]
    assert np.all(np.isfinite([*history.validation, *history.gain]))


def test_rows_are_judged_by_their_likelihood():
    """Two folds of a flow against the fitted Gaussian: the gain is that of the densities, weighted as the rows are."""
    model, start = random_flow(jr.key(3), 2, size=0.5), random_flow(jr.key(3), 2, size=0.0)
    states = jr.normal(jr.key(4), (2, 30, 2))
    weights = jr.uniform(jr.key(5), (2, 30))
    held = HeldRows(Sample(states, jnp.zeros((2, 30, 0)), weights), jr.split(jr.key(6), 2))
    gains = held_log_likelihoods(stack([model, model]), held) - held_log_likelihoods(stack([start, start]), held)
    gain, error = gain_of(gains, held.sample)
    density = fd.FlowDensity(model, solver=VALIDATION_SOLVER)
    above = np.asarray(density.log_prob(states), np.float64) - norm.logpdf(np.float64(states)).sum(axis=-1)
    share = np.asarray(weights, np.float64)
    share /= share.sum()
    expected = np.sum(share * above)
    np.testing.assert_allclose(gain, expected, atol=1e-5)
    np.testing.assert_allclose(error, np.sqrt(np.sum(np.square(share * (above - expected)))), rtol=1e-4)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=1), held.sample)
    again, of_copies = gain_of(jnp.concatenate([gains, gains], axis=1), twice)
    np.testing.assert_allclose([again, of_copies], [gain, error], rtol=1e-4)
