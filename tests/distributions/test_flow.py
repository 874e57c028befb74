"""FlowDensity: its arguments and errors, its context, and what it says far from the data."""

import pickle
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import pytest
from numpyro import handlers
from numpyro.distributions import constraints
from references import (
    CONTEXTS,
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    ExactGaussianFlow,
    central_difference,
    conditional_gaussian_flow,
    conditional_gaussian_log_prob,
    gaussian_flow,
    random_flow,
    to64,
    x64,
)

import flowdensity as fd
from flowdensity.data.scaling import Scaling
from flowdensity.models.flows import zero_velocity

SOLVER = fd.FixedStep(8)


def conditional() -> fd.FlowDensity:
    return fd.FlowDensity(conditional_gaussian_flow(), solver=SOLVER)


def unconditional() -> fd.FlowDensity:
    return fd.FlowDensity(gaussian_flow(), solver=SOLVER)


# Errors ------------------------------------------------------------------------------------------

NOT_MODULES = {
    "model": lambda: fd.FlowDensity(lambda t, x: x),
    "divergence": lambda: fd.FlowDensity(gaussian_flow(), divergence="exact"),
    "solver": lambda: fd.FlowDensity(gaussian_flow(), solver=16),
}


@pytest.mark.parametrize(("argument", "call"), NOT_MODULES.items(), ids=NOT_MODULES.keys())
def test_arguments_of_the_wrong_kind_are_refused(argument, call):
    with pytest.raises(TypeError, match=rf"FlowDensity expected `{argument}` of type .*; got .*Fix: {argument}="):
        call()


CONTEXT_ERRORS = {
    "none was learned": (lambda: unconditional().given(np.zeros(3)), ValueError, r"expected no `context`.*\(3,\)"),
    "too short": (lambda: conditional().given(np.zeros(2)), ValueError, r"\(\*batch_shape, 3\); got \(2,\)"),
    "a number": (lambda: conditional().given(1.0), ValueError, r"\(\*batch_shape, 3\); got \(\)"),
    "batch axis behind": (lambda: conditional().given(np.zeros((3, 4))), ValueError, r"got \(3, 4\)"),
    "strings": (lambda: conditional().given("abc"), TypeError, "array of real numbers; got str"),
    "an object": (lambda: conditional().given(object()), TypeError, "array of real numbers; got object"),
    "sample without": (
        lambda: conditional().sample(jr.key(0)),
        ValueError,
        r"sample expected a context of shape \(3,\)",
    ),
    "log_prob without": (lambda: conditional().log_prob(np.zeros(2)), ValueError, "log_prob expected a context"),
    "from_base without": (lambda: conditional().from_base(np.zeros(2)), ValueError, "from_base expected a context"),
    "to_base without": (lambda: conditional().to_base(np.zeros(2)), ValueError, "to_base expected a context"),
}


@pytest.mark.parametrize(("call", "error", "says"), CONTEXT_ERRORS.values(), ids=CONTEXT_ERRORS.keys())
def test_a_wrong_or_missing_context_is_refused(call, error, says):
    with pytest.raises(error, match=rf"FlowDensity.*{says}.*Fix: "):
        call()


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((2, 4)), 0.0], ids=["(3,)", "(2, 4)", "()"])
@pytest.mark.parametrize("method", ["log_prob", "to_base"])
def test_an_event_of_the_wrong_shape_is_refused(method, value):
    with pytest.raises(ValueError, match=rf"FlowDensity\.{method} expected `value` with shape .*; got .*Fix: "):
        getattr(unconditional(), method)(value)


def test_noise_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"FlowDensity\.from_base expected `noise`.*got \(3,\).*Fix: "):
        unconditional().from_base(np.zeros(3))


# The context -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "batch_shape"),
    [
        (CONTEXTS[1], ()),
        (CONTEXTS, (4,)),
        (CONTEXTS.reshape(2, 2, 3), (2, 2)),
        (CONTEXTS[1].tolist(), ()),
        (np.array([1, 0, -1]), ()),
    ],
    ids=["one", "four", "two by two", "a list", "integers"],
)
def test_given(context, batch_shape):
    density = conditional().given(context)
    assert density.batch_shape == batch_shape
    event = np.float32([0.4, -1.0])
    expected = conditional_gaussian_log_prob(event, np.asarray(context, float))
    # Eight third-order steps: within 0.01 nats for these covariances.
    np.testing.assert_allclose(density.log_prob(event), expected, rtol=0.01, atol=0.01)
    # And given again, the last context is the one that counts.
    again = density.given(CONTEXTS[2])
    np.testing.assert_allclose(
        again.log_prob(event), conditional_gaussian_log_prob(event, CONTEXTS[2]), rtol=0.01, atol=0.01
    )


