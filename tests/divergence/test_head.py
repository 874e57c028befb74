"""The divergence head: zero at first, bounded, fading far out, and reading the model's own features."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import EPS32, random_flow

import flowdensity as fd
from flowdensity.divergence.stein import DivergenceHead

DIM, HIDDEN, REACH, BOUND = 2, 16, 3.0, 5.0


def new_head(**options) -> DivergenceHead:
    unit = jnp.ones(())
    return DivergenceHead(
        jr.key(0),
        DIM,
        (HIDDEN,),
        span=jnp.array([0.0, 0.5 * jnp.pi]),
        reach=REACH * unit,
        scale=2.0 * unit,
        bound=BOUND * unit,
        width=8,
        **options,
    )


def random_head(size: float = 1.0) -> DivergenceHead:
    head = new_head()
    last = jax.tree.map(lambda leaf: size * leaf, eqx.nn.Linear(8, "scalar", key=jr.key(1)))
    return eqx.tree_at(lambda h: h.network.outward, head, last)


def test_a_new_head_is_zero():
    assert new_head()(jnp.asarray(0.5), jnp.ones(DIM), jnp.ones(HIDDEN)) == 0.0


@pytest.mark.parametrize("size", [1.0, 100.0, 1e6])
def test_a_head_is_bounded_however_large_its_weights(size):
    head = random_head(size)
    states = jnp.geomspace(1e-2, 1e6, 100)[:, None] * jnp.array([0.6, -0.8])
    hidden = 10.0 * jr.normal(jr.key(2), (100, HIDDEN))
    values = jax.vmap(lambda y, h: head(jnp.asarray(0.5), y, h))(states, hidden)
    radii = np.geomspace(1e-2, 1e6, 100)
    assert np.all(np.abs(values) <= BOUND * np.minimum(1.0, REACH / radii) * (1.0 + 8.0 * EPS32))
    if size >= 100.0:
        assert np.abs(values).max() > 0.9 * BOUND  # the bound was tested


def test_offset_adds_a_smooth_function_of_the_angle():
    plain = random_head()
    shifted = eqx.tree_at(lambda h: h.offset, plain, jnp.array([0.3, -0.2, 0.1, 0.05]))
    state, hidden = jnp.array([0.1, 0.1]), jnp.ones(HIDDEN)
    for angle in np.linspace(0.0, np.pi / 2.0, 5):
        expected = 0.3 - 0.2 * np.cos(2 * angle) + 0.1 * np.cos(4 * angle) + 0.05 * np.cos(6 * angle)
        change = shifted(jnp.asarray(angle), state, hidden) - plain(jnp.asarray(angle), state, hidden)
        # Within 0.05 of the reach the radial factor is 1 to within 2e-6; the difference is rounded at the value's size.
        np.testing.assert_allclose(change, expected, atol=1e-5)
    np.testing.assert_allclose(plain.basis(jnp.zeros(()), jnp.zeros(DIM)), np.ones(4), rtol=EPS32)


@pytest.mark.parametrize(("first", "last"), [(0.0, 1.0), (1.0, 0.0), (-3.0, 5.0)])
def test_a_head_knows_the_share_of_the_time_that_has_passed(first, last):
    state, hidden = jnp.array([0.5, -1.0]), jnp.ones(HIDDEN)
    head = eqx.tree_at(lambda h: h.offset, random_head(), jnp.array([0.3, -0.2, 0.1, 0.05]))
    other = eqx.tree_at(lambda h: h.span, head, jnp.array([first, last]))
    for share in (0.0, 0.3, 1.0):
        time = jnp.asarray(first + share * (last - first))
        expected = head(jnp.asarray(share * 0.5 * np.pi), state, hidden)
        np.testing.assert_allclose(other(time, state, hidden), expected, rtol=1e-4)


@pytest.mark.parametrize("position", [0, 1, 2], ids=["angle", "state", "hidden"])
def test_a_head_sees_every_input(position):
    inputs = (jnp.asarray(0.4), jnp.array([0.5, -1.0]), jr.normal(jr.key(3), (HIDDEN,)))
    slope = jax.grad(random_head(), argnums=position)(*inputs)
    assert np.all(np.abs(slope) > 1e-5)


def test_training_moves_neither_the_offset_nor_what_describes_the_data():
    def loss(head):
        return head(jnp.asarray(0.4), jnp.array([0.5, -1.0]), jnp.ones(HIDDEN)) ** 2

    slope = eqx.filter_grad(loss)(random_head())
    for frozen in (slope.offset, slope.span, slope.reach, slope.scale, slope.bound):
        np.testing.assert_array_equal(frozen, np.zeros_like(frozen))
    assert np.any(slope.network.outward.weight != 0.0)


def test_stein_divergence_is_the_velocity_and_the_head_on_its_features():
    flow, head = random_flow(jr.key(0), DIM, width=HIDDEN), random_head()
    angle, state, context = jnp.asarray(0.6), jnp.array([1.0, 0.5]), jnp.zeros(0)
    velocity, divergence = fd.SteinDivergence(head)(flow, angle, state, context)
    expected, hidden = flow.network_velocity(angle, state, context)
    np.testing.assert_array_equal(velocity, expected)
    assert divergence == head(angle, state, hidden)


def test_stein_divergence_is_one_pass_through_the_network():
    """The learned divergence must not be a derivative in disguise: its matrix products are the model's and the head's."""
    flow, head = random_flow(jr.key(0), DIM, width=HIDDEN), random_head()
    angle, context = jnp.asarray(0.6), jnp.zeros(0)

    def products(function):
        return str(jax.make_jaxpr(function)(jnp.ones(DIM))).count("dot_general")

    model = products(lambda y: flow.network_velocity(angle, y, context))
    reading = products(lambda y: head(angle, y, jnp.ones(HIDDEN)))
    assert model >= 3
    assert reading >= 3
    assert products(lambda y: fd.SteinDivergence(head)(flow, angle, y, context)) == model + reading
