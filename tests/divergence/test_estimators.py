"""The exact and the randomized divergence, against the trace of the Jacobian."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import (
    central_difference,
    gaussian_flow,
    random_flow,
    to64,
    trace_of_jacobian,
    untrained_flow,
    x64,
)

import flowdensity as fd
from flowdensity.models.flows import zero_velocity

NO_CONTEXT = jnp.zeros(0)


@pytest.mark.parametrize(("dim", "context_dim"), [(1, 0), (2, 3), pytest.param(5, 0, marks=pytest.mark.slow)])
def test_exact_is_the_trace_of_the_jacobian(dim, context_dim):
    rng = np.random.default_rng(dim)
    with x64():
        flow = to64(random_flow(jr.key(dim), dim, context_dim))
        both = jax.jit(
            lambda a, y, c: (
                *fd.ExactDivergence()(flow, a, y, c),
                flow.velocity(a, y, c),
                trace_of_jacobian(flow, a, y, c),
            )
        )
        for size in (0.1, 1.0, 30.0):
            angle, state = rng.uniform(0.0, np.pi / 2.0), size * rng.normal(size=dim)
            velocity, divergence, expected_velocity, expected = both(
                angle, jnp.asarray(state), jnp.asarray(rng.normal(size=context_dim))
            )
            np.testing.assert_allclose(velocity, expected_velocity, rtol=1e-12)
            np.testing.assert_allclose(divergence, expected, rtol=1e-10, atol=1e-14)
            assert abs(expected) > 1e-8


def test_exact_on_a_gaussian_is_the_closed_form():
    with x64():
        flow = gaussian_flow()
        for angle in np.linspace(0.0, np.pi / 2.0, 7):
            _, divergence = fd.ExactDivergence()(flow, jnp.asarray(angle), jnp.array([3.0, -1.0]), NO_CONTEXT)
            np.testing.assert_allclose(divergence, flow.exact_divergence(angle), atol=1e-14)


def hutchinson(flow, key, probes, state):
    return fd.HutchinsonDivergence(key, probes)(flow, jnp.asarray(0.7), state, NO_CONTEXT)


@pytest.mark.parametrize("probes", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_hutchinson_is_unbiased_with_the_known_variance(probes):
    dim, keys = 3, 4000
    flow, state = random_flow(jr.key(0), dim), jnp.array([0.5, -0.3, 1.0])
    exact = float(trace_of_jacobian(flow, 0.7, state, NO_CONTEXT))
    jacobian = np.asarray(jax.jacfwd(lambda y: flow.velocity(jnp.asarray(0.7), y, NO_CONTEXT))(state))
    estimates = jax.jit(jax.vmap(lambda key: hutchinson(flow, key, probes, state)[1]))(jr.split(jr.key(1), keys))
    estimates = np.asarray(estimates, np.float64)
    error = estimates.std(ddof=1) / np.sqrt(keys)
    assert abs(estimates.mean() - exact) < 4.0 * error

    # v'Jv over all signs v of three coordinates: its variance is exact, and one probe is a draw from it.
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=dim)))
    quadratic = np.einsum("ni,ij,nj->n", signs, jacobian, signs)
    assert quadratic.mean() == pytest.approx(exact, abs=1e-5)
    variance = quadratic.var() / probes
    fourth = np.mean((estimates - estimates.mean()) ** 4)
    error = np.sqrt((fourth - variance**2) / keys)  # of a sample variance
    assert abs(estimates.var() - variance) < 4.5 * error


def test_hutchinson_is_exact_where_the_jacobian_is_diagonal():
    with x64():
        flow = random_flow(jr.key(3), 1)
        state = jnp.array([0.4])
        for seed in range(3):
            _, estimate = hutchinson(flow, jr.key(seed), 1, state)
            np.testing.assert_allclose(estimate, trace_of_jacobian(flow, 0.7, state, NO_CONTEXT), rtol=1e-12)


def test_hutchinson_holds_its_key():
    flow, state = random_flow(jr.key(0), 3), jnp.array([0.5, -0.3, 1.0])
    values = [[float(hutchinson(flow, jr.key(seed), 1, state)[1]) for seed in range(8)] for _ in range(2)]
    assert values[0] == values[1]
    # Three signs up to a common one are four different probes; eight keys all alike has probability 4^-7.
    assert len(set(values[0])) > 1


def test_hutchinson_is_a_smooth_function_of_the_state():
    with x64():
        flow = to64(random_flow(jr.key(0), 3))
        one = jax.jit(lambda y: hutchinson(flow, jr.key(2), 2, y)[1])
        state = np.array([0.5, -0.3, 1.0])
        slope = jax.grad(one)(jnp.asarray(state))
        # A central difference of step 1e-5 has an error of about 1e-10, rounding included.
        np.testing.assert_allclose(slope, central_difference(one, state), rtol=1e-6, atol=1e-8)


def test_hutchinson_gives_the_velocity_too():
    flow, state = random_flow(jr.key(0), 3), jnp.array([0.5, -0.3, 1.0])
    np.testing.assert_allclose(
        hutchinson(flow, jr.key(2), 1, state)[0], flow.velocity(jnp.asarray(0.7), state, NO_CONTEXT), rtol=1e-5
    )


@pytest.mark.parametrize("probes", [0, -1])
def test_hutchinson_without_probes_is_refused(probes):
    with pytest.raises(ValueError, match=rf"expected `probes`.*got {probes}.*Fix: "):
        fd.HutchinsonDivergence(jr.key(0), probes)


@pytest.mark.parametrize("distribution", ["rademacher", pytest.param("gaussian", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "estimator", [fd.HutchinsonDivergence, fd.HutchPlusPlusDivergence], ids=["Hutchinson", "Hutch++"]
)
def test_estimators_are_unbiased_with_either_probe(estimator, distribution):
    dim, keys = 6, 4000
    flow, state = random_flow(jr.key(0), dim), jnp.linspace(-1.0, 1.0, dim)
    exact = float(trace_of_jacobian(flow, 0.7, state, NO_CONTEXT))
    one = lambda key: estimator(key, 3, distribution)(flow, jnp.asarray(0.7), state, NO_CONTEXT)[1]  # noqa: E731
    estimates = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(1), keys)), np.float64)
    assert abs(estimates.mean() - exact) < 4.5 * estimates.std(ddof=1) / np.sqrt(keys)
    assert estimates.std() > 0.01


class LowRank(fd.models.AbstractProbabilityFlow):
    """A linear velocity whose matrix has rank 2 and a trace of 7."""

    network: None = None
    scaling: None = None
    context_scaling: None = None
    reach: None = None

    def network_velocity(self, time, state, context):
        left = jnp.eye(8)[:, :2] + 0.3
        return left @ jnp.diag(jnp.array([3.0, 1.0])) @ (left.T @ state), None

    def reference_velocity(self, time, state, context):
        return zero_velocity(state)

    def velocity_scale(self, time):
        return 1.0

    def times(self, steps):
        return jnp.linspace(0.0, 1.0, steps + 1)


def test_hutch_plus_plus_is_exact_for_a_matrix_of_low_rank():
    """Two directions span the range; Hutchinson's estimate at the same cost is far off."""
    with x64():
        arguments = LowRank(), jnp.asarray(0.5), jnp.zeros(8), NO_CONTEXT
        exact = trace_of_jacobian(*arguments)
        for seed in range(4):
            _, estimate = fd.HutchPlusPlusDivergence(jr.key(seed), 6)(*arguments)
            # The share of the sketch that keeps the basis defined is the root of the rounding, 1.5e-8.
            np.testing.assert_allclose(estimate, exact, rtol=1e-6)
            _, hutchinson = fd.HutchinsonDivergence(jr.key(seed), 6)(*arguments)
            assert abs(hutchinson - exact) > 1e-3 * exact


