"""Losses and the draws they are made of, against closed forms for Gaussians."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import ExactGaussianFlow, central_difference, random_flow, to64, untrained_flow, x64

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.training.losses import (
    LogDensityLabels,
    draw_matching,
    errors_at,
    far_loss,
    less_reference,
    log_density_loss,
    matching_loss,
)

COUNT = 50_000


def spread(values) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def on_path(path):
    return eqx.tree_at(lambda flow: flow.path, random_flow(jr.key(9), 2), path)


@pytest.mark.parametrize("path", [fd.paths.CondOT(), fd.paths.Trigonometric()])
def test_matching_draws_follow_the_path_and_the_likelihood(path):
    sample = Sample(jnp.arange(20.0).reshape(10, 2), jnp.arange(10.0)[:, None])
    draws = draw_matching(jr.key(1), sample, on_path(path), COUNT)
    assert draws.noise.shape == (COUNT, 2)
    np.testing.assert_array_equal(draws.sample.contexts[:, 0], draws.sample.states[:, 0] / 2.0)
    # Half of them uniform in the path's own time, and half with the density min(tan, 10), integrated numerically.
    t = np.linspace(0.05, 0.95, 10)
    places = np.asarray(path.angle(jnp.asarray(t)), np.float64)
    grid = np.linspace(0.0, 0.5 * np.pi, 200_001)
    weight = np.minimum(np.tan(grid), 10.0)
    below = np.insert(np.cumsum(0.5 * (weight[1:] + weight[:-1])), 0, 0.0)
    expected = 0.5 * t + 0.5 * np.interp(places, grid, below / below[-1])
    share = [np.mean(np.asarray(draws.angles) < place) for place in places]
    np.testing.assert_allclose(share, expected, atol=4.0 / COUNT + 1e-5)
    for noise in np.asarray(draws.noise).T:
        mean, error = spread(noise)
        assert abs(mean) < 4.5 * error
        assert abs(np.var(noise) - 1.0) < 4.5 * np.sqrt(2.0 / COUNT)


def test_no_angle_is_beyond_the_ends_of_a_model():
    flow = random_flow(jr.key(9), 2)
    shared = (flow.scaling, flow.context_scaling, flow.reach)
    for prediction, first, last in (("noise", 0.01, 0.5 * np.pi), ("data", 0.0, 0.5 * np.pi - 0.01)):
        model = fd.models.GaussianFlow(flow.network, fd.paths.VariancePreserving(), *shared, prediction)
        angles = draw_matching(jr.key(1), Sample(jnp.zeros((2, 2)), jnp.zeros((2, 0))), model, COUNT).angles
        assert np.float32(first) <= angles.min()
        assert angles.max() <= np.float32(last)


def gaussian_draws(eigenvalues, path):
    states = jr.normal(jr.key(2), (COUNT, 2)) * jnp.sqrt(eigenvalues)
    draws = draw_matching(jr.key(3), Sample(states, jnp.zeros((COUNT, 0))), on_path(path), COUNT)
    # Every row once, so that rows are independent draws.
    return draws._replace(sample=Sample(states, jnp.zeros((COUNT, 0))))


@pytest.mark.parametrize("path", [fd.paths.CondOT(), fd.paths.Trigonometric()])
def test_the_zero_field_has_loss_one_on_white_gaussian_data(path):
    draws = gaussian_draws(jnp.ones(2), path)
    flow = untrained_flow(jr.key(0), np.asarray(draws.sample.states))
    one = jax.jit(jax.vmap(lambda d: matching_loss(flow, jax.tree.map(lambda leaf: leaf[None], d))))
    mean, error = spread(one(draws))
    assert abs(mean - 1.0) < 4.5 * error
    assert matching_loss(flow, draws) == pytest.approx(mean, rel=1e-4)


def test_the_loss_is_least_at_the_exact_field():
    r"""There it is E[Cov(target | y)]/D, whose eigenvalues are v/(v sin^2 + cos^2) for an eigenvalue v of the data's."""
    eigenvalues, path = np.array([3.0, 0.2]), fd.paths.Trigonometric()
    draws = gaussian_draws(jnp.asarray(eigenvalues), path)
    exact = ExactGaussianFlow(np.zeros(2), np.diag(eigenvalues))

    def one(covariance, draw):
        flow = ExactGaussianFlow(np.zeros(2), np.diag(covariance))
        return matching_loss(flow, jax.tree.map(lambda leaf: leaf[None], draw))

    values = jax.jit(jax.vmap(lambda d: matching_loss(exact, jax.tree.map(lambda leaf: leaf[None], d))))(draws)
    mean, error = spread(values)
    angles = (np.arange(10_000) + 0.5) / 10_000 * np.pi / 2.0
    loss = np.mean([v / (v * np.sin(angles) ** 2 + np.cos(angles) ** 2) for v in eigenvalues], axis=0)
    # Half of the angles are uniform and half weighed as the likelihood weighs them.
    expected = 0.5 * np.mean(loss) + 0.5 * np.average(loss, weights=np.minimum(np.tan(angles), 10.0))
    assert abs(mean - expected) < 4.5 * error
    for wrong in ([2.0, 0.2], [3.0, 0.4], [1.0, 1.0]):
        other = jax.jit(jax.vmap(lambda d, wrong=wrong: one(wrong, d)))(draws)
        gap, error = spread(other - values)  # paired
        assert gap > 4.5 * error


