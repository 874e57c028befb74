import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal, norm

import flowdensity as fd


def cells(low, high):
    """Log probability of an interval of the standard normal."""
    return np.log(norm.cdf(high) - norm.cdf(low))


@pytest.mark.parametrize(("points", "tolerance"), [(1, 0.1), (16, 0.002), (64, 0.0001)])
def test_a_cell_has_its_probability(points, tolerance):
    """Cells of half a deviation, in closed form: the more points, the closer."""
    values = 0.5 * np.arange(-6, 7)
    rounded = fd.Rounded(dist.Normal(0.0, 1.0), unit=0.5, points=points)
    np.testing.assert_allclose(rounded.log_prob(values), cells(values - 0.25, values + 0.25), atol=tolerance)


def test_a_cell_of_two_correlated_columns_has_its_probability():
    """Rectangles of a bivariate normal by its distribution function."""
    covariance = np.array([[1.0, 0.7], [0.7, 1.0]])
    rounded = fd.Rounded(dist.MultivariateNormal(jnp.zeros(2), jnp.asarray(covariance)), unit=[0.5, 1.0])
    values = np.array([[0.0, 0.0], [0.5, 1.0], [-1.0, 1.0], [1.5, -1.0]])
    half = np.array([0.25, 0.5])
    expected = [multivariate_normal.cdf(v + half, cov=covariance, lower_limit=v - half) for v in values]
    np.testing.assert_allclose(rounded.log_prob(values), np.log(expected), atol=5e-3)


@pytest.mark.parametrize("batch", [(3,), (64,), (5, 1), (1,)])
def test_fewer_axes_than_the_batch(batch):
    """One value under many laws: as each by itself."""
    locations = jnp.linspace(-1.0, 1.0, int(np.prod(batch))).reshape(batch)
    rounded = fd.Rounded(dist.Normal(locations, 1.0), 0.5)
    expected = cells(0.25 - np.asarray(locations), 0.75 - np.asarray(locations))
    np.testing.assert_allclose(rounded.log_prob(0.5), expected, atol=1e-4)
    vectors = fd.Rounded(dist.Normal(locations[..., None], jnp.ones(2)).to_event(1), 0.5)
    np.testing.assert_allclose(vectors.log_prob(jnp.full(2, 0.5)), 2.0 * expected, atol=2e-3)
    assert vectors.log_prob(jnp.full((7, *[1] * len(batch), 2), 0.5)).shape == (7, *batch)