def test_a_context_with_axes_of_its_own():
    slope = np.arange(8.0).reshape(2, 4) / 10.0
    flow = ExactGaussianFlow(np.zeros(2), np.eye(2), slope)
    shaped = Scaling(np.zeros(4), np.ones(4), constraints.real, (2, 2))
    density = fd.FlowDensity(eqx.tree_at(lambda f: f.context_scaling, flow, shaped), solver=SOLVER)
    assert density.context_shape == (2, 2)
    one = np.array([[1.0, -1.0], [0.5, 2.0]])
    assert density.given(one).batch_shape == ()
    batched = density.given(np.stack([one, 2.0 * one, 0.0 * one]))
    assert batched.batch_shape == (3,)
    # Unit covariance: the mean is the only thing that the context moves, and the density there is (2 pi)^-1.
    means = np.stack([slope @ one.ravel(), 2.0 * slope @ one.ravel(), np.zeros(2)])
    np.testing.assert_allclose(batched.log_prob(means), -np.log(2.0 * np.pi), atol=1e-3)
    # A variant keeps the context, and its shape.
    np.testing.assert_allclose(batched.with_solver(fd.FixedStep(9)).log_prob(means), -np.log(2.0 * np.pi), atol=1e-3)
    with pytest.raises(ValueError, match=r"\(\*batch_shape, 2, 2\); got \(4,\)"):
        density.given(np.zeros(4))


def test_a_scalar_context():
    flow = ExactGaussianFlow(np.zeros(1), np.eye(1), np.array([[1.0]]), event_shape=())
    shaped = Scaling(np.zeros(1), np.ones(1), constraints.real, ())
    density = fd.FlowDensity(eqx.tree_at(lambda f: f.context_scaling, flow, shaped), solver=SOLVER)
    assert density.context_shape == ()
    assert density.given(0.5).batch_shape == ()
    wide = density.given(np.array([0.5, -0.5, 2.0]))
    assert wide.batch_shape == (3,)
    np.testing.assert_allclose(wide.log_prob(np.float32([0.5, -0.5, 2.0])), -0.5 * np.log(2 * np.pi), atol=1e-3)


