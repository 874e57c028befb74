"""Flow: the fitted Gaussian before training, bounded and Lipschitz after it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import EPS32, cases, random_flow, to64, untrained_flow, x64
from scipy.stats import lognorm, multivariate_normal

import flowdensity as fd

NO_CONTEXT = jnp.zeros(0)


def table(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


def fitted_normal(flow: fd.models.GaussianFlow):
    factor = np.asarray(flow.scaling.scale, np.float64)
    return multivariate_normal(np.asarray(flow.scaling.location, np.float64), factor @ factor.T)


UNTRAINED = {
    f"{dim}-{type(divergence).__name__}": (dim, divergence)
    for divergence in (fd.ExactDivergence(), fd.HutchinsonDivergence(jr.key(1)))
    for dim in (1, 2, 6)
}


@pytest.mark.parametrize(
    ("dim", "divergence"), cases(UNTRAINED, [name for name in UNTRAINED if "Exact" in name or "2" in name])
)
def test_an_untrained_flow_is_the_fitted_gaussian(dim, divergence):
    events = table(500, dim)
    flow = untrained_flow(jr.key(0), events)
    density = fd.FlowDensity(flow, divergence=divergence)
    far = np.concatenate([events[:50], 30.0 * events[:10], np.zeros((1, dim))]).astype(np.float32)
    expected = fitted_normal(flow).logpdf(far.reshape(len(far), dim))
    # float32: each of the dim squares and products is rounded, against terms of the size of the value.
    np.testing.assert_allclose(density.log_prob(far), expected, rtol=16.0 * dim * EPS32, atol=16.0 * dim * EPS32)


def test_an_untrained_flow_on_a_positive_support_is_the_fitted_log_normal():
    events = np.exp(0.3 + 0.7 * np.random.default_rng(2).normal(size=400))
    with x64():
        density = fd.FlowDensity(untrained_flow(jr.key(0), events, support=constraints.positive))
        at = np.geomspace(1e-3, 1e3, 13)
        reference = lognorm(s=np.log(events).std(), scale=np.exp(np.log(events).mean()))
        np.testing.assert_allclose(density.log_prob(at), reference.logpdf(at), rtol=1e-9)


def test_an_untrained_flow_samples_the_fitted_gaussian():
    events = table(500, 2)
    flow = untrained_flow(jr.key(0), events)
    draws = np.asarray(fd.FlowDensity(flow).sample(jr.key(3), (20_000,)), np.float64)
    white = np.linalg.solve(np.asarray(flow.scaling.scale), (draws - np.asarray(flow.scaling.location)).T)
    # Standard errors of a mean and of a covariance entry of N(0, I): 1/sqrt(n), and sqrt(2/n) at most.
    np.testing.assert_allclose(white.mean(1), 0.0, atol=4.5 / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(white), np.eye(2), atol=4.5 * np.sqrt(2.0 / 20_000))


def norms(network: fd.networks.ResidualMLP, reach: float) -> tuple[float, float]:
    """Lipschitz constant of a silu network in a state of length `reach` at most, and a bound on its output at zero state."""
    lipschitz_silu = 1.1

    def size(layer: eqx.nn.Linear) -> float:
        return float(np.linalg.norm(np.asarray(layer.weight), 2))

    slope = float(np.linalg.norm(np.asarray(network.inward.weight)[:, : network.dim], 2))
    for first, _, second in network.blocks:
        slope *= 1.0 + lipschitz_silu**2 * size(first) * size(second)
    slope *= lipschitz_silu
    # The shares of the experts change by no more, in the sum of absolute values, than their logits do.
    expert = max(float(np.linalg.norm(np.asarray(each), 2)) for each in network.experts)
    slope = slope * (size(network.outward) + size(network.gate) * expert * reach) + expert
    at_zero = max(
        float(np.linalg.norm(network(jnp.asarray(angle), jnp.zeros(network.dim), NO_CONTEXT)[0]))
        for angle in np.linspace(0.0, np.pi / 2.0, 200)
    )
    return slope, 1.1 * at_zero


@pytest.mark.parametrize("dim", [1, 3])
def test_the_field_is_bounded_fades_and_is_lipschitz(dim):
    flow = random_flow(jr.key(dim), dim, reach=2.0)
    reach = 2.0
    slope, at_zero = norms(flow.network, reach)
    bound = at_zero + slope * reach  # of |f| on the ball that the squash maps to

    rng = np.random.default_rng(dim)
    count = 400
    radii = np.geomspace(1e-2, 1e6, count)
    directions = rng.normal(size=(2, count, dim))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    angles = rng.uniform(0.0, np.pi / 2.0, count)
    states, step = radii[:, None] * directions[0], 1e-4
    with x64():
        flow = to64(flow)
        field = jax.jit(jax.vmap(lambda a, y: flow.velocity(a, y, NO_CONTEXT)))
        here = np.asarray(field(jnp.asarray(angles), jnp.asarray(states)))
        there = np.asarray(field(jnp.asarray(angles), jnp.asarray(states + step * directions[1])))
    size = np.linalg.norm(here, axis=1)
    assert np.all(size <= bound * np.minimum(1.0, reach / radii))
    # F = m f(sigma(y)): |dF| <= |dm| |f| + |df|, with |dm| <= 1/reach and |d sigma| <= 1.
    assert np.all(np.linalg.norm(there - here, axis=1) / step <= bound / reach + slope)
    assert size[: count // 2].max() > 0.1  # it is not the zero field that was looked at


def test_the_field_is_finite_in_single_precision_however_far():
    flow = random_flow(jr.key(0), 3)
    for size in (1e3, 1e6, 1e9):
        velocity, slope = jax.jvp(
            lambda y: flow.velocity(jnp.asarray(0.7), y, NO_CONTEXT), (jnp.full(3, size),), (jnp.ones(3),)
        )
        assert jnp.all(jnp.isfinite(velocity)), size
        assert jnp.all(jnp.isfinite(slope)), size


def test_a_conditional_field_sees_its_context():
    flow = random_flow(jr.key(4), 2, context_dim=3)
    slope = jax.jacfwd(lambda c: flow.velocity(jnp.asarray(0.7), jnp.array([0.3, -0.2]), c))(jnp.zeros(3))
    assert slope.shape == (2, 3)
    assert np.all(np.abs(slope) > 1e-4)
    assert flow.context_shape == (3,)


def test_a_context_beyond_the_reach_is_seen_as_at_it():
    free = random_flow(jr.key(4), 2, context_dim=3)
    reach = 2.0
    flow = eqx.tree_at(lambda f: f.context_reach, free, jnp.asarray(reach), is_leaf=lambda leaf: leaf is None)
    direction = jnp.array([2.0, -1.0, 2.0]) / 3.0

    def velocity(model, size):
        return np.asarray(model.velocity(jnp.asarray(0.7), jnp.array([0.3, -0.2]), size * direction))

    np.testing.assert_allclose(velocity(flow, 0.1 * reach), velocity(free, 0.1 * reach), atol=1e-4)
    for size in (1e2, 1e4, 1e6):
        np.testing.assert_allclose(velocity(flow, size), velocity(free, reach), atol=1e-4)
    assert np.linalg.norm(velocity(free, 1e2) - velocity(free, reach)) > 1.0


def test_features_are_the_velocity_and_what_it_was_read_from():
    flow = random_flow(jr.key(5), 2, context_dim=1)
    inputs = np.array([0.1, 0.1, 0.7])
    velocity, hidden = flow.network_velocity(jnp.asarray(0.2), jnp.asarray(inputs[:2]), jnp.asarray(inputs[2:]))
    network = flow.network
    shares = np.exp(network.gate.weight @ hidden + network.gate.bias)
    experts = np.einsum("k,kij,j->i", shares / shares.sum(), network.experts, inputs)
    # At |y| = 0.14 and reach 4 the squash's factor is 1 to within 1e-6.
    expected = network.outward.weight @ hidden + network.outward.bias + experts
    np.testing.assert_allclose(velocity, expected, rtol=1e-5, atol=1e-6)


def test_on_the_trigonometric_path_steps_are_equal():
    flow = eqx.tree_at(lambda f: f.path, random_flow(jr.key(0), 2), fd.paths.Trigonometric())
    np.testing.assert_allclose(flow.times(5), np.linspace(0.0, 0.5 * np.pi, 6), rtol=1e-6)


def test_steps_are_shorter_near_the_data():
    """They are equal in the root of the angle that is left."""
    times = random_flow(jr.key(0), 2).times(4)
    np.testing.assert_allclose(times, 0.5 * np.pi * (1.0 - np.array([1.0, 0.75, 0.5, 0.25, 0.0]) ** 2), rtol=1e-6)
    assert times[-1] == np.float32(0.5 * np.pi)