def test_a_value_of_another_shape_is_refused():
    rounded = fd.Rounded(dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    for value in (0.0, np.zeros(3), np.zeros((5, 1))):
        with pytest.raises(ValueError, match=r"expected `value` with shape \(..., 2\)"):
            rounded.log_prob(value)


def test_what_is_not_rounded_keeps_its_density():
    base = dist.Normal(jnp.array([0.0, 1.0]), 1.0).to_event(1)
    values = np.array([[0.3, 1.0], [-1.1, 2.0]])
    expected = norm.logpdf(values[:, 0]) + cells(values[:, 1] - 1.5, values[:, 1] - 0.5)
    np.testing.assert_allclose(fd.Rounded(base, [0.0, 1.0], points=256).log_prob(values), expected, atol=1e-3)
    np.testing.assert_allclose(fd.Rounded(base, 0.0).log_prob(values), base.log_prob(values), rtol=1e-5)


def test_what_is_beyond_the_support_counts_for_nothing():
    """Half of the cell at 0 is below it: the probability is that of the other half, and its gradient is finite."""

    def log_prob(rate):
        return fd.Rounded(dist.Exponential(rate), unit=1.0, points=256).log_prob(0.0)

    np.testing.assert_allclose(log_prob(1.3), np.log(1.0 - np.exp(-0.65)), atol=1e-3)
    slope = 0.5 * np.exp(-0.65) / (1.0 - np.exp(-0.65))
    np.testing.assert_allclose(jax.grad(log_prob)(1.3), slope, rtol=5e-3)


def test_samples_are_multiples_and_as_likely_as_they_say():
    rounded = fd.Rounded(dist.Normal(0.3, 1.0), unit=0.5, points=256)
    draws = np.asarray(rounded.sample(jr.key(0), (20_000,)))
    values, counts = np.unique(draws, return_counts=True)
    np.testing.assert_allclose(values / 0.5, np.round(values / 0.5))
    expected = np.exp(np.asarray(rounded.log_prob(values), np.float64))
    error = np.sqrt(expected * (1 - expected) / len(draws)) + 1e-4
    assert np.all(np.abs(counts / len(draws) - expected) < 4.5 * error)


def test_a_learned_likelihood_of_rounded_data(conditional_fit):
    """In a plate, with gradients into the condition that central differences confirm."""
    density = conditional_fit.density
    contexts = jr.normal(jr.key(1), (4, *density.context_shape))

    def model(shift, y):
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", fd.Rounded(density.given(contexts + shift), unit=0.25), obs=y)

    y = np.round(np.asarray(density.given(contexts).sample(jr.key(0))) / 0.25) * 0.25

    def joint(shift):
        return log_density(model, (shift, y), {}, {})[0]

    step = 1e-2
    central = (joint(step) - joint(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(joint)(0.0), central, rtol=2e-2, atol=2e-2)


def test_it_batches_and_scans():
    rounded = fd.Rounded(dist.Normal(jnp.arange(3.0)[:, None], jnp.ones(2)).to_event(1), unit=[0.5, 1.0])
    assert (rounded.batch_shape, rounded.event_shape) == ((3,), (2,))
    values = rounded.sample(jr.key(0), (5,))
    alone = [
        fd.Rounded(dist.Normal(float(i), jnp.ones(2)).to_event(1), [0.5, 1.0]).log_prob(values[:, i]) for i in range(3)
    ]
    np.testing.assert_allclose(rounded.log_prob(values), np.stack(alone, 1), rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(lambda d, x: d.log_prob(x))(rounded, values), rounded.log_prob(values), rtol=1e-5
    )
    each = jax.vmap(lambda d, x: d.log_prob(x), in_axes=(jax.tree.map(lambda _: None, rounded), 0))
    np.testing.assert_allclose(each(rounded, values), rounded.log_prob(values), rtol=1e-5)

    def model(y):
        def step(level, y):
            numpyro.sample("y", fd.Rounded(dist.Normal(level, 1.0).expand((2,)).to_event(1), 0.5), obs=y)
            return level + 1.0, None

        scan(step, 0.0, y)

    y = np.zeros((3, 2))
    total, _ = log_density(model, (y,), {}, {})
    expected = sum(2 * float(fd.Rounded(dist.Normal(float(i), 1.0), 0.5).log_prob(0.0)) for i in range(3))
    np.testing.assert_allclose(total, expected, rtol=1e-2)


def test_it_is_discrete_to_numpyro():
    rounded = fd.Rounded(dist.Normal(0.0, 1.0), unit=0.1, validate_args=True)
    assert rounded.is_discrete
    assert not rounded.has_rsample
    np.testing.assert_allclose(rounded.log_prob(0.35), cells(0.3, 0.4), atol=1e-4), "recorded more finely"
    with pytest.warns(UserWarning, match="Out-of-support"):
        rounded.log_prob(np.nan)


def test_units_that_are_traced_are_refused():
    with pytest.raises(TypeError, match="`unit` as numbers that are known before tracing"):
        jax.jit(lambda unit: fd.Rounded(dist.Normal(0.0, 1.0), unit).log_prob(0.0))(0.5)
    inside = jax.jit(lambda x: fd.Rounded(dist.Normal(0.0, 1.0), 0.5).log_prob(x))
    np.testing.assert_allclose(inside(0.5), cells(0.25, 0.75), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"base": 3}, TypeError, "of type Distribution; got 3"),
        ({"base": dist.Poisson(1.0)}, ValueError, "continuous `base`; got Poisson"),
        (
            {"base": dist.Dirichlet(jnp.ones(3))},
            ValueError,
            "as many dimensions as coordinates; got Dirichlet.* with 2 dimensions for 3",
        ),
        ({"base": dist.Normal(jnp.zeros(30_000), 1.0).to_event(1)}, ValueError, "at most 21201 coordinates; got 30000"),
        ({"unit": [1.0, 2.0]}, ValueError, r"broadcasts to \(\); got \(2,\)"),
        ({"unit": "a"}, TypeError, "array of real numbers"),
        ({"points": 12}, ValueError, "power of 2.*got 12. Fix: points=16"),
        ({"points": 0}, ValueError, "`points` as an integer of at least 1"),
    ],
    ids=[
        "no distribution",
        "discrete",
        "simplex",
        "30,000 coordinates",
        "two units for a number",
        "text",
        "12 points",
        "no points",
    ],
)
def test_what_cannot_be_rounded_is_refused(arguments, error, says):
    with pytest.raises(error, match=rf"Rounded expected .*{says}"):
        fd.Rounded(**({"base": dist.Normal(0.0, 1.0)} | arguments))