@pytest.mark.slow
def test_the_gradient_in_the_context_is_that_of_central_differences():
    with x64():
        model = to64(random_flow(jr.key(1), 2, context_dim=3))
        density = fd.FlowDensity(model, solver=fd.FixedStep(4))
        event = np.array([0.4, -0.9])
        value = jax.jit(lambda c: density.given(c).log_prob(event))
        slope = jax.jit(jax.grad(value))(jnp.asarray(CONTEXTS[1]))
        assert np.all(np.abs(slope) > 1e-3)  # not stopped anywhere
        np.testing.assert_allclose(slope, central_difference(value, CONTEXTS[1]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("subsample", [False, True])
def test_a_conditional_density_in_a_plate(subsample):
    density = conditional()
    events = np.asarray(density.given(CONTEXTS).sample(jr.key(2)))

    def model():
        with numpyro.plate("rows", 4, subsample_size=2 if subsample else None) as rows:
            numpyro.sample("x", density.given(CONTEXTS[rows]), obs=events[rows])

    trace = handlers.trace(handlers.seed(model, jr.key(0))).get_trace()
    site = trace["x"]
    assert site["fn"].batch_shape == ((2,) if subsample else (4,))
    rows = np.asarray(trace["rows"]["value"])
    value = site["fn"].log_prob(site["value"])
    expected = conditional_gaussian_log_prob(events[rows], CONTEXTS[rows])
    np.testing.assert_allclose(value, expected, rtol=0.01, atol=0.01)
    assert site["scale"] == (2.0 if subsample else None)


class CountingFlow(fd.models.AbstractProbabilityFlow):
    """Counts how often its field is traced."""

    inner: ExactGaussianFlow
    network: None
    scaling: Scaling
    context_scaling: Scaling
    reach: jax.Array
    traces = []

    def __init__(self, inner: ExactGaussianFlow):
        self.inner = inner
        self.network = None
        self.reach = inner.reach
        self.scaling = inner.scaling
        self.context_scaling = inner.context_scaling

    def network_velocity(self, time, state, context):
        type(self).traces.append(state.shape)
        return self.inner.network_velocity(time, state, context)

    def reference_velocity(self, time, state, context):
        return zero_velocity(state)

    def velocity_scale(self, time):
        return 1.0

    def times(self, steps):
        return self.inner.times(steps)


def test_a_new_context_of_the_same_shape_is_not_traced_again():
    density = fd.FlowDensity(CountingFlow(conditional_gaussian_flow()), solver=SOLVER)
    event = np.float32([0.1, 0.2])
    calls = {
        "log_prob": lambda c: density.given(c).log_prob(event),
        "sample": lambda c: density.given(c).sample(jr.key(0)),
        "to_base": lambda c: density.given(c).to_base(event),
        "another divergence": lambda c: (
            density.given(c).with_divergence(fd.HutchinsonDivergence(jr.key(int(abs(c[0]))))).log_prob(event)
        ),
    }
    for name, call in calls.items():
        CountingFlow.traces.clear()
        first = call(CONTEXTS[1])
        assert CountingFlow.traces, name
        CountingFlow.traces.clear()
        assert np.any(call(CONTEXTS[2]) != first)
        assert not CountingFlow.traces, name


# numpyro's checks --------------------------------------------------------------------------------


def log_normal(**options) -> fd.FlowDensity:
    flow = ExactGaussianFlow(np.array([0.3]), np.array([[0.5]]), support=constraints.positive, event_shape=())
    return fd.FlowDensity(flow, solver=SOLVER, **options)


def test_events_off_the_support_warn():
    density = log_normal(validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        density.log_prob(np.float32(-1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(density.log_prob(np.float32(1.0)))
        log_normal(validate_args=False).log_prob(np.float32(-1.0))


def test_variants_keep_validate_args():
    for flag in (True, False):
        density = log_normal(validate_args=flag).with_solver(fd.FixedStep(4))
        assert density._validate_args is flag


def test_a_context_that_is_not_finite_is_refused_when_validating():
    with pytest.raises(ValueError, match="context"):
        fd.FlowDensity(conditional_gaussian_flow(), np.array([np.nan, 0.0, 0.0]), validate_args=True)


def test_the_support_of_a_vector_counts_its_axes():
    support = unconditional().support
    assert support.event_dim == 1
    np.testing.assert_array_equal(support(np.zeros((5, 2))), np.ones(5, bool))
    np.testing.assert_array_equal(support(np.array([[0.0, np.nan], [0.0, 0.0]])), [False, True])
    positive = ExactGaussianFlow(np.zeros(2), np.eye(2), support=constraints.positive)
    np.testing.assert_array_equal(fd.FlowDensity(positive).support(np.array([[1.0, -1.0], [1.0, 2.0]])), [False, True])


# Divergences and intermediates -------------------------------------------------------------------


@pytest.mark.slow
def test_with_divergence_changes_only_the_divergence():
    model = random_flow(jr.key(2), 3)
    density = fd.FlowDensity(model, solver=SOLVER)
    probed = density.with_divergence(fd.HutchinsonDivergence(jr.key(0), probes=4))
    assert isinstance(density.divergence, fd.ExactDivergence)
    assert isinstance(probed.divergence, fd.HutchinsonDivergence)
    draws = density.sample(jr.key(1), (50,))
    np.testing.assert_array_equal(probed.sample(jr.key(1), (50,)), draws)
    exact, estimate = density.log_prob(draws), probed.log_prob(draws)
    assert np.any(exact != estimate)
    back = probed.with_divergence(fd.ExactDivergence())
    np.testing.assert_array_equal(back.log_prob(draws), exact)


def test_with_solver_changes_only_the_solver():
    density = unconditional()
    fine = density.with_solver(fd.FixedStep(64))
    assert fine.solver.steps == 64
    assert density.solver.steps == 8
    event = np.float32([2.5, -1.0])
    expected = conditional_gaussian_log_prob(event, np.zeros(3))
    assert abs(fine.log_prob(event) - expected) < abs(density.log_prob(event) - expected)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [fd.ExactDivergence(), fd.HutchinsonDivergence(jr.key(3))])
def test_intermediates_are_the_log_density(divergence):
    with x64():
        density = fd.FlowDensity(to64(random_flow(jr.key(3), 2)), divergence=divergence, solver=fd.FixedStep(100))
        draws, intermediates = density.sample_with_intermediates(jr.key(0), (5,))
        # The same sums, compiled beside another: up to rounding.
        np.testing.assert_allclose(draws, density.sample(jr.key(0), (5,)), rtol=1e-13)
        # Both directions of 100 third-order steps: (pi/200)^3 = 4e-6 each.
        np.testing.assert_allclose(density.log_prob(draws, intermediates), density.log_prob(draws), atol=1e-4)


def test_intermediates_spare_a_second_solve():
    density = fd.FlowDensity(CountingFlow(gaussian_flow()), solver=fd.FixedStep(7))
    draws, intermediates = density.sample_with_intermediates(jr.key(0), (5,))
    CountingFlow.traces.clear()
    assert density.log_prob(draws, intermediates).shape == (5,)
    assert not CountingFlow.traces


# Far out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [10.0, 100.0, 1000.0])
def test_far_out_the_gradient_is_finite_and_points_home(mixture_fit, scales):
    density = mixture_fit.density
    center, deviation = mixture_fit.data.mean(0), mixture_fit.data.std(0)
    angles = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
    away = scales * deviation * np.stack([np.cos(angles), np.sin(angles)], 1)
    points = jnp.asarray(center + away, jnp.float32)
    values, slopes = jax.vmap(jax.value_and_grad(density.log_prob))(points)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slopes))
    assert np.all(np.sum(np.asarray(slopes) * away, axis=1) < 0.0)
    # There it is the fitted Gaussian: the slope along the ray is that of half the squared Mahalanobis distance.
    covariance = np.asarray(density.model.scaling.scale, np.float64)
    covariance = covariance @ covariance.T
    expected = -np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    # The field is bounded (by a few units) and acts over a time pi/2, so the noise a point is carried to is off by a
    # bounded amount: in relation to the distance that falls as 1/scales, and its square by twice as much.
    np.testing.assert_allclose(np.sum(np.asarray(slopes) * away, axis=1), expected, rtol=10.0 / scales)


@pytest.mark.slow
def test_far_out_on_a_positive_support(positive_fit):
    density = positive_fit.density
    points = jnp.geomspace(1e-20, 1e20, 21)
    values, slopes = jax.vmap(jax.value_and_grad(density.log_prob))(points)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slopes))
    # In log x: past the data on either side the density of log x falls away from them.
    slopes = np.asarray(slopes) * np.asarray(points) + 1.0
    assert np.all(slopes[:8] > 0.0)
    assert np.all(slopes[-8:] < 0.0)


