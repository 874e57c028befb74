"""The network of a whole log density: its quadratic functions against closed forms, and what it is far from the data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import random_log_density, to64, x64
from scipy.special import softmax
from scipy.stats import multivariate_normal

import flowdensity as fd
from flowdensity.models.log_density import QuadraticExperts

NO_CONTEXT = jnp.zeros(0)


def untrained(dim: int, context_dim: int = 0, *, reach: float = 4.0, experts: int) -> fd.networks.LogDensityNetwork:
    reach, scale = jnp.asarray(reach), jnp.asarray(1.5)
    return fd.networks.LogDensityNetwork(
        jr.key(0), dim, context_dim, reach=reach, scale=scale, width=8, experts=experts
    )


def test_experts_are_quadratic_functions_mixed_by_the_hidden_layer():
    rng = np.random.default_rng(0)
    hidden, row, weights = rng.normal(size=8), rng.normal(size=3), rng.normal(size=(5, 24))
    with x64():
        experts = to64(QuadraticExperts(jr.key(0), 3, width=8, experts=5))
        assert float(experts(jnp.asarray(hidden), jnp.asarray(row))) == 0.0
        experts = eqx.tree_at(lambda e: e.weights, experts, jnp.asarray(weights))
        value = float(experts(jnp.asarray(hidden), jnp.asarray(row)))
        shares = softmax(np.asarray(experts.gate.weight) @ hidden + np.asarray(experts.gate.bias))
        squares = np.square(np.asarray(experts.directions.weight) @ row + np.asarray(experts.directions.bias))
    assert squares.shape == (24,)
    quadratic = [0.5 * weight @ squares for weight in weights]
    assert value == pytest.approx(shares @ np.array(quadratic), rel=1e-12)


def test_one_expert_is_any_gaussian():
    """With directions that diagonalise I - S^-1, and their origins at the stationary point of the difference."""
    mean, covariance = np.array([0.7, -0.3]), np.array([[1.5, 0.6], [0.6, 0.8]])
    precision = np.linalg.inv(covariance)
    curvatures, vectors = np.linalg.eigh(np.eye(2) - precision)
    origins = vectors.T @ precision @ mean / curvatures
    points = np.random.default_rng(0).normal(size=(50, 2))
    law = multivariate_normal(mean, covariance)
    with x64():
        network = to64(untrained(2, reach=1e6, experts=1))
        rest = len(network.experts.directions.bias) - 2
        constant = multivariate_normal(np.zeros(2)).logpdf(np.zeros(2)) - law.logpdf(np.zeros(2))
        network = eqx.tree_at(
            lambda n: (n.experts.directions.weight, n.experts.directions.bias, n.experts.weights, n.normalizer),
            network,
            (
                jnp.pad(vectors.T, ((0, rest), (0, 0))),
                jnp.pad(origins, (0, rest)),
                jnp.pad(curvatures, (0, rest))[None] / 1.5,
                jnp.asarray([constant + 0.5 * np.sum(curvatures * np.square(origins))]),
            ),
        )
        values = np.asarray(jax.vmap(lambda y: network(y, NO_CONTEXT))(jnp.asarray(points)))
    np.testing.assert_allclose(values, law.logpdf(points), atol=1e-8)


@pytest.mark.parametrize("experts", [0, 4])
def test_an_untrained_network_is_the_standard_normal(experts):
    network = untrained(3, 1, experts=experts)
    state, context = jr.normal(jr.key(2), (3,)), jnp.ones(1)
    assert network.departure(state, context) == 0.0
    expected = multivariate_normal(np.zeros(3)).logpdf(np.asarray(state))
    np.testing.assert_allclose(network(state, context), expected, rtol=1e-6)


def test_far_out_its_gradients_point_home():
    network = random_log_density(3)
    directions = jr.normal(jr.key(3), (20, 3))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    gradients = jax.vmap(jax.grad(lambda y: network(y, NO_CONTEXT)))(1000.0 * directions)
    np.testing.assert_allclose(gradients, -1000.0 * directions, atol=1.0)
