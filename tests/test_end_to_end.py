"""A learned prior in NUTS and SVI: posteriors against quadrature, and the tools a user reads them with."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.reparam import Reparam
from references import (
    CONTEXTS,
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    SLOPE,
    conditional_gaussian_flow,
    gaussian_flow,
    untrained_flow,
)

import flowdensity as fd

OBSERVED, NOISE = -0.6, 0.4


def run_nuts(model, *, warmup=150, samples=300, chains=4, seed=0) -> MCMC:
    mcmc = MCMC(
        NUTS(model),
        num_warmup=warmup,
        num_samples=samples,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(seed))
    return mcmc


def check_moments(draws: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> None:
    """Means and deviations of draws, shape (chains, samples, dim), within 4.5 Monte-Carlo standard errors."""
    size = np.array([effective_sample_size(draws[..., i]) for i in range(draws.shape[-1])])
    assert np.all(size > 100.0), size
    flat = draws.reshape(-1, draws.shape[-1]).astype(np.float64)
    assert np.all(np.abs(flat.mean(0) - mean) < 4.5 * deviation / np.sqrt(size))
    # The variance of the square about the mean gives the standard error of a variance; half of it that of a deviation.
    square = np.square(flat - flat.mean(0))
    size = np.array(
        [effective_sample_size(np.square(draws[..., i] - flat[:, i].mean())) for i in range(draws.shape[-1])]
    )
    error = square.std(0) / np.sqrt(size) / (2.0 * deviation)
    assert np.all(np.abs(flat.std(0) - deviation) < 4.5 * error)


def log_likelihood(first):
    """Of what was observed, up to a constant, by the first coordinate."""
    return -0.5 * np.square((OBSERVED - first) / NOISE)


@pytest.fixture(scope="module")
def posterior(plane):
    """Mean and deviation of the posterior under the learned density itself, by quadrature over the plane."""
    return plane.moments(plane.learned + log_likelihood(plane.axis)[:, None])


@pytest.fixture(scope="module")
def learned_prior_run(mixture_fit):
    density = mixture_fit.density

    def model():
        theta = numpyro.sample("theta", density)
        numpyro.sample("x", dist.Normal(theta[0], NOISE), obs=OBSERVED)

    return run_nuts(model)


@pytest.mark.slow
def test_nuts_under_a_learned_prior_finds_the_posterior(learned_prior_run, posterior):
    draws = np.asarray(learned_prior_run.get_samples(group_by_chain=True)["theta"])
    assert draws.shape == (4, 300, 2)
    check_moments(draws, *posterior)


@pytest.mark.slow
def test_nuts_in_the_noise_finds_the_same_posterior(mixture_fit, plane):
    """FlowReparam's prior is the pushforward of the flow: the density with the exact divergence."""
    density = mixture_fit.density
    config: dict[str, Reparam] = {"theta": fd.FlowReparam()}

    @numpyro.handlers.reparam(config=config)
    def model():
        theta = numpyro.sample("theta", density)
        numpyro.sample("x", dist.Normal(theta[0], NOISE), obs=OBSERVED)

    draws = np.asarray(run_nuts(model).get_samples(group_by_chain=True)["theta"])
    check_moments(draws, *plane.moments(plane.exact + log_likelihood(plane.axis)[:, None]))


@pytest.mark.slow
def test_arviz_reads_the_posterior(learned_prior_run):
    import arviz

    summary = arviz.summary(arviz.from_numpyro(learned_prior_run), round_to="none")
    flat = np.asarray(learned_prior_run.get_samples()["theta"], np.float64)
    assert [name for name in summary.index if name.startswith("theta")] == ["theta[0]", "theta[1]"]
    np.testing.assert_allclose(np.asarray(summary["mean"], float), flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(summary["sd"], float), flat.std(0, ddof=1), rtol=1e-2)
    assert np.all(np.asarray(summary["r_hat"], float) < 1.05)


@pytest.mark.slow
def test_units_do_not_matter_to_nuts_with_default_initialization():
    """`init_to_uniform` starts within two units of zero: a thousand deviations away."""
    rows = 1e3 + np.random.default_rng(0).normal(size=(2000, 1))
    density = fd.FlowDensity(untrained_flow(jr.key(1), rows), solver=fd.FixedStep(4))
    draws = np.asarray(
        run_nuts(lambda: numpyro.sample("theta", density)).get_samples(group_by_chain=True)["theta"], np.float64
    )
    assert np.all(gelman_rubin(draws) < 1.02)
    # Before it is trained a flow is the Gaussian fitted to its rows.
    scaling = density.model.scaling
    check_moments(draws, np.asarray(scaling.location, np.float64), np.abs(np.asarray(scaling.scale, np.float64)[0]))


