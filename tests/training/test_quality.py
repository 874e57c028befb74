"""How good fits are, against exact references."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import CONDITIONAL_NOISE, CONDITIONAL_SLOPE
from references import MIXTURE, paired, random_flow
from scipy.stats import gamma, lognorm, multivariate_normal, multivariate_t, wishart

import flowdensity as fd


def test_the_learned_divergence_is_close_to_the_exact_one(mixture_fit, exact_mixture):
    fresh = np.float32(MIXTURE.sample(np.random.default_rng(30), 2000))
    exact = np.asarray(exact_mixture.log_prob(fresh), np.float64)
    learned = np.asarray(mixture_fit.density.log_prob(fresh), np.float64) - exact
    probed = (
        np.asarray(exact_mixture.with_divergence(fd.HutchinsonDivergence(jr.key(31))).log_prob(fresh), np.float64)
        - exact
    )
    # A short distillation of a small network, against one Hutchinson probe: five times better. What full fits reach
    # is measured in benchmarks/.
    assert np.sqrt(np.mean(learned**2)) < np.sqrt(np.mean(probed**2)) / 5.0
    # Its mean error is calibrated away up to the reported standard error (of draws of the model, not of these rows:
    # the spread of the error itself bounds what the change of rows can do).
    error = np.hypot(mixture_fit.report.residuals.bias[1], learned.std() / np.sqrt(2000))
    assert abs(learned.mean()) < 4.5 * error


def test_a_mixture_is_learned(mixture_fit, exact_mixture):
    """At least nine tenths of what the fitted Gaussian leaves out, in nats of held-out log density."""
    fresh = MIXTURE.sample(np.random.default_rng(32), 4000)
    truth = MIXTURE.log_prob(fresh)
    gaussian = multivariate_normal(mixture_fit.data.mean(0), np.cov(mixture_fit.data.T)).logpdf(fresh)
    model = exact_mixture.log_prob(np.float32(fresh))
    left_out, _ = paired(truth, gaussian)
    missing, error = paired(truth, model)
    assert left_out > 0.3
    assert missing - 4.5 * error < 0.1 * left_out
    assert missing > -4.5 * error  # and no density beats the truth


def test_a_conditional_law_is_learned(conditional_fit):
    """At least nine tenths of the mutual information between events and contexts, which is known."""
    rng = np.random.default_rng(33)
    context = rng.normal(size=(2000, 1))
    mean = np.array([1.0, 5.0]) + context @ CONDITIONAL_SLOPE.T
    events = mean + rng.multivariate_normal(np.zeros(2), CONDITIONAL_NOISE, 2000)
    truth = multivariate_normal(np.zeros(2), CONDITIONAL_NOISE).logpdf(events - mean)
    marginal = CONDITIONAL_NOISE + CONDITIONAL_SLOPE @ CONDITIONAL_SLOPE.T
    information = 0.5 * (np.linalg.slogdet(marginal)[1] - np.linalg.slogdet(CONDITIONAL_NOISE)[1])
    model = conditional_fit.density.given(np.float32(context)).log_prob(np.float32(events))
    missing, error = paired(truth, model)
    assert missing - 4.5 * error < 0.1 * information
    assert missing > -4.5 * error


def test_conditional_draws_follow_their_context(conditional_fit):
    contexts = np.array([[-1.5], [0.0], [1.5]])
    draws = np.asarray(conditional_fit.density.given(contexts).sample(jr.key(34), (2000,)), np.float64)
    mean = np.array([1.0, 5.0]) + contexts @ CONDITIONAL_SLOPE.T
    deviation = np.sqrt(np.diag(CONDITIONAL_NOISE))
    # A tenth of the mutual information of 1.1 nats, all of it in one mean, would be 0.5 deviations.
    assert np.all(np.abs(draws.mean(0) - mean) < 0.5 * deviation)


def test_a_positive_law_is_learned(positive_fit):
    """At least half of what the fitted log-normal leaves out of a gamma, which is not much."""
    fresh = np.random.default_rng(35).gamma(3.0, 2.0, 4000)
    truth = gamma(3.0, scale=2.0).logpdf(fresh)
    logs = np.log(positive_fit.data)
    log_normal = lognorm(logs.std(), scale=np.exp(logs.mean())).logpdf(fresh)
    model = positive_fit.density.log_prob(np.float32(fresh))
    left_out, _ = paired(truth, log_normal)
    missing, error = paired(truth, model)
    assert missing - 4.5 * error < 0.5 * left_out
    assert missing > -4.5 * error


@pytest.mark.slow
def test_tails_that_are_long_in_all_directions_are_learned():
    """A t law in ten dimensions, which transforms of single columns miss by nats."""
    rng = np.random.default_rng(36)
    shape = wishart(30, np.eye(10)).rvs(random_state=7)
    law = multivariate_t(np.zeros(10), shape, 3.0, seed=rng)
    density, _ = fd.fit_flow(
        jr.key(37),
        law.rvs(2_000),
        training=fd.Training(steps=100),
        divergence=fd.HutchinsonDivergence(jr.key(38)),
        progress=False,
    )
    fresh = law.rvs(2_000)
    missing, error = paired(
        law.logpdf(fresh), density.with_divergence(fd.ExactDivergence()).log_prob(np.float32(fresh))
    )
    assert missing - 4.5 * error < 0.1
    assert missing > -4.5 * error


@pytest.mark.slow
def test_distilling_again_on_other_rows_gives_the_same_divergence(mixture_fit, exact_mixture):
    """`fit_divergence` needs rows only for its centers: fresh rows and another key lead to the same function."""
    fresh = MIXTURE.sample(np.random.default_rng(36), 3000)
    divergence, report = fd.fit_divergence(
        jr.key(37),
        mixture_fit.density.model,
        fresh,
        training=fd.Training(steps=500, batch_size=256, learning_rate=3e-3),
        progress=False,
    )
    assert isinstance(divergence, fd.SteinDivergence)
    assert set(report.losses) == {"divergence"}
    points = np.float32(fresh[:1000])
    exact = np.asarray(exact_mixture.log_prob(points), np.float64)
    errors = np.asarray(exact_mixture.with_divergence(divergence).log_prob(points), np.float64) - exact
    zero = eqx.tree_at(lambda d: (d.head.network.outward.weight, d.head.offset), divergence, replace_fn=jnp.zeros_like)
    nothing = np.asarray(exact_mixture.with_divergence(zero).log_prob(points), np.float64) - exact
    assert np.sqrt(np.mean(errors**2)) < 0.2 * nothing.std()  # four per cent of the variance is left, at most


@pytest.mark.slow
def test_the_divergence_is_learned_on_rows_that_the_model_does_not_make():
    """Their trajectories are off the path from noise to them, and far from those of the model's samples."""
    dim = 8
    density = fd.FlowDensity(random_flow(jr.key(1), dim, width=32))
    middle = np.array([1.0, 1.0] + (dim - 2) * [0.0])
    rows = np.float32(middle + 0.1 * np.random.default_rng(0).normal(size=(600, dim)))
    learned, _ = fd.fit_divergence(
        jr.key(2), density.model, rows[200:], training=fd.Training(steps=600, batch_size=256), progress=False
    )

    def rmse(points):
        error = density.with_divergence(learned).log_prob(points) - density.log_prob(points)
        return np.sqrt(np.mean(np.square(np.asarray(error, np.float64))))

    # They are much alike: without centers on their trajectories they share one bias, three quarters of what samples are off.
    assert rmse(rows[:200]) < 0.3 * rmse(density.sample(jr.key(3), (200,)))


