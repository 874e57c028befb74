"""What follows from the head and the velocity being bounded: gF is in the Stein class of the flow's own law at every angle."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowdensity as fd
from flowdensity.models.flows import standard_normal_log_prob
from flowdensity.solving import FixedStep, trajectory

EMPTY = jnp.zeros(0)


def law_at(model: fd.models.AbstractProbabilityFlow, angle: float, state: jax.Array) -> jax.Array:
    """Log density of the flow's states at an angle, by the exact divergence on the way back to the noise."""

    def field(s, pair):
        return fd.ExactDivergence()(model, s, pair[0], EMPTY)

    noise, change = FixedStep(16).integrate(
        field, lambda steps: jnp.linspace(0.0, angle, steps + 1), (state, jnp.zeros(())), reverse=True
    )
    return standard_normal_log_prob(noise) + change


@pytest.mark.slow
@pytest.mark.parametrize("angle", [0.3, 0.8, 1.2, 1.5])
def test_the_langevin_stein_operator_has_mean_zero_over_samples_of_the_model(mixture_fit, angle):
    """E[div u + s . u] = 0 for u = g F, with s the score of the flow's own law at that angle."""
    model, head = mixture_fit.density.model, mixture_fit.density.divergence.head
    noise = jr.normal(jr.key(50), (4000, 2))
    states = jax.lax.map(
        lambda e: trajectory(model, jnp.array([0.0, angle]), e, EMPTY, FixedStep(16))[-1], noise, batch_size=1000
    )

    def product(y):
        field, hidden = model.network_velocity(jnp.asarray(angle), y, EMPTY)
        return head(jnp.asarray(angle), y, hidden) * field

    def parts(y):
        score = jax.grad(lambda z: law_at(model, angle, z))(y)
        return jnp.trace(jax.jacfwd(product)(y)), jnp.dot(score, product(y)), jnp.dot(-y, product(y))

    divergence, along_score, along_normal = (
        np.asarray(part, np.float64) for part in jax.lax.map(parts, states, batch_size=500)
    )
    operator = divergence + along_score
    error = operator.std() / np.sqrt(len(operator))
    assert abs(operator.mean()) < 4.5 * error
    # With another law's score it is not zero, so that the test above can fail.
    if angle > 1.0:
        wrong = divergence + along_normal
        assert abs(wrong.mean()) > 4.5 * wrong.std() / np.sqrt(len(wrong))


def test_the_log_density_falls_quadratically_along_every_ray(mixture_fit):
    """Beyond the data it differs from that of the fitted Gaussian by a bounded amount, and falls all the way."""
    density = mixture_fit.density
    scaling = density.model.scaling
    angles = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
    rays = np.stack([np.cos(angles), np.sin(angles)], 1)
    radii = np.array([10.0, 30.0, 100.0, 300.0, 1000.0])
    whitened = radii[:, None, None] * rays
    events = np.asarray(scaling.location) + whitened @ np.asarray(scaling.scale, np.float64).T
    values = np.asarray(density.log_prob(np.float32(events)), np.float64)
    assert np.all(np.diff(values, axis=0) < 0.0)
    # The leading term is -r^2/2, whatever the ray; what is left grows more slowly than r.
    left = values + 0.5 * np.square(radii)[:, None]
    assert np.all(np.abs(left[2:]) < 0.1 * np.square(radii[2:])[:, None])
    np.testing.assert_allclose(values[-1] / (-0.5 * radii[-1] ** 2), 1.0, atol=0.01)
