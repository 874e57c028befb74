"""Events that round to the edge of a support: densities are those of the nearest point inside, and draws lie inside."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import pytest
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import initialize_model, log_density
from references import EPS32, ExactGaussianFlow, x64
from scipy.special import expit, logit
from scipy.stats import norm

import flowdensity as fd
from flowdensity.data.supports import joint
from flowdensity.storage.foreign import PARAMETRIZED, SINGLETONS

WIDE = 30.0
"""Standard deviation on the real line: every edge is reached."""
ONES, TRIANGLE = np.ones((3, 3)), np.tril(np.ones((3, 3)))
CORNER = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])

# name: (support, events that lie on an edge, or whose float32 does)
CASES: dict[str, tuple[Any, Any]] = {
    "real": (constraints.real, [0.0]),
    "positive": (constraints.positive, [0.0, 1e-45]),
    "nonnegative": (constraints.nonnegative, [0.0, 1e-45]),
    "softplus_positive": (constraints.softplus_positive, [0.0, 1e-45]),
    "unit_interval": (constraints.unit_interval, [0.0, 1.0, 1e-45, 1.0 - 1e-9]),
    "real_vector": (constraints.real_vector, np.zeros((1, 3))),
    "real_matrix": (constraints.real_matrix, np.zeros((1, 2, 2))),
    "simplex": (constraints.simplex, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]),
    "ordered_vector": (constraints.ordered_vector, [[1.0, 1.0, 1.0], [0.0, 0.0, 5.0], [100.0, 100.0 + 1e-9, 101.0]]),
    "positive_ordered_vector": (constraints.positive_ordered_vector, [[0.0, 0.0, 0.0], [1e-45, 1.0, 1.0]]),
    "l1_ball": (constraints.l1_ball, [[1.0, 0.0, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, -1.0]]),
    "corr_cholesky": (constraints.corr_cholesky, [CORNER]),
    "corr_matrix": (constraints.corr_matrix, [ONES]),
    "lower_cholesky": (constraints.lower_cholesky, [TRIANGLE - np.eye(3)]),
    "softplus_lower_cholesky": (constraints.softplus_lower_cholesky, [TRIANGLE - np.eye(3)]),
    "scaled_unit_lower_cholesky": (constraints.scaled_unit_lower_cholesky, [TRIANGLE - np.eye(3)]),
    "positive_definite": (constraints.positive_definite, [ONES, 1e-3 * ONES]),
    "positive_semidefinite": (constraints.positive_semidefinite, [ONES, 1e-3 * ONES]),
    "greater_than": (constraints.greater_than(100.0), [100.0, 100.0 + 1e-9]),
    "greater_than_eq": (constraints.greater_than_eq(-1e6), [-1e6, -1e6 + 1e-3]),
    "less_than": (constraints.less_than(100.0), [100.0, 100.0 - 1e-9]),
    "less_than_eq": (constraints.less_than_eq(0.0), [0.0, -1e-45]),
    "interval": (constraints.interval(100.0, 101.0), [100.0, 101.0, 100.0 + 1e-9]),
    # Its last number inside is a thousandth, but is told from the edge only in units of the width.
    "open_interval": (
        constraints.open_interval(-1.0, 1e-3),
        [-1.0, 1e-3, np.nextafter(np.float32(1e-3), np.float32(0))],
    ),
    "a wide interval": (constraints.interval(0.0, 1e5), [0.0, 1e5, 1e-38]),
    "independent": (
        constraints.independent(constraints.interval(np.zeros(2), np.array([1.0, 50.0])), 1),
        [[0.0, 50.0], [1.0, 25.0]],
    ),
    "cat": (
        constraints.independent(constraints.cat([constraints.positive, constraints.unit_interval], -1, [1, 1]), 1),
        [[0.0, 1.0]],
    ),
    "zero_sum": (constraints.zero_sum(1), np.zeros((1, 3))),
    "joint": (
        joint([constraints.simplex, constraints.interval(100.0, 101.0)], ((3,), ())),
        [[1.0, 0.0, 0.0, 100.0], [0.2, 0.3, 0.5, 101.0]],
    ),
}


def gaussian(support: Any, shape: tuple[int, ...], deviation: float = WIDE) -> fd.FlowDensity:
    """A density that is normal on the real line."""
    size = int(np.prod(biject_to(support).inverse_shape(shape)))
    flow = ExactGaussianFlow(np.zeros(size), deviation**2 * np.eye(size), support=support, event_shape=shape)
    return fd.FlowDensity(flow, solver=fd.FixedStep(steps=2))


def test_every_kind_of_constraint_is_here():
    assert set(SINGLETONS) | set(PARAMETRIZED) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_densities_and_gradients_are_finite_at_edges_and_at_draws(name):
    support, edges = CASES[name]
    edges = jnp.asarray(edges, float)
    # Sums of exponentials overflow from wider ones, and numpyro computes eigenvalues, which round to less than zero.
    deviation = 1.0 if "definite" in name or name == "corr_matrix" else 5.0 if "ordered" in name else WIDE
    density = gaussian(support, edges.shape[1:], deviation)
    draws = density.sample(jr.key(0), (500,))
    assert jnp.all(jnp.isfinite(draws))
    assert jnp.all(support(draws))
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(density.log_prob)))(jnp.concatenate([edges, draws]))
    assert jnp.all(jnp.isfinite(values))
    assert jnp.all(jnp.isfinite(slopes))
    assert jnp.all(jnp.isfinite(density.to_base(edges)))


# name: (support, edge, nearest float32 inside)
NEAREST = {
    "an interval far from 0": (
        constraints.interval(100.0, 101.0),
        100.0,
        np.nextafter(np.float32(100), np.float32(101)),
    ),
    "its upper end": (constraints.interval(100.0, 101.0), 101.0, np.nextafter(np.float32(101), np.float32(100))),
    "the upper end of the unit interval": (constraints.unit_interval, 1.0, np.nextafter(np.float32(1), np.float32(0))),
}


@pytest.mark.parametrize(("support", "edge", "inside"), NEAREST.values(), ids=NEAREST)
def test_at_an_edge_the_density_is_that_of_the_nearest_number_inside(support, edge, inside):
    """In closed form: the logit of an event is normal."""
    density = gaussian(support, (), 3.0).with_solver(fd.FixedStep(steps=32))
    low = float(support.lower_bound)
    unconstrained = logit(float(inside) - low)
    expected = norm.logpdf(unconstrained, scale=3.0) - np.log(expit(unconstrained) * expit(-unconstrained))
    assert density.log_prob(edge) == density.log_prob(inside)
    # The third-order solver's error in 32 steps.
    np.testing.assert_allclose(density.log_prob(edge), expected, atol=2e-3)
    assert jax.grad(density.log_prob)(edge) == 0.0, "beyond the last number inside nothing changes"


def test_below_the_smallest_number_of_full_precision_a_positive_density_is_constant():
    density = gaussian(constraints.positive, ())
    smallest = np.float32(np.finfo(np.float32).tiny / EPS32)
    values = density.log_prob(np.array([0.0, 1e-45, 1e-38, smallest], np.float32))
    np.testing.assert_array_equal(values, values[-1])
    assert density.log_prob(2.0 * smallest) != values[-1]


# name: (support, event in float32)
VERTICES = {
    "simplex": (constraints.simplex, [0.3, 0.7, 1e-12, 3e-20]),
    "corr_cholesky": (constraints.corr_cholesky, [[1.0, 0.0, 0.0], [1.0, 1e-9, 0.0], [0.6, 0.8, 1e-7]]),
}


@pytest.mark.parametrize(("support", "event"), VERTICES.values(), ids=VERTICES)
def test_small_shares_keep_their_digits(support, event):
    """One less the other shares rounds to zero in float32; summed from the end, single and double precision agree."""
    event = np.asarray(event, np.float32)
    single = gaussian(support, event.shape).to_base(event)
    with x64():
        double = gaussian(support, event.shape).to_base(np.asarray(event, np.float64))
    np.testing.assert_allclose(single, double, rtol=100.0 * EPS32, atol=100.0 * EPS32)


def test_the_potential_energy_is_finite_where_the_event_rounds_to_an_edge():
    density = gaussian(constraints.interval(100.0, 101.0), (), 5.0)

    info = initialize_model(jr.key(0), lambda: numpyro.sample("x", density))
    for start in (-80.0, 0.0, 80.0):
        energy, slope = jax.value_and_grad(info.potential_fn)({"x": jnp.asarray(start)})
        assert jnp.isfinite(energy)
        assert jnp.isfinite(slope["x"])


def test_outside_the_support_there_is_no_density():
    """Only what rounds to an edge is moved."""
    for support, outside in (
        (constraints.positive, -1e-6),
        (constraints.interval(100.0, 101.0), 101.001),
        (constraints.ordered_vector, [2.0, 1.0]),
        (constraints.simplex, [1.1, -0.1]),
        (constraints.lower_cholesky, [[1.0, 0.0], [0.0, -1.0]]),
        (constraints.positive_definite, [[1.0, 2.0], [2.0, 1.0]]),
    ):
        density = gaussian(support, np.shape(outside), 1.0)
        with pytest.warns(UserWarning, match="Out-of-support"):
            assert not jnp.isfinite(density.log_prob(jnp.asarray(outside)))


def test_an_observed_site_at_an_edge_has_a_density():
    flow = ExactGaussianFlow(
        np.zeros(1), 9.0 * np.eye(1), np.ones((1, 1)), support=constraints.greater_than(100.0), event_shape=()
    )
    density = fd.FlowDensity(flow, solver=fd.FixedStep(steps=2))

    def model() -> None:
        theta = numpyro.sample("theta", numpyro.distributions.Normal(0.0, 1.0))
        with numpyro.plate("rows", 3):
            numpyro.sample("y", density.given(theta[None]), obs=np.array([100.0, 100.0 + 1e-9, 102.0]))

    value, _ = log_density(model, (), {}, {"theta": jnp.zeros(())})
    assert jnp.isfinite(value)
    initialize_model(jr.key(0), model)


def test_rounded_values_at_an_edge_have_a_probability():
    """A cell whose middle is the edge, and a distribution of numpyro's that is infinite there."""
    for base in (gaussian(constraints.unit_interval, (), 3.0), numpyro.distributions.Beta(0.2, 0.2)):
        for points in (1, 16):
            rounded = fd.Rounded(base, 0.5, points=points)
            values, slopes = jax.vmap(jax.value_and_grad(rounded.log_prob))(jnp.array([0.0, 0.5, 1.0]))
            assert jnp.all(jnp.isfinite(values))
            assert jnp.all(jnp.isfinite(slopes))


