"""Residuals and calibration: a planted bias is seen, reported and taken out; where there is none, nothing is claimed."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import EPS32, trace_of_jacobian, untrained_flow
from scipy.stats import chi2, multivariate_normal

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.divergence.calibration import calibrate, stein_residuals
from flowdensity.divergence.centers import PathCenters
from flowdensity.divergence.kernel import mean_jacobian
from flowdensity.divergence.stein import DivergenceHead

PLANTED = 0.3
FRAMES = 16_384


@pytest.fixture(scope="module")
def setting(mixture_fit):
    """The fitted model and head, the control variate, and two independent sets of kernel draws."""
    model, head = mixture_fit.density.model, mixture_fit.density.divergence.head
    states = jax.vmap(lambda x: model.scaling.whiten(x)[0])(jnp.asarray(mixture_fit.data, jnp.float32))
    sample = Sample(states, jnp.zeros((len(states), 0)))
    control_draws, first, second = (
        PathCenters(sample, model).draw(jr.key(seed), FRAMES, rho=0.1, tails=0.0, directions=2) for seed in (20, 21, 22)
    )
    control = eqx.filter_jit(mean_jacobian)(model, model.times(16), control_draws)
    return model, head, control, first, second


def plant(head, bias):
    return eqx.tree_at(lambda h: h.offset, head, head.offset.at[0].add(bias))


class OracleHead(eqx.Module):
    """The exact divergence in the shape of a head."""

    model: fd.models.GaussianFlow

    def __call__(self, time, state, hidden):
        return trace_of_jacobian(self.model, time, state, jnp.zeros(0))


def test_residuals_of_the_exact_divergence_are_noise(setting):
    model, _, control, first, _ = setting
    residuals = stein_residuals(OracleHead(model), model, control, first)
    assert residuals.functions == ("1", "g", "y[0]", "y[1]")
    assert residuals.mean.shape == residuals.standard_error.shape == (8, 4)
    np.testing.assert_allclose(residuals.times, np.linspace(0.0, np.pi / 2.0, 9), rtol=1e-6)
    # Eight independent bins: for each test function the sum of z^2 is chi-squared with 8 degrees of freedom. Four
    # of them, with a false alarm of 1e-5 each.
    z = residuals.z
    assert np.all(np.square(z).sum(0) < chi2(8).isf(1e-5))
    bias, error = residuals.bias
    assert abs(bias) < 4.5 * error


def test_residuals_are_the_means_they_are_called(setting):
    """E[g - T] per bin, against the mean of g - div F at the same points, which has the same expectation."""
    model, head, control, first, _ = setting
    head = plant(head, PLANTED)
    residuals = stein_residuals(head, model, control, first)

    @jax.jit
    @jax.vmap
    def error(kernel):
        def one(point):
            hidden = model.network_velocity(kernel.time, point, kernel.context)[1]
            return head(kernel.time, point, hidden) - trace_of_jacobian(model, kernel.time, point, kernel.context)

        return jnp.mean(jax.vmap(one)(kernel.center + kernel.width * kernel.noise))

    errors, angles = np.asarray(error(first), np.float64), np.asarray(first.time)
    for i in range(8):
        rows = (angles >= residuals.times[i]) & (angles <= residuals.times[i + 1])
        # Both means are over the same draws; each is at most its standard error from the common expectation.
        own = errors[rows].std() / np.sqrt(rows.sum())
        assert abs(residuals.mean[i, 0] - errors[rows].mean()) < 4.5 * (residuals.standard_error[i, 0] + own)


def test_a_planted_bias_is_seen_and_reported(setting, mixture_fit):
    model, head, control, first, _ = setting
    before = stein_residuals(head, model, control, first)
    after = stein_residuals(plant(head, PLANTED), model, control, first)
    np.testing.assert_allclose((after.mean - before.mean)[:, 0], PLANTED, rtol=0.1)
    assert np.all(after.z[:, 0] > 6.0)

    # log p = ... minus the integral of g over the angles; the radial factor of the head is just below one.
    expected = before.bias[0] - PLANTED * np.pi / 2.0
    assert after.bias[0] == pytest.approx(expected, abs=0.1 * PLANTED * np.pi / 2.0)
    assert abs(after.bias[0]) > 10.0 * after.bias[1]

    clean, biased = (
        dataclasses.replace(mixture_fit.report, residuals=residuals).summary() for residuals in (before, after)
    )
    assert f"{after.bias[0]:+.3f} +- {after.bias[1]:.3f} nats" in biased
    assert f"{before.bias[0]:+.3f} +- {before.bias[1]:.3f} nats" in clean

    def share(text):
        return int(re.search(r"(\d+)% of 32 Stein residuals", text).group(1))

    assert share(biased) > share(clean)
    assert share(biased) >= 25  # those of the constant, at the least, which are a quarter


class TimedError(eqx.Module):
    """An error that decays over time, of a divergence that is zero."""

    def __call__(self, time, state, hidden):
        return jnp.exp(-3.0 * time)


def test_the_bias_is_an_integral_over_time_however_times_are_drawn():
    """The logarithm of the noise is uniform here: half of the draws are close to either end angle."""
    states = np.random.default_rng(0).normal(size=(500, 2))
    model = eqx.tree_at(lambda m: m.path, untrained_flow(jr.key(0), states), fd.paths.VarianceExploding(0.002, 80.0))
    sample = Sample(jnp.asarray(states, float), jnp.zeros((500, 0)))
    kernels = PathCenters(sample, model).draw(jr.key(1), FRAMES, rho=0.1, tails=0.0, directions=2)
    control = mean_jacobian(model, model.times(16), kernels)
    bias, error = stein_residuals(TimedError(), model, control, kernels).bias
    assert abs(bias + (1.0 - np.exp(-1.5 * np.pi)) / 3.0) < 4.5 * error < 0.02


def test_a_planted_bias_shows_in_log_prob(mixture_fit, exact_mixture):
    density = mixture_fit.density
    biased = density.with_divergence(fd.SteinDivergence(plant(density.divergence.head, PLANTED)))
    draws = density.sample(jr.key(23), (500,))
    shift = np.asarray(biased.log_prob(draws) - density.log_prob(draws))
    # Exactly -0.3 times the path's length in angle, but for the radial factor, which is near one where data are.
    np.testing.assert_allclose(shift.mean(), -PLANTED * np.pi / 2.0, rtol=0.1)
    assert np.all(shift < 0.0)


def test_calibration_takes_a_planted_bias_out(setting):
    model, head, control, first, second = setting
    mended = calibrate(plant(head, PLANTED), model, control, first)
    before = stein_residuals(plant(head, PLANTED), model, control, second).bias
    after = stein_residuals(mended, model, control, second).bias
    assert abs(before[0]) > 10.0 * before[1]
    # Fresh draws, as many as it was calibrated on: its own error and that of the check add up.
    assert abs(after[0]) < 4.5 * np.sqrt(2.0) * after[1]
    # Only the offset was touched.
    for leaf, other in zip(
        jax.tree.leaves(eqx.tree_at(lambda h: h.offset, mended, head.offset)), jax.tree.leaves(head), strict=True
    ):
        np.testing.assert_array_equal(leaf, other)


def coefficient_error(residuals):
    """Bound on the standard error of one coefficient of the offset: 2/n times the variance for cosines at uniform angles, taken
    from the bin where it is largest, and half as much again because the angles of the path are not uniform."""
    variance = np.max(np.square(residuals.standard_error[:, 0])) * FRAMES / 8.0
    return 1.5 * np.sqrt(2.0 * variance / FRAMES)


def test_calibration_finds_a_bias_that_changes_with_the_angle(setting):
    model, head, control, first, _ = setting
    planted = jnp.array([0.0, 0.4, 0.0, -0.2])
    mended = calibrate(eqx.tree_at(lambda h: h.offset, head, head.offset + planted), model, control, first)
    plain = calibrate(head, model, control, first)
    # The planted change is in the span of the basis, so a regression on the same draws takes it out; each coefficient is
    # then shrunk, once large and once small, by its standard error at most.
    error = coefficient_error(stein_residuals(head, model, control, first))
    assert error < 0.05
    assert np.all(np.abs(mended.offset - plain.offset) < 2.0 * error)


def test_calibration_leaves_what_is_not_there_alone(setting):
    model, head, control, first, _ = setting

    class Offset(eqx.Module):
        oracle: OracleHead
        learned: DivergenceHead
        offset: jax.Array

        def basis(self, time, state):
            return self.learned.basis(time, state)

        def __call__(self, time, state, hidden):
            return self.oracle(time, state, hidden)

    oracle = OracleHead(model)
    mended = calibrate(Offset(oracle, head, jnp.zeros(4)), model, control, first)
    error = coefficient_error(stein_residuals(oracle, model, control, first))
    assert np.all(np.abs(mended.offset) < 4.5 * error)


def test_the_report_of_the_fit_is_of_its_own_divergence(mixture_fit):
    residuals = mixture_fit.report.residuals
    bias, error = residuals.bias
    assert 0.0 < error < 0.02
    # It was calibrated on as many other draws.
    assert abs(bias) < 4.5 * np.sqrt(2.0) * error
    assert f"{bias:+.3f}" in mixture_fit.report.summary()
    assert str(mixture_fit.report) == mixture_fit.report.summary()


@pytest.mark.slow
def test_a_model_that_stayed_at_the_fitted_gaussian_has_nothing_to_calibrate():
    """Early stopping may return the first weights, F = 0: a learned divergence of zero is exact, and log_prob finite."""
    events = np.random.default_rng(24).normal(size=(300, 2))
    model = untrained_flow(jr.key(25), events)
    divergence, report = fd.fit_divergence(
        jr.key(26), model, events, training=fd.Training(steps=20, batch_size=64), progress=False
    )
    np.testing.assert_array_equal(divergence.head.offset, np.zeros(4))
    assert "nothing to learn" in report.summary()
    factor = np.asarray(model.scaling.scale, np.float64)
    expected = multivariate_normal(np.asarray(model.scaling.location, np.float64), factor @ factor.T).logpdf(events)
    density = fd.FlowDensity(model, divergence=divergence)
    np.testing.assert_allclose(density.log_prob(np.float32(events)), expected, rtol=32.0 * EPS32, atol=32.0 * EPS32)
