"""What arviz makes of learned densities, in 0.x and in 1.x: every group of a run, and leave-one-out on a learned likelihood."""

import warnings

import arviz as az
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoNormal
from planted import in_arviz
from references import NAMED, conditional_gaussian_flow, conditional_gaussian_log_prob, named_flow

import flowdensity as fd

PRIOR = fd.FlowDensity(named_flow(), solver=fd.FixedStep(4))  # nothing here depends on how exact it is
LIKELIHOOD = fd.FlowDensity(conditional_gaussian_flow())
ROWS = 12
DATA = np.asarray(LIKELIHOOD.given(np.array([0.5, 0.8, 0.9])).sample(jr.key(0), (ROWS,)))


def model(y=None):
    values = fd.sample_sites("theta", PRIOR)
    context = numpyro.deterministic("context", jnp.stack([values["a"], values["tau"], values["v"][0]], axis=-1))
    with numpyro.plate("rows", ROWS):
        numpyro.sample("y", LIKELIHOOD.given(context), obs=y)


@pytest.fixture(scope="module")
def run():
    mcmc = MCMC(
        NUTS(model, max_tree_depth=5), num_warmup=100, num_samples=100, num_chains=2, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(jr.key(1), y=DATA)
    prior = Predictive(model, num_samples=50)(jr.key(2))
    predictive = Predictive(model, mcmc.get_samples())(jr.key(3))
    return mcmc, prior, predictive


def array(tree, group, name):
    return np.asarray(tree[group][name])


def elpd(loo):
    return float(getattr(loo, "elpd_loo", getattr(loo, "elpd", None)))


def test_every_group_of_a_run_comes_out_right(run):
    mcmc, prior, predictive = run
    if hasattr(az, "convert_to_datatree"):  # arviz 1.x wants chains
        prior = {name: values[None] for name, values in prior.items()}
    read = az.from_numpyro(
        mcmc, prior=prior, posterior_predictive={"y": predictive["y"]}, log_likelihood=True, dims={"y": ["row"]},
        coords={"row": np.arange(ROWS)},
    )  # fmt: skip
    for name, shape in (("theta", (4,)), *zip(NAMED.names, NAMED.shapes, strict=True)):
        assert array(read, "posterior", name).shape == (2, 100, *shape)
        assert array(read, "prior", name).shape == (1, 50, *shape)
    draws = mcmc.get_samples(group_by_chain=True)
    assert array(read, "posterior", "v").tobytes() == np.asarray(draws["theta"][..., 2:]).tobytes()
    assert array(read, "posterior_predictive", "y").shape == (2, 100, ROWS, 2)
    assert array(read, "prior_predictive", "y").shape == (1, 50, ROWS, 2)
    assert np.array_equal(array(read, "observed_data", "y"), DATA)
    found = array(read, "log_likelihood", "y")
    expected = conditional_gaussian_log_prob(DATA, np.asarray(draws["context"])[..., None, :])
    assert found.shape == (2, 100, ROWS)
    assert np.max(np.abs(found - expected) / (1.0 + np.abs(expected))) < 1e-2  # the solver's steps


def test_leave_one_out_runs_on_a_learned_likelihood(run):
    """And agrees with that of the closed form, draw for draw."""
    mcmc, _, _ = run
    read = az.from_numpyro(mcmc, log_likelihood=True)
    context = np.asarray(mcmc.get_samples(group_by_chain=True)["context"])[..., None, :]
    exact = in_arviz(
        posterior={"context": np.asarray(context)[..., 0, :]},
        log_likelihood={"y": conditional_gaussian_log_prob(DATA, context)},
    )
    ours, theirs = (az.loo(each, pointwise=True) for each in (read, exact))
    assert np.isfinite(elpd(ours))
    assert abs(elpd(ours) - elpd(theirs)) < 0.01 * ROWS
    assert np.all(np.asarray(ours.pareto_k) < 0.7)


@pytest.mark.slow
def test_svi_comes_out_as_a_run_does(run):
    mcmc, _, _ = run
    guide = AutoNormal(model)
    fitted = SVI(model, guide, numpyro.optim.Adam(0.02), Trace_ELBO(num_particles=4)).run(
        jr.key(4), 1500, progress_bar=False, y=DATA
    )
    drawn = Predictive(guide, params=fitted.params, num_samples=400)(jr.key(5), y=DATA)
    posterior = Predictive(model, drawn, return_sites=["theta", *NAMED.names, "context"])(jr.key(6), y=DATA)
    read = in_arviz(
        posterior={name: np.asarray(value)[None] for name, value in posterior.items()},
        log_likelihood={"y": np.asarray(log_likelihood(model, posterior, y=DATA)["y"])[None]},
    )
    assert array(read, "log_likelihood", "y").shape == (1, 400, ROWS)
    assert set(NAMED.names) <= set(read["posterior"].data_vars)
    summary = az.summary(read["posterior"], var_names=["a"], round_to="none")
    # Independent normals have the mean of the posterior, not its shape: what is left is the error of the run of 200 draws.
    long = np.asarray(mcmc.get_samples(group_by_chain=True)["a"], np.float64)
    error = long.std() * np.sqrt(1.0 / effective_sample_size(long) + 1.0 / 400.0)
    assert abs(float(summary["mean"].iloc[0]) - long.mean()) < 4.5 * error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # independent normals miss the tails that leave-one-out needs
        assert np.isfinite(elpd(az.loo(read)))


def test_a_dataset_wide_factor_of_a_prior_is_no_likelihood(run):
    """Only observed sites are in the group: a learned prior is not."""
    mcmc, _, _ = run
    assert list(az.from_numpyro(mcmc, log_likelihood=True)["log_likelihood"].data_vars) == ["y"]


def test_a_masked_observation_keeps_its_place():
    def masked(y=None):
        theta = numpyro.sample("theta", dist.Normal(jnp.zeros(3)).to_event(1))
        with numpyro.plate("rows", ROWS):
            numpyro.sample("y", LIKELIHOOD.given(theta).mask(np.arange(ROWS) < 5), obs=y)

    draws = {"theta": jnp.zeros((7, 3))}
    found = np.asarray(log_likelihood(masked, draws, y=DATA)["y"])
    assert found.shape == (7, ROWS)
    assert np.all(found[:, 5:] == 0.0)
    assert np.all(found[:, :5] != 0.0)