def test_every_way_to_draw_stays_inside():
    density = gaussian(constraints.interval(100.0, 101.0), ())
    network = fd.networks.LogDensityNetwork(jr.key(0), 1, reach=jnp.asarray(4.0), scale=jnp.asarray(1.0))
    fast = fd.AmortizedDensity(network, density)
    event, (log_density,) = density.sample_with_intermediates(jr.key(0), (200,))
    drawn = [event, density.sample_diffusion(jr.key(1), (200,)), density.from_base(jnp.array([[-9.0], [9.0]]))]
    for draws in (*drawn, fast.sample(jr.key(2), (200,))):
        assert jnp.all((draws > 100.0) & (draws < 101.0))
        for each in (density, fast):
            values, slopes = jax.vmap(jax.value_and_grad(each.log_prob))(draws)
            assert jnp.all(jnp.isfinite(values)) & jnp.all(jnp.isfinite(slopes))
    assert jnp.all(jnp.isfinite(log_density))


def test_in_64_bits_edges_are_finite_too():
    with x64():
        density = gaussian(constraints.interval(100.0, 101.0), (), 100.0)
        draws = density.sample(jr.key(0), (200,))
        values, slopes = jax.vmap(jax.value_and_grad(density.log_prob))(
            jnp.concatenate([draws, jnp.array([100.0, 101.0])])
        )
        assert draws.dtype == jnp.float64
        assert jnp.all((draws > 100.0) & (draws < 101.0))
        assert jnp.all(jnp.isfinite(values)) & jnp.all(jnp.isfinite(slopes))
