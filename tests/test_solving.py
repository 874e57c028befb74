"""Solving the flow, against a field whose solution is known in closed form."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import (
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    SLOPE,
    ExactGaussianFlow,
    central_difference,
    conditional_gaussian_flow,
    conditional_gaussian_log_prob,
    gaussian_flow,
    random_flow,
    to64,
    x64,
)
from scipy.stats import lognorm, multivariate_normal

import flowdensity as fd
from flowdensity.models.flows import standard_normal_log_prob
from flowdensity.solving import (
    event_and_log_prob_from_noise,
    event_from_noise,
    log_prob,
    noise_from_event,
)

NO_CONTEXT = np.zeros(0)
CONTEXT = np.array([0.5, -1.0, 2.0])
FINE = fd.FixedStep(200)
EVENTS = {"center": GAUSSIAN_MEAN, "flank": np.array([2.5, -1.0]), "far": np.array([-9.0, 6.0])}
events = pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS.keys())


def fixed(method: diffrax.AbstractERK, steps: int) -> fd.FixedStep:
    return fd.FixedStep(steps, method)


@events
@pytest.mark.parametrize("path", [fd.paths.CondOT(), fd.paths.Trigonometric()])
def test_log_prob_of_a_gaussian_is_the_closed_form(event, path):
    with x64():
        flow = gaussian_flow(path=path)
        value = log_prob(flow, fd.ExactDivergence(), jnp.asarray(event), NO_CONTEXT, FINE)
        expected = multivariate_normal(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE).logpdf(event)
        # 200 steps of a third-order method: (pi/400)^3 = 5e-7 times a constant below 1 and the size of the value.
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


@events
def test_conditional_log_prob_is_the_closed_form(event):
    with x64():
        flow = conditional_gaussian_flow()
        value = log_prob(flow, fd.ExactDivergence(), jnp.asarray(event), jnp.asarray(CONTEXT), FINE)
    np.testing.assert_allclose(value, conditional_gaussian_log_prob(event, CONTEXT), rtol=1e-6, atol=1e-6)


def test_log_prob_on_a_positive_support_has_the_jacobian_inside():
    with x64():
        flow = ExactGaussianFlow(np.array([0.3]), np.array([[0.5]]), support=constraints.positive, event_shape=())
        for x in (0.05, 1.0, 20.0):
            value = log_prob(flow, fd.ExactDivergence(), jnp.asarray(x), NO_CONTEXT, FINE)
            np.testing.assert_allclose(value, lognorm(np.sqrt(0.5), scale=np.exp(0.3)).logpdf(x), rtol=1e-6)


# The default method, whichever it is, and others whose order is known.
METHODS = {
    "default": (fd.FixedStep().method, fd.FixedStep().method.order(None)),
    "Heun": (diffrax.Heun(), 2),
    "Bosh3": (diffrax.Bosh3(), 3),
    "Dopri5": (diffrax.Dopri5(), 5),
}


@pytest.mark.parametrize("path", [fd.paths.CondOT(), fd.paths.Trigonometric()])
@pytest.mark.parametrize(("method", "order"), METHODS.values(), ids=METHODS.keys())
def test_the_error_falls_at_the_order_of_the_method(method, order, path):
    event = EVENTS["flank"]
    expected = multivariate_normal(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE).logpdf(event)
    steps = [8, 16, 32, 64]
    with x64():
        flow = gaussian_flow(path=path)
        errors = [
            abs(
                float(log_prob(flow, fd.ExactDivergence(), jnp.asarray(event), NO_CONTEXT, fixed(method, n))) - expected
            )
            for n in steps
        ]
    # Asymptotically the slope is minus the order; the next term of the error is still seen at these steps, and two
    # leading terms of opposite sign can only make the error fall faster.
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope < -(order - 0.5), errors


def test_the_default_is_accurate_on_a_gaussian():
    # Covariance eigenvalues of 0.3 and 2.2: 16 steps, the default, are good to 1e-3 nats.
    flow = gaussian_flow()
    for event in EVENTS.values():
        value = log_prob(flow, fd.ExactDivergence(), jnp.asarray(event, jnp.float32), NO_CONTEXT, fd.FixedStep())
        expected = multivariate_normal(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE).logpdf(event)
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_adaptive_agrees_with_many_fixed_steps():
    with x64():
        flow = to64(random_flow(jr.key(0), 2))
        values = [
            jax.jit(lambda x, solver=solver: log_prob(flow, fd.ExactDivergence(), x, NO_CONTEXT, solver))
            for solver in (fd.solvers.Adaptive(rtol=1e-8, atol=1e-8), fixed(diffrax.Dopri5(), 200))
        ]
        for event in EVENTS.values():
            adaptive, many = (value(jnp.asarray(event)) for value in values)
            # A local tolerance of 1e-8 over some 50 steps, and (pi/400)^5 = 3e-11 for the fixed ones.
            np.testing.assert_allclose(adaptive, many, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_adaptive_keeps_its_tolerance(rtol):
    event = EVENTS["flank"]
    expected = multivariate_normal(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE).logpdf(event)
    with x64():
        value = log_prob(
            gaussian_flow(),
            fd.ExactDivergence(),
            jnp.asarray(event),
            NO_CONTEXT,
            fd.solvers.Adaptive(rtol=rtol, atol=rtol),
        )
    # The tolerance is per step, on values of order one; a solve takes some ten of them.
    assert abs(float(value) - expected) < 10.0 * rtol


def test_events_of_a_gaussian_are_the_closed_form():
    noise = np.array([0.7, -1.2])
    eigenvalues, vectors = np.linalg.eigh(GAUSSIAN_COVARIANCE)
    root = vectors @ np.diag(np.sqrt(eigenvalues)) @ vectors.T
    with x64():
        event = event_from_noise(conditional_gaussian_flow(), jnp.asarray(noise), jnp.asarray(CONTEXT), FINE)
    np.testing.assert_allclose(event, GAUSSIAN_MEAN + SLOPE @ CONTEXT + root @ noise, rtol=1e-6)


SOLVERS = {"fixed": FINE, "adaptive": fd.solvers.Adaptive(rtol=1e-8, atol=1e-8)}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_the_two_directions_are_inverse(solver):
    with x64():
        flow = to64(random_flow(jr.key(1), 3, context_dim=1))
        context = jnp.array([0.3])

        @jax.jit
        def there_and_back(noise):
            event = event_from_noise(flow, noise, context, solver)
            return event, noise_from_event(flow, event, context, solver)

        for seed in range(3):
            noise = jr.normal(jr.key(seed), (3,))
            event, back = there_and_back(noise)
            assert np.abs(event - noise).max() > 0.1  # the field does something
            np.testing.assert_allclose(back, noise, atol=1e-5)


@pytest.mark.parametrize(
    "solver",
    [pytest.param(FINE, id="fixed"), pytest.param(SOLVERS["adaptive"], id="adaptive", marks=pytest.mark.slow)],
)
def test_the_forward_solve_knows_its_log_density(solver):
    with x64():
        flow = to64(random_flow(jr.key(2), 2, context_dim=1))
        context, noise = jnp.array([0.3]), jnp.array([0.5, -0.4])
        event, forward = event_and_log_prob_from_noise(flow, fd.ExactDivergence(), noise, context, solver)
        np.testing.assert_allclose(event, event_from_noise(flow, noise, context, solver), rtol=1e-7)
        backward = log_prob(flow, fd.ExactDivergence(), event, context, solver)
        np.testing.assert_allclose(forward, backward, atol=1e-5)


def test_the_change_of_variables_is_the_solve():
    """log p(x) = log N(z) - log |det dx/dz|, with the determinant from the Jacobian of the whole solve."""
    with x64():
        flow = to64(random_flow(jr.key(3), 2))
        noise = jnp.array([0.5, -0.4])
        _, value = event_and_log_prob_from_noise(flow, fd.ExactDivergence(), noise, NO_CONTEXT, FINE)
        jacobian = jax.jacrev(lambda z: event_from_noise(flow, z, NO_CONTEXT, FINE))(noise)
        expected = standard_normal_log_prob(noise) - np.linalg.slogdet(np.asarray(jacobian))[1]
        np.testing.assert_allclose(value, expected, atol=1e-5)


DIVERGENCES = {
    "exact": fd.ExactDivergence(),
    "Hutchinson": fd.HutchinsonDivergence(jr.key(3), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())
def test_gradients_are_those_of_central_differences(divergence):
    with x64():
        flow = to64(random_flow(jr.key(4), 2, context_dim=3))
        at, context = np.array([0.4, -0.9]), CONTEXT
        value = jax.jit(lambda x, c: log_prob(flow, divergence, x, c, fd.FixedStep(6)))
        slopes = jax.jit(jax.grad(value, argnums=(0, 1)))(jnp.asarray(at), jnp.asarray(context))
        # Step 1e-5: truncation and rounding are each near 1e-10.
        np.testing.assert_allclose(slopes[0], central_difference(lambda x: value(x, context), at), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(slopes[1], central_difference(lambda c: value(at, c), context), rtol=1e-6, atol=1e-8)


def test_second_derivatives_exist_in_forward_mode_too():
    """numpyro's Laplace guide takes forward over reverse, its samplers may be asked for forward mode alone."""
    with x64():
        flow = gaussian_flow()
        value = jax.jit(lambda x: log_prob(flow, fd.ExactDivergence(), x, NO_CONTEXT, FINE))
        at = jnp.asarray(EVENTS["flank"])
        np.testing.assert_allclose(jax.jacfwd(value)(at), jax.grad(value)(at), rtol=1e-9)
        # Of a Gaussian: minus the precision, everywhere.
        np.testing.assert_allclose(jax.hessian(value)(at), -np.linalg.inv(GAUSSIAN_COVARIANCE), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_weights_have_a_gradient_too():
    with x64():
        flow = to64(random_flow(jr.key(5), 2))
        at = jnp.array([0.4, -0.9])
        bias = flow.network.outward.bias

        @jax.jit
        def value(bias):
            moved = eqx.tree_at(lambda f: f.network.outward.bias, flow, bias)
            return log_prob(moved, fd.ExactDivergence(), at, NO_CONTEXT, fd.FixedStep(6))

        np.testing.assert_allclose(
            jax.grad(value)(bias), central_difference(value, np.asarray(bias)), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match=rf"FixedStep expected `steps`.*got {steps}.*Fix: "):
        fd.FixedStep(steps)


def test_a_single_step_is_the_method_itself():
    """One Heun step over all angles from 0 to pi/2, by hand."""
    with x64():
        flow = random_flow(jr.key(6), 2)
        start = jnp.array([0.2, 0.1])
        end = event_from_noise(flow, start, NO_CONTEXT, fixed(diffrax.Heun(), 1))
        length = jnp.pi / 2.0
        first = flow.velocity(jnp.zeros(()), start, NO_CONTEXT)
        second = flow.velocity(length, start + length * first, NO_CONTEXT)
        np.testing.assert_allclose(end, start + length * (first + second) / 2.0, rtol=1e-9)


@pytest.mark.slow
def test_too_few_adaptive_steps_fail_loudly():
    solver = fd.solvers.Adaptive(rtol=1e-6, atol=1e-6, max_steps=2)
    with pytest.raises(Exception, match="maximum number of solver steps"):
        log_prob(gaussian_flow(), fd.ExactDivergence(), jnp.zeros(2), NO_CONTEXT, solver)
