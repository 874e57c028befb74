"""Losses and the draws they are made of, against closed forms for Gaussians."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import EPS32, GaussianFlow, untrained_flow

import flowdensity as fd
from flowdensity.training.losses import (
    Sample,
    draw_kernels,
    draw_matching,
    matching_loss,
    stratified_times,
)

COUNT = 50_000


def spread(values) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_times_are_one_to_a_stratum(count):
    times = np.asarray(stratified_times(jr.key(0), count))
    within = times * count - np.arange(count)
    rounding = 4.0 * EPS32 * count
    assert np.all((within >= -rounding) & (within <= 1.0 + rounding))
    if count == 1000:
        assert abs(within.mean() - 0.5) < 4.5 / np.sqrt(12.0 * count)  # uniform in its stratum


def test_rows_are_drawn_with_their_contexts():
    states = jnp.arange(20.0).reshape(10, 2)
    drawn = Sample(states, 10.0 * states[:, :1]).draw(jr.key(0), 3000)
    np.testing.assert_array_equal(drawn.contexts, 10.0 * drawn.states[:, :1])
    counts = np.bincount(np.asarray(drawn.states[:, 0] / 2, int), minlength=10)
    # Binomial(3000, 1/10): standard deviation 16.4.
    assert np.all(np.abs(counts - 300) < 4.5 * 16.4)


@pytest.mark.parametrize("path", [fd.CondOT(), fd.Trigonometric()])
def test_matching_draws_follow_the_path(path):
    sample = Sample(jnp.arange(20.0).reshape(10, 2), jnp.arange(10.0)[:, None])
    draws = draw_matching(jr.key(1), sample, path, COUNT)
    assert draws.noise.shape == (COUNT, 2)
    np.testing.assert_array_equal(draws.sample.contexts[:, 0], draws.sample.states[:, 0] / 2.0)
    # Uniform in the path's own time: the empirical distribution of the angles is the path's.
    t = np.linspace(0.05, 0.95, 10)
    share = [np.mean(np.asarray(draws.angles) < a) for a in np.asarray(path.angle(jnp.asarray(t)))]
    np.testing.assert_allclose(share, t, atol=2.0 / COUNT + 1e-5)
    for noise in np.asarray(draws.noise).T:
        mean, error = spread(noise)
        assert abs(mean) < 4.5 * error
        assert abs(np.var(noise) - 1.0) < 4.5 * np.sqrt(2.0 / COUNT)


def gaussian_draws(eigenvalues, path):
    states = jr.normal(jr.key(2), (COUNT, 2)) * jnp.sqrt(eigenvalues)
    draws = draw_matching(jr.key(3), Sample(states, jnp.zeros((COUNT, 0))), path, COUNT)
    # Every row once, so that rows are independent draws.
    return draws._replace(sample=Sample(states, jnp.zeros((COUNT, 0))))


@pytest.mark.parametrize("path", [fd.CondOT(), fd.Trigonometric()])
def test_the_zero_field_has_loss_one_on_white_gaussian_data(path):
    draws = gaussian_draws(jnp.ones(2), path)
    flow = untrained_flow(jr.key(0), np.asarray(draws.sample.states))
    one = jax.jit(jax.vmap(lambda d: matching_loss(flow, jax.tree.map(lambda leaf: leaf[None], d))))
    mean, error = spread(one(draws))
    assert abs(mean - 1.0) < 4.5 * error
    assert matching_loss(flow, draws) == pytest.approx(mean, rel=1e-4)


def test_the_loss_is_least_at_the_exact_field():
    r"""There it is E[Cov(target | y)]/D, whose eigenvalues are v/(v sin^2 + cos^2) for an eigenvalue v of the data's."""
    eigenvalues, path = np.array([3.0, 0.2]), fd.Trigonometric()
    draws = gaussian_draws(jnp.asarray(eigenvalues), path)
    exact = GaussianFlow(np.zeros(2), np.diag(eigenvalues))

    def one(covariance, draw):
        flow = GaussianFlow(np.zeros(2), np.diag(covariance))
        return matching_loss(flow, jax.tree.map(lambda leaf: leaf[None], draw))

    values = jax.jit(jax.vmap(lambda d: matching_loss(exact, jax.tree.map(lambda leaf: leaf[None], d))))(draws)
    mean, error = spread(values)
    angles = (np.arange(10_000) + 0.5) / 10_000 * np.pi / 2.0
    expected = np.mean([v / (v * np.sin(angles) ** 2 + np.cos(angles) ** 2) for v in eigenvalues])
    assert abs(mean - expected) < 4.5 * error
    for wrong in ([2.0, 0.2], [3.0, 0.4], [1.0, 1.0]):
        other = jax.jit(jax.vmap(lambda d, wrong=wrong: one(wrong, d)))(draws)
        gap, error = spread(other - values)  # paired
        assert gap > 4.5 * error


# Kernel draws ------------------------------------------------------------------------------------

RADIUS = np.array([3.0, 4.0])


def kernels(rho, tails, count=COUNT, path=None):
    sample = Sample(jnp.asarray(RADIUS, jnp.float32)[None], jnp.array([[7.0]]))
    return draw_kernels(jr.key(4), sample, path or fd.CondOT(), count, rho=rho, tails=tails, directions=1)


def test_with_rho_one_and_no_tails_the_centres_are_the_data_on_the_path():
    drawn = kernels(1.0, 0.0, count=1000)
    np.testing.assert_allclose(drawn.centre, np.sin(drawn.time)[:, None] * RADIUS, rtol=1e-5)
    np.testing.assert_allclose(drawn.width, np.maximum(np.cos(drawn.time), 0.01), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(drawn.context, np.full((1000, 1), 7.0))
    assert np.all((np.asarray(drawn.time) >= 0.0) & (np.asarray(drawn.time) <= np.pi / 2.0 + 1e-6))


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0])
def test_points_have_the_law_of_the_path_whatever_rho(rho):
    """y = c + h eta = sin x_1 + cos e in law: centre and kernel share the noise out between them."""
    drawn = kernels(rho, 0.0)
    wide = rho * np.cos(drawn.time) > 0.01
    noise = (drawn.centre + drawn.width[:, None] * drawn.noise[:, 0] - np.sin(drawn.time)[:, None] * RADIUS)[wide]
    noise = np.asarray(noise / np.cos(drawn.time)[wide][:, None], np.float64)
    count = wide.sum()
    assert count > 0.8 * COUNT
    assert np.all(np.abs(noise.mean(0)) < 4.5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=4.5 * np.sqrt(2.0 / count))
    angles = np.asarray(drawn.time)[wide]
    assert abs(np.corrcoef(angles, np.square(noise).sum(1))[0, 1]) < 4.5 / np.sqrt(count)


def test_a_share_of_the_centres_is_inflated_up_to_four_times():
    tails = 0.15
    drawn = kernels(1.0, tails)
    middle = np.sin(drawn.time) > 0.1
    stretch = (np.asarray(drawn.centre) / (np.sin(drawn.time)[:, None] * RADIUS))[middle, 0]
    count = middle.sum()
    assert stretch.min() > 1.0 - 1e-5
    assert stretch.max() < 4.0 + 1e-5
    inflated = stretch > 1.0 + 1e-5
    assert abs(inflated.mean() - tails) < 4.5 * np.sqrt(tails * (1.0 - tails) / count)
    mean, error = spread(np.log(stretch[inflated]) / np.log(4.0))
    assert abs(mean - 0.5) < 4.5 * error  # uniform in the logarithm
