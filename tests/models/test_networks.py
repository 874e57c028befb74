"""Networks: what they see, what they start from, and how far they can reach."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import EPS32, x64

import flowdensity as fd
from flowdensity._squash import squash
from flowdensity.models.networks import activation_function, angle_embedding

ACTIVATIONS = ["silu", "gelu", "tanh", "softplus"]
DIRECTION = np.array([0.6, -0.8])


@pytest.mark.parametrize("radius", [0.0, 1e-20, 0.1, 1.0, 1.5, 3.0, 10.0, 1e3, 1e6])
def test_squash_is_the_identity_near_and_bounded_far(radius):
    reach = 3.0
    near, factor = squash(jnp.asarray(radius * DIRECTION, jnp.float32), jnp.asarray(reach))
    expected = (1.0 + (radius / reach) ** 4) ** -0.25
    np.testing.assert_allclose(factor, expected, rtol=8.0 * EPS32)
    np.testing.assert_allclose(near, expected * radius * DIRECTION, rtol=8.0 * EPS32)
    assert np.linalg.norm(near) <= reach * (1.0 + 8.0 * EPS32)
    # (1 + q)^(-1/4) >= 1 - q/4, with q = (radius/reach)^4.
    assert factor >= 1.0 - (radius / reach) ** 4 / 4.0 - 8.0 * EPS32


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_squash_neither_stretches_nor_folds(dim):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(200, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    states = directions * np.geomspace(1e-3, 1e6, 200)[:, None]
    with x64():
        jacobians = jax.vmap(jax.jacfwd(lambda y: squash(y, jnp.asarray(2.0))[0]))(jnp.asarray(states))
        singular = np.linalg.svd(np.asarray(jacobians), compute_uv=False)
    # m across the ray and (1 + q)^(-5/4) along it, q = (|y|/R)^4: all positive and at most 1.
    ratio = (np.linalg.norm(states, axis=1, keepdims=True) / 2.0) ** 4
    expected = np.concatenate([np.repeat((1.0 + ratio) ** -0.25, dim - 1, axis=1), (1.0 + ratio) ** -1.25], axis=1)
    np.testing.assert_allclose(singular, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e8])
def test_squash_has_finite_second_derivatives(size):
    state = jnp.asarray(size * DIRECTION, jnp.float32)
    hessian = jax.hessian(lambda y: jnp.sum(squash(y, jnp.asarray(3.0))[0]))(state)
    assert jnp.all(jnp.isfinite(hessian))


def test_embedding_tells_every_angle_apart():
    angles = jnp.linspace(0.0, jnp.pi / 2.0, 50)
    embedded = np.asarray(jax.vmap(lambda a: angle_embedding(a, 3))(angles))
    k = 2.0 * np.asarray(angles)[:, None] * np.arange(1, 4)
    np.testing.assert_allclose(embedded, np.concatenate([np.cos(k), np.sin(k)], 1), atol=8.0 * EPS32)
    distances = np.linalg.norm(embedded[:, None] - embedded[None], axis=-1)
    # Neighbors are 2 * pi/98 apart on the circle of the first harmonic alone.
    assert distances[~np.eye(50, dtype=bool)].min() > 2.0 * np.sin(np.pi / 98.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dim", "context_dim"), [(1, 0), (3, 0), (2, 4)])
def test_a_new_network_is_the_zero_field(activation, dim, context_dim):
    network = fd.networks.ResidualMLP(
        jr.key(0), dim, context_dim, width=8, depth=3, frequencies=2, activation=activation
    )
    output, hidden = network(jnp.asarray(0.3), jnp.ones(dim), jnp.ones(context_dim))
    np.testing.assert_array_equal(output, np.zeros(dim))
    assert hidden.shape == (network.width,) == (8,)
    assert np.any(np.asarray(hidden) != 0.0)
    assert (network.dim, network.context_dim) == (dim, context_dim)


def test_without_experts_it_is_a_perceptron():
    network = fd.networks.ResidualMLP(jr.key(0), 2, 1, width=8, experts=0)
    network = eqx.tree_at(lambda n: n.outward.weight, network, jr.normal(jr.key(1), (2, 8)))
    output, hidden = network(jnp.asarray(0.3), jnp.ones(2), jnp.ones(1))
    np.testing.assert_allclose(output, network.outward.weight @ hidden, rtol=1e-6)


INPUTS = {"angle": 0, "state": 1, "context": 2}


def test_fourier_features_are_waves_of_the_state():
    """Along a projection with all other weights at zero, a feature repeats after one wavelength."""
    network = fd.networks.ResidualMLP(jr.key(0), 2, width=6, depth=0, experts=0, fourier_features=3)
    frequency = network.projections[1]
    period = 2.0 * jnp.pi * frequency / jnp.sum(jnp.square(frequency))
    inward = jnp.zeros_like(network.inward.weight).at[0, -5].set(1.0).at[1, -2].set(1.0)
    network = eqx.tree_at(lambda n: n.inward.weight, network, inward)
    state = jnp.array([0.3, -1.1])
    _, hidden = network(jnp.asarray(0.5), state, jnp.zeros(0))
    _, later = network(jnp.asarray(0.5), state + period, jnp.zeros(0))
    phase = jnp.dot(frequency, state)
    expected = jax.nn.silu(jnp.array([jnp.cos(phase), jnp.sin(phase)]))
    np.testing.assert_allclose(hidden[:2], expected, atol=1e-6)
    np.testing.assert_allclose(later[:2], expected, atol=1e-5)


def test_projections_get_no_gradient():
    network = fd.networks.ResidualMLP(jr.key(0), 2, width=6, depth=1, experts=0, fourier_features=3)
    gradient = eqx.filter_grad(lambda n: jnp.sum(n(jnp.asarray(0.5), jnp.ones(2), jnp.zeros(0))[1]))(network)
    assert jnp.all(gradient.projections == 0.0)
    assert jnp.any(gradient.inward.weight[:, -6:] != 0.0)


@pytest.mark.parametrize("position", INPUTS.values(), ids=INPUTS.keys())
def test_hidden_features_see_every_coordinate_of_every_input(position):
    network = fd.networks.ResidualMLP(jr.key(1), 2, 3, width=16)
    inputs = (jnp.asarray(0.4), jnp.array([0.5, -1.0]), jnp.array([1.0, 2.0, -1.0]))
    slope = jax.jacfwd(lambda *args: network(*args)[1], argnums=position)(*inputs)
    assert np.all(np.abs(slope).reshape(16, -1).max(0) > 1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_smooth(activation):
    with x64():
        function = activation_function(activation)
        at = np.linspace(-4.0, 4.0, 81)
        # A kink would leave a jump in the second difference that does not fall with the step.
        second = [(function(at + h) - 2.0 * function(at) + function(at - h)) / h**2 for h in (1e-2, 1e-3)]
    np.testing.assert_allclose(second[0], second[1], atol=1e-3)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"expected `activation`.*got 'relu'.*Fix: "):
        fd.networks.ResidualMLP(jr.key(0), 2, activation="relu")


def test_weights_follow_from_the_key():
    state = jnp.ones(2), jnp.zeros(0)
    first, again, other = (
        fd.networks.ResidualMLP(jr.key(seed), 2, width=8)(jnp.asarray(0.3), *state)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
