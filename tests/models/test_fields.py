"""A velocity of the user's own: a linear one, whose density is known, in every dress a callable comes in."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from references import x64
from scipy.linalg import expm
from scipy.stats import multivariate_normal, norm

import flowdensity as fd

RATES = np.array([[0.3, -0.8], [0.5, 0.2]])
SHIFT = np.array([1.0, -0.5])
MEAN, COVARIANCE = np.array([2.0, 1.0]), np.array([[1.5, 0.4], [0.4, 0.3]])
POINTS = np.random.default_rng(0).normal(size=(6, 2)) * 2.0 + [3.0, 1.0]
FINE = fd.FixedStep(200)


def velocity(parameters, t, x, context):
    rates, shift = parameters
    return rates @ x + shift if context is None else rates @ x + shift * context[0]


class Module(eqx.Module):
    rates: jax.Array
    shift: jax.Array

    def __call__(self, t, x, context):
        return velocity((self.rates, self.shift), t, x, context)


class Pair(Module):
    def __call__(self, t, x, context):
        out = super().__call__(t, x, context)
        return out, jnp.concatenate([jnp.sin(x), out])


def dressed():
    parameters = (jnp.asarray(RATES), jnp.asarray(SHIFT))
    return {
        "function": functools.partial(velocity, (RATES, SHIFT)),
        "Partial": jax.tree_util.Partial(velocity, parameters),
        "module": Module(*parameters),
        "with features": Pair(*parameters),
        "numpy": jax.tree_util.Partial(velocity, (RATES, SHIFT)),
    }


def closed_form(time=1.0, shift=SHIFT):
    """x(1) = e^{A t} x(0) + (e^{A t} - 1) A^{-1} b of x(0) ~ N(MEAN, COVARIANCE)."""
    grown = expm(RATES * time)
    return multivariate_normal(
        grown @ MEAN + (grown - np.eye(2)) @ np.linalg.solve(RATES, shift), grown @ COVARIANCE @ grown.T
    )


@pytest.mark.parametrize("name", list(dressed()))
def test_a_linear_velocity_has_the_density_of_its_matrix_exponential(name):
    with x64():
        base = dist.MultivariateNormal(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
        density = fd.FlowDensity(fd.VelocityField(dressed()[name], base), solver=FINE)
        value = jax.jit(lambda d, x: d.log_prob(x))(density, jnp.asarray(POINTS))
        np.testing.assert_allclose(value, closed_form().logpdf(POINTS), rtol=1e-6, atol=1e-6)
    assert density.event_shape == (2,)


def test_time_may_run_down():
    with x64():
        base = dist.MultivariateNormal(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
        field = fd.VelocityField(lambda t, x, c: -velocity((RATES, SHIFT), 1.0 - t, x, c), base, times=(1.0, 0.0))
        density = fd.FlowDensity(field, solver=FINE)
        np.testing.assert_allclose(
            density.log_prob(jnp.asarray(POINTS)), closed_form().logpdf(POINTS), rtol=1e-6, atol=1e-6
        )


def test_a_velocity_of_a_context():
    with x64():
        base = dist.MultivariateNormal(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
        density = fd.FlowDensity(fd.VelocityField(dressed()["module"], base, context_shape=(1,)), solver=FINE)
        for scale in (0.0, 2.0):
            value = density.given(np.array([scale])).log_prob(jnp.asarray(POINTS))
            np.testing.assert_allclose(value, closed_form(shift=scale * SHIFT).logpdf(POINTS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "base",
    [
        dist.Normal(1.0, 2.0),
        dist.Normal(jnp.ones((2, 3)), 2.0).to_event(2),
        dist.Normal(1.0, 2.0).expand([2, 3]).to_event(2),
    ],
    ids=["scalar", "matrix", "expanded"],
)
def test_events_have_the_shape_of_the_base(base):
    with x64():
        density = fd.FlowDensity(fd.VelocityField(lambda t, x, c: 0.5 * x, base), solver=FINE)
        assert density.event_shape == base.event_shape
        x = np.full(base.event_shape, 3.0)
        expected = norm(np.exp(0.5), 2.0 * np.exp(0.5)).logpdf(x).sum()
        np.testing.assert_allclose(density.log_prob(x), expected, rtol=1e-6)
        assert density.sample(jr.key(0), (4,)).shape == (4, *base.event_shape)


@pytest.mark.parametrize("times", [np.array([0.0, 1.0]), jnp.array([0.0, 1.0]), [0, 1]], ids=["numpy", "JAX", "list"])
def test_times_may_be_an_array(times):
    field = fd.VelocityField(lambda t, x, c: 0.5 * x, dist.Normal(0.0, 1.0).expand([2]).to_event(1), times=times)
    np.testing.assert_array_equal(field.times(2), [0.0, 0.5, 1.0])


def test_a_network_may_have_another_precision():
    base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    field = fd.VelocityField(lambda t, x, c: (0.5 * x).astype(jnp.bfloat16), base)
    value, slope = jax.value_and_grad(fd.FlowDensity(field).log_prob)(jnp.array([0.3, -0.4]))
    # dx/dt = x/2 makes deviations of exp(1/2); bfloat16 has eight bits.
    np.testing.assert_allclose(value, norm(0.0, np.exp(0.5)).logpdf([0.3, -0.4]).sum(), atol=0.02)
    assert np.all(np.isfinite(slope))


def test_what_cannot_be_wrapped_is_refused():
    base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)

    def field(t, x, context):
        return 0.5 * x

    with pytest.raises(TypeError, match=r"callable.*got str.*Fix: "):
        fd.VelocityField("velocity", base)
    with pytest.raises(TypeError, match=r"expected `base` to be a normal.*got Gamma.*Fix: "):
        fd.VelocityField(field, dist.Gamma(1.0, 1.0).expand([2]).to_event(1))
    with pytest.raises(TypeError, match=r"without batch axes.*\(2,\).*Fix: "):
        fd.VelocityField(field, dist.Normal(jnp.zeros(2), 1.0))
    with pytest.raises(ValueError, match=r"shape of one event, \(2,\); got \(1,\).*Fix: "):
        fd.VelocityField(lambda t, x, c: x[:1], base)
    with pytest.raises(ValueError, match=r"expected `times`.*Fix: "):
        fd.VelocityField(field, base, times=(1.0, 1.0))
    for normal in (
        dist.MultivariateNormal(jnp.zeros((3, 2)), jnp.eye(2)).to_event(1),
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)).expand([3]).to_event(1),
    ):
        with pytest.raises(TypeError, match=r"`base` with one-dimensional events; got .*\(3, 2\).*Fix: "):
            fd.VelocityField(lambda t, x, c: x, normal)
    density = fd.FlowDensity(fd.VelocityField(field, base))
    with pytest.raises(TypeError, match=r"sample_diffusion expected a model that follows .*got VelocityField.*Fix: "):
        density.sample_diffusion(jr.key(0))