def test_batch_mates_do_not_matter_to_a_trained_density(mixture_fit):
    density = mixture_fit.density
    points = np.concatenate([mixture_fit.data[:20], [[1e3, -1e3], [0.0, 50.0]]]).astype(np.float32)
    together = np.asarray(density.log_prob(points))
    alone = np.array([float(density.log_prob(point)) for point in points])
    assert np.all(np.abs(alone - together) <= 1e-5 * (1.0 + np.abs(together)))
    np.testing.assert_array_equal(density.log_prob(points), together)


def test_moments_of_samples_are_those_of_the_gaussian():
    draws = np.asarray(unconditional().with_solver(fd.FixedStep(32)).sample(jr.key(4), (40_000,)), np.float64)
    errors = np.sqrt(np.diag(GAUSSIAN_COVARIANCE) / 40_000)
    assert np.all(np.abs(draws.mean(0) - GAUSSIAN_MEAN) < 4.5 * errors)
    # Standard error of a covariance entry of a Gaussian: sqrt((s_ij^2 + s_ii s_jj)/n).
    diagonal = np.diag(GAUSSIAN_COVARIANCE)
    errors = np.sqrt((GAUSSIAN_COVARIANCE**2 + np.outer(diagonal, diagonal)) / 40_000)
    assert np.all(np.abs(np.cov(draws.T) - GAUSSIAN_COVARIANCE) < 4.5 * errors)


def test_a_density_survives_pickling(conditional_fit):
    """As numpyro's MCMC objects do: the same numbers, and the same structure, so that nothing is compiled again."""
    density = conditional_fit.density.given(np.ones(1)).expand([2])
    copy = pickle.loads(pickle.dumps(density))
    assert jax.tree.structure(copy) == jax.tree.structure(density)
    points = np.zeros((2, 2), np.float32)
    np.testing.assert_array_equal(copy.log_prob(points), density.log_prob(points))