class Whole(eqx.Module):
    """The velocity of a fitted flow in the user's units: a callable that shows nothing else."""

    flow: fd.models.GaussianFlow

    def __call__(self, t, x, context):
        state, _ = self.flow.scaling.whiten(x)
        return self.flow.scaling.scale @ self.flow.velocity(t, state, jnp.zeros(0))


@pytest.mark.slow
def test_the_divergence_of_a_wrapped_velocity_is_learned(mixture_fit, exact_mixture):
    """No features and no path: a head of its own, and kernels about trajectories."""
    flow = mixture_fit.density.model
    base = dist.MultivariateNormal(flow.scaling.location, flow.scaling.scale @ flow.scaling.scale.T)
    field = fd.VelocityField(Whole(flow), base, times=(0.0, float(jnp.pi / 2.0)))
    fresh = np.float32(MIXTURE.sample(np.random.default_rng(38), 1000))
    # It is the same density, on a grid of its own.
    exact = np.asarray(fd.FlowDensity(field).log_prob(fresh), np.float64)
    np.testing.assert_allclose(exact, exact_mixture.log_prob(fresh), atol=0.1)
    divergence, report = fd.fit_divergence(
        jr.key(39),
        field,
        mixture_fit.data,
        training=fd.Training(batch_size=256, steps=800, learning_rate=2e-3),
        progress=False,
    )
    density = fd.FlowDensity(field, divergence=divergence)
    errors = np.asarray(density.log_prob(fresh), np.float64) - exact
    probed = density.with_divergence(fd.HutchinsonDivergence(jr.key(40))).log_prob(fresh) - exact
    assert np.sqrt(np.mean(errors**2)) < np.std(probed) / 5.0
    error = np.hypot(report.residuals.bias[1], errors.std() / np.sqrt(1000))
    assert abs(errors.mean()) < 4.5 * error
    np.testing.assert_allclose(report.residuals.times, np.linspace(0.0, np.pi / 2.0, 9), atol=1e-6)
