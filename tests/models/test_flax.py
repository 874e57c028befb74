"""Networks written in flax, against closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro.infer import MCMC, NUTS
from scipy.stats import norm

import flowdensity as fd

BETAS = np.linspace(1e-4, 0.02, 1000)
KEPT = jnp.asarray(np.cumprod(1.0 - BETAS), jnp.float32)
VARIANCES = np.array([0.25, 2.0])


class Stretch(nnx.Module):
    """The velocity x * rate, which carries N(0, 1) to N(0, exp(2 rate))."""

    def __init__(self, rates: np.ndarray):
        self.rates = nnx.Param(jnp.asarray(rates))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.rates[...] * x


class GaussianNoise(nnx.Module):
    """The best guess of the noise in independent normals with some variances, at DDPM's steps."""

    def __init__(self, variances: np.ndarray):
        self.variances = nnx.Param(jnp.asarray(variances, jnp.float32))

    def __call__(self, x: jax.Array, step: jax.Array) -> jax.Array:
        kept = jnp.interp(step, jnp.arange(1000.0), KEPT)
        return x * jnp.sqrt(1.0 - kept) / (kept * self.variances[...] + 1.0 - kept)


POINTS = np.float32(np.random.default_rng(0).normal(size=(20, 2)))


@pytest.mark.parametrize("held", ["as parameters", "in a closure"])
def test_a_velocity_in_flax(held):
    rates = np.array([0.5, -0.3], np.float32)
    network = Stretch(rates)
    velocity = (
        jax.tree_util.Partial(lambda net, t, x, context: net(x), network)
        if held == "as parameters"
        else lambda t, x, context: network(x)
    )
    model = fd.VelocityField(velocity, base=dist.Normal(0, 1).expand([2]).to_event(1))
    expected = norm(0.0, np.exp(rates)).logpdf(POINTS).sum(1)
    np.testing.assert_allclose(fd.FlowDensity(model).log_prob(POINTS), expected, rtol=1e-4, atol=1e-4)


def test_the_parameters_of_a_flax_module_have_gradients():
    """d/d rate of log N(x; 0, exp(2 rate)) is x^2 exp(-2 rate) - 1."""
    rates = np.array([0.5, -0.3], np.float32)

    def log_prob(network):
        velocity = jax.tree_util.Partial(lambda net, t, x, context: net(x), network)
        model = fd.VelocityField(velocity, base=dist.Normal(0, 1).expand([2]).to_event(1))
        return jnp.sum(fd.FlowDensity(model).log_prob(POINTS))

    slope = nnx.grad(log_prob)(Stretch(rates))
    expected = np.sum(np.square(POINTS) * np.exp(-2.0 * rates) - 1.0, axis=0)
    np.testing.assert_allclose(slope["rates"][...], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_noise_predictor_in_flax_is_wrapped_distilled_and_sampled():
    """Independent normals: log_prob with either divergence, and NUTS."""
    network = GaussianNoise(VARIANCES)
    model = fd.from_ddpm(lambda step, x, context: network(x, step), (2,), betas=BETAS)
    exact = fd.FlowDensity(model)
    # The path starts at a(0)^2 = 4e-5 and stops at a noise of 1e-4: both shift the variances by as much.
    expected = norm(0.0, np.sqrt(VARIANCES)).logpdf(POINTS).sum(1)
    reference = np.asarray(exact.log_prob(POINTS), np.float64)
    np.testing.assert_allclose(reference, expected, atol=5e-3)

    data = np.random.default_rng(1).normal(size=(1000, 2)) * np.sqrt(VARIANCES)
    divergence, _ = fd.fit_divergence(
        jr.key(0), model, data, training=fd.Training(steps=300, batch_size=128), progress=False
    )
    density = exact.with_divergence(divergence)
    np.testing.assert_allclose(density.log_prob(POINTS), reference, atol=0.2)

    mcmc = MCMC(NUTS(lambda: numpyro.sample("x", density)), num_warmup=150, num_samples=400, progress_bar=False)
    mcmc.run(jr.key(1))
    draws = np.asarray(mcmc.get_samples()["x"], np.float64)
    # A variance estimated from at least 50 effective draws.
    np.testing.assert_allclose(draws.var(0), VARIANCES, rtol=4.5 * np.sqrt(2.0 / 50.0))