@pytest.mark.parametrize("dim", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_hutch_plus_plus_is_exact_with_as_many_directions_as_dimensions(dim):
    with x64():
        flow, state = to64(random_flow(jr.key(3), dim)), jnp.linspace(0.4, -1.0, dim)
        velocity, estimate = fd.HutchPlusPlusDivergence(jr.key(0), 9)(flow, jnp.asarray(0.7), state, NO_CONTEXT)
        np.testing.assert_allclose(estimate, trace_of_jacobian(flow, 0.7, state, NO_CONTEXT), rtol=1e-9)
        np.testing.assert_allclose(velocity, flow.velocity(jnp.asarray(0.7), state, NO_CONTEXT), rtol=1e-12)


@pytest.mark.slow
def test_hutch_plus_plus_is_a_smooth_function_of_the_state():
    with x64():
        flow = to64(random_flow(jr.key(0), 5))
        estimator = fd.HutchPlusPlusDivergence(jr.key(2), 6)
        one = jax.jit(lambda y: estimator(flow, jnp.asarray(0.7), y, NO_CONTEXT)[1])
        state = np.linspace(-1.0, 1.0, 5)
        np.testing.assert_allclose(
            jax.grad(one)(jnp.asarray(state)), central_difference(one, state), rtol=1e-5, atol=1e-7
        )


def test_hutch_plus_plus_has_a_gradient_where_there_is_no_jacobian():
    """An untrained flow has none, and the basis of its range is not determined."""
    flow = untrained_flow(jr.key(0), np.random.default_rng(0).normal(size=(100, 3)))
    estimator = fd.HutchPlusPlusDivergence(jr.key(2), 3)
    value, slope = jax.value_and_grad(lambda y: estimator(flow, jnp.asarray(0.7), y, NO_CONTEXT)[1])(jnp.ones(3))
    assert value == 0.0
    np.testing.assert_array_equal(slope, np.zeros(3))


@pytest.mark.parametrize(
    ("probes", "says"), [(0, "an integer from 3"), (2, "an integer from 3"), (4, "a multiple of 3")]
)
def test_hutch_plus_plus_takes_probes_in_threes(probes, says):
    with pytest.raises(ValueError, match=rf"expected `probes` as {says}.*got {probes}.*Fix: probes=3"):
        fd.HutchPlusPlusDivergence(jr.key(0), probes)


@pytest.mark.parametrize("estimator", [fd.HutchinsonDivergence, fd.HutchPlusPlusDivergence])
def test_an_unknown_distribution_of_probes_is_refused(estimator):
    with pytest.raises(ValueError, match=r"expected `distribution`.*got 'uniform'.*Fix: "):
        estimator(jr.key(0), 3, "uniform")
