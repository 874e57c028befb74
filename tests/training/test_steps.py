"""The solver's number of steps: the fewest with which doubling changes next to nothing."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import (
    CONTEXTS,
    ExactGaussianFlow,
    conditional_gaussian_flow,
    conditional_gaussian_log_prob,
    gaussian_flow,
    untrained_flow,
)

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.training.steps import STEP_COUNTS, choose_steps


def table(model, rows=64):
    """Samples of a flow given contexts, all of which are drawn."""
    contexts = np.resize(CONTEXTS, (rows, 3))[:, : model.context_scaling.dim]
    density = fd.FlowDensity(model, contexts if contexts.size else None, solver=fd.FixedStep(64))
    events = density.sample(jr.key(0), () if contexts.size else (rows,))
    return Sample(events - model.scaling.location, jnp.asarray(contexts, jnp.float32))


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 1e-3])
def test_the_fewest_steps_within_the_tolerance_are_taken(tolerance):
    model = conditional_gaussian_flow()
    rows = table(model)
    solver, errors = choose_steps(jr.key(1), fd.FlowDensity(model), rows, tolerance)
    assert solver.steps == errors.steps[-1]
    assert errors.steps == STEP_COUNTS[: len(errors.steps)]
    assert all(error > tolerance for error in errors.errors[:-1])
    assert errors.errors[-1] <= tolerance
    # Beside the closed form: the rows drawn are a bootstrap of those here.
    density = fd.FlowDensity(model, rows.contexts, solver=solver)
    events = rows.states + model.scaling.location
    gap = np.asarray(density.log_prob(events)) - conditional_gaussian_log_prob(events, rows.contexts)
    assert np.sqrt(np.mean(np.square(gap))) < 1.5 * tolerance


def test_the_errors_are_those_of_the_solver_itself():
    model = gaussian_flow()
    row = table(model, 1)
    _, errors = choose_steps(jr.key(1), fd.FlowDensity(model), row, 1e-3)
    events = row.states + model.scaling.location
    for steps, error in zip(errors.steps, errors.errors, strict=True):
        once, twice = (fd.FlowDensity(model, solver=fd.FixedStep(n)).log_prob(events) for n in (steps, 2 * steps))
        np.testing.assert_allclose(error, abs(float(once[0] - twice[0])), atol=2e-6)


def test_the_fitted_gaussian_needs_the_fewest():
    model = untrained_flow(jr.key(0), np.random.default_rng(0).normal(size=(50, 2)))
    solver, errors = choose_steps(
        jr.key(1), fd.FlowDensity(model), Sample(jr.normal(jr.key(2), (50, 2)), jnp.zeros((50, 0))), 0.01
    )
    assert solver.steps == STEP_COUNTS[0]
    assert errors.errors == (0.0,)


def test_where_no_number_is_enough_it_says_so():
    """A needle: one standard deviation is a ten-thousandth of the base's."""
    model = ExactGaussianFlow(np.zeros(2), np.diag([1.0, 1e-8]))
    rows = Sample(jr.normal(jr.key(3), (64, 2)) * jnp.array([1.0, 1e-4]), jnp.zeros((64, 0)))
    with pytest.warns(UserWarning, match=r"error in log_prob is .* nats with 64 steps.*FixedStep\(steps=128\)"):
        solver, errors = choose_steps(jr.key(1), fd.FlowDensity(model), rows, 0.01)
    assert solver.steps == STEP_COUNTS[-1] == errors.steps[-1]
    assert errors.errors[-1] > 0.01


def test_a_fit_chooses_and_reports(conditional_fit):
    report = conditional_fit.report
    assert conditional_fit.density.solver.steps == report.steps.steps[-1]
    assert report.steps.tolerance == 0.01
    assert report.steps.errors[-1] <= 0.01
    assert f"solver: {report.steps.steps[-1]} steps" in report.summary()
    assert report.seconds["solver"] > 0.0


@pytest.mark.parametrize("tolerance", [0.0, -0.1, np.nan, "fine"])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"fit_flow expected `tolerance` as a number of nats above 0; got .*Fix: "):
        fd.fit_flow(jr.key(0), np.random.default_rng(0).normal(size=(20, 2)), tolerance=tolerance)