@pytest.mark.slow
def test_a_conditional_density_is_a_likelihood():
    """p(y | theta) in a plate, with gradients into theta: conjugate, so that the posterior is known."""
    density = fd.FlowDensity(conditional_gaussian_flow(), solver=fd.FixedStep(12))
    truth = np.array([0.5, -0.4, 1.0])
    count = 6
    observed = (
        GAUSSIAN_MEAN
        + SLOPE @ truth
        + np.random.default_rng(4).multivariate_normal(np.zeros(2), GAUSSIAN_COVARIANCE, count)
    )

    def model():
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((3,)).to_event(1))
        with numpyro.plate("rows", count):
            numpyro.sample("y", density.given(theta), obs=jnp.asarray(observed, jnp.float32))

    precision = np.eye(3) + count * SLOPE.T @ np.linalg.inv(GAUSSIAN_COVARIANCE) @ SLOPE
    covariance = np.linalg.inv(precision)
    mean = covariance @ SLOPE.T @ np.linalg.inv(GAUSSIAN_COVARIANCE) @ (observed - GAUSSIAN_MEAN).sum(0)
    draws = np.asarray(run_nuts(model).get_samples(group_by_chain=True)["theta"])
    check_moments(draws, mean, np.sqrt(np.diag(covariance)))


@pytest.mark.slow
def test_a_prior_per_row_in_a_plate():
    """Each row has its own context and its own observation: four independent conjugate posteriors in one run."""
    density = fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=fd.FixedStep(12))
    observed, noise = np.array([0.0, 1.0, -2.0, 3.0]), 0.7

    def model():
        with numpyro.plate("rows", 4):
            theta = numpyro.sample("theta", density)
            numpyro.sample("x", dist.Normal(theta[:, 0], noise), obs=observed)

    gain = GAUSSIAN_COVARIANCE[:, 0] / (GAUSSIAN_COVARIANCE[0, 0] + noise**2)
    means = GAUSSIAN_MEAN + CONTEXTS @ SLOPE.T
    expected = means + np.outer(observed - means[:, 0], gain)
    covariance = GAUSSIAN_COVARIANCE - np.outer(gain, GAUSSIAN_COVARIANCE[0])
    draws = np.asarray(run_nuts(model).get_samples(group_by_chain=True)["theta"])
    assert draws.shape == (4, 300, 4, 2)
    check_moments(draws.reshape(4, 300, 8), expected.ravel(), np.tile(np.sqrt(np.diag(covariance)), 4))


@pytest.mark.slow
def test_variational_inference_under_a_learned_prior():
    """A Gaussian prior and likelihood: a full-rank normal guide can be exact."""
    density = fd.FlowDensity(gaussian_flow(), solver=fd.FixedStep(8))

    def model():
        theta = numpyro.sample("theta", density)
        numpyro.sample("x", dist.Normal(theta[0], NOISE), obs=OBSERVED)

    guide = AutoMultivariateNormal(model, init_scale=0.5)
    svi = SVI(model, guide, numpyro.optim.Adam(0.02), Trace_ELBO(num_particles=8))
    result = svi.run(jr.key(0), 1500, progress_bar=False)
    posterior = guide.get_posterior(result.params)
    gain = GAUSSIAN_COVARIANCE[:, 0] / (GAUSSIAN_COVARIANCE[0, 0] + NOISE**2)
    mean = GAUSSIAN_MEAN + gain * (OBSERVED - GAUSSIAN_MEAN[0])
    covariance = GAUSSIAN_COVARIANCE - np.outer(gain, GAUSSIAN_COVARIANCE[0])
    deviation = np.sqrt(np.diag(covariance))
    # Adam at a constant rate of 0.02 hovers within a few steps of the optimum.
    np.testing.assert_allclose(posterior.mean, mean, atol=0.15 * deviation.max())
    np.testing.assert_allclose(np.sqrt(np.diag(posterior.covariance_matrix)), deviation, rtol=0.15)


def test_predictive_draws_follow_the_prior(mixture_fit, plane):
    density = mixture_fit.density
    predictive = numpyro.infer.Predictive(lambda: numpyro.sample("theta", density), num_samples=5000)
    draws = np.asarray(predictive(jr.key(5))["theta"], np.float64)
    mean, deviation = plane.moments(plane.exact)
    assert np.all(np.abs(draws.mean(0) - mean) < 4.5 * deviation / np.sqrt(5000))