def test_the_loss_far_from_the_data_is_that_of_states_at_one_to_three_reaches():
    sample = Sample(jnp.zeros((10, 2)), jnp.zeros((10, 0)))
    flow = untrained_flow(jr.key(2), np.random.default_rng(0).normal(size=(500, 2)))
    assert far_loss(jr.key(0), flow, sample, 100) == 0.0
    constant = eqx.tree_at(lambda f: f.network.outward.bias, flow, jnp.array([3.0, 4.0]))
    terms = jax.vmap(lambda key: far_loss(key, constant, sample, 1))(jr.split(jr.key(1), COUNT))
    mean, error = spread(terms)
    # The squash's factor, squared, over radii that are uniform in their logarithm.
    radii = 3.0 ** ((np.arange(10_000) + 0.5) / 10_000)
    expected = 12.5 * np.mean((1.0 + radii**4) ** -0.5)
    assert abs(mean - expected) < 4.0 * error
    assert terms.min() > 12.5 * (1.0 + 3.0**4) ** -0.5 * (1.0 - 1e-5)
    assert terms.max() < 12.5 * 2.0**-0.5 * (1.0 + 1e-5)


def test_the_log_density_loss_is_a_weighted_sum_of_squares():
    """A network of zeros has departures of zero; a network has no loss on its own labels."""
    rng = np.random.default_rng(0)
    states, contexts = rng.normal(size=(50, 2)), rng.normal(size=(50, 1))
    departures, slopes = 3.0 * rng.normal(size=50), rng.normal(size=(50, 3))
    network = fd.networks.LogDensityNetwork(jr.key(0), 2, 1, reach=jnp.asarray(4.0), scale=jnp.asarray(1.5), width=8)
    labels = LogDensityLabels(*(jnp.asarray(each, jnp.float32) for each in (states, contexts, departures, slopes)))
    terms = np.square(departures / 1.5) + np.mean(np.square(slopes / 0.7), axis=1)
    expected = np.mean(terms / (1.0 + np.square(departures / 3.0)))
    np.testing.assert_allclose(log_density_loss(network, labels, jnp.asarray(0.7)), expected, rtol=1e-5)

    weight = jr.normal(jr.key(1), network.network.outward.weight.shape)
    other = eqx.tree_at(lambda n: n.network.outward.weight, network, weight)
    nothing = jax.tree.map(jnp.zeros_like, labels)._replace(states=labels.states, contexts=labels.contexts)
    full, full_slopes = errors_at(other, nothing)
    own, own_slopes = less_reference(other, nothing._replace(values=full, slopes=full_slopes))[2:]
    right = labels._replace(values=own, slopes=own_slopes)
    assert log_density_loss(other, right, jnp.asarray(0.7)) < 1e-10
    numeric = central_difference(lambda x: departure_64(other, x), np.concatenate([states[0], contexts[0]]))
    np.testing.assert_allclose(own_slopes[0], numeric, rtol=1e-4)


def departure_64(network: fd.networks.LogDensityNetwork, inputs: np.ndarray) -> float:
    with x64():
        return float(to64(network).departure(jnp.asarray(inputs[:2]), jnp.asarray(inputs[2:])))
