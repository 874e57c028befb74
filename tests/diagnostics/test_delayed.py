"""DelayedAcceptance: draws of the exact posterior, by a sampler of another one."""

import itertools

import arviz
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import HMC, MCMC, NUTS, SA
from planted import SOLVER, Planted, observed
from references import NAMED_COVARIANCE, NAMED_MEAN, gaussian_flow, named_flow

import flowdensity as fd
from flowdensity.diagnostics.correction import correction
from flowdensity.diagnostics.delayed import DelayedAcceptance

Y, NOISE = np.array([0.5, -1.0]), 0.8
MEAN, COVARIANCE = observed(Y, NOISE)
AWAY = np.array([1.0, 0.5])
NAT = AWAY / np.sqrt(AWAY @ COVARIANCE @ AWAY)
"""A slope of one nat, root mean square, over the posterior."""


def exact() -> fd.FlowDensity:
    return fd.FlowDensity(gaussian_flow(), solver=SOLVER)


def learned(nats: float) -> fd.FlowDensity:
    return exact().with_divergence(Planted(nats * NAT))


def model(density):
    # Without arguments: numpyro compiles anew for those that it cannot hash.
    def seen():
        theta = numpyro.sample("theta", density)
        numpyro.sample("y", dist.Normal(theta, NOISE).to_event(1), obs=Y)

    return seen


def short(model, step_size=0.35, num_steps=4) -> HMC:
    """Trajectories of about the posterior's width: cheap to compile, and reversible as NUTS is."""
    return HMC(model, step_size=step_size, num_steps=num_steps, trajectory_length=None, adapt_step_size=False)


def chains(kernel, *, method="vectorized", warmup=200, draws=1000, count=4) -> MCMC:
    mcmc = MCMC(kernel, num_warmup=warmup, num_samples=draws, num_chains=count, chain_method=method, progress_bar=False)
    mcmc.run(jr.key(0))
    return mcmc


def assert_moments(draws, mean, covariance):
    """Means and variances of draws, shape `(chain, draw, dim)`, within 4 of arviz's Monte-Carlo standard errors."""
    draws = np.asarray(draws, np.float64)
    for what, expected in ((draws, mean), ((draws - mean) ** 2, np.diag(covariance))):
        error = np.asarray(arviz.mcse({"x": what}, method="mean")["x"])
        assert np.all(np.abs(what.mean((0, 1)) - expected) < 4.0 * error), (what.mean((0, 1)) - expected) / error


@pytest.fixture(scope="module")
def half_a_nat() -> MCMC:
    return chains(DelayedAcceptance(short(model(learned(0.5))), {"theta": exact()}))


def test_half_a_nat_is_corrected(half_a_nat):
    draws = half_a_nat.get_samples(group_by_chain=True)["theta"]
    assert draws.shape == (4, 1000, 2)
    assert_moments(draws, MEAN, COVARIANCE)
    with pytest.raises(AssertionError):
        assert_moments(draws, MEAN - COVARIANCE @ (0.5 * NAT), COVARIANCE)  # of the posterior that proposes


def test_acceptance_is_reported(half_a_nat):
    accept = np.asarray(half_a_nat.get_extra_fields(group_by_chain=True)["accept"])
    assert accept.dtype == bool
    assert 0.5 < accept.mean() < 0.95
    state = half_a_nat.last_state
    assert state.i == 1200
    # The mean of probabilities and the share of acceptances: each draw's variance is below 1/4.
    assert np.all(np.abs(state.mean_accept_prob - accept.mean(1)) < 4.0 * 0.5 / np.sqrt(1000))
    draws = half_a_nat.get_samples(group_by_chain=True)["theta"]
    stayed = np.all(draws[:, 1:] == draws[:, :-1], axis=-1)
    assert np.all(stayed[~accept[:, 1:]])


def test_arviz_reads_it(half_a_nat):
    data = arviz.from_numpyro(half_a_nat)
    assert data["posterior"]["theta"].shape == (4, 1000, 2)
    assert set(data["sample_stats"].data_vars) >= {"accept", "diverging"}


@pytest.mark.slow
def test_a_hopeless_error_is_corrected():
    """4 nats: weights would have k above 1.1, and the two posteriors' means are 4 standard deviations apart."""
    kernel = short(model(learned(4.0)), 0.3, 2)
    mcmc = chains(DelayedAcceptance(kernel, {"theta": exact()}), draws=4000)
    # From where warm-up left it, under the other posterior, it takes tens of steps.
    assert_moments(mcmc.get_samples(group_by_chain=True)["theta"][:, 500:], MEAN, COVARIANCE)
    assert 0.1 < mcmc.get_extra_fields()["accept"].mean() < 0.9


@pytest.mark.slow
def test_without_an_error_all_are_accepted():
    mcmc = chains(DelayedAcceptance(short(model(exact())), {"theta": exact()}), warmup=20, draws=50, count=2)
    assert np.all(mcmc.get_extra_fields()["accept"])
    np.testing.assert_array_equal(mcmc.last_state.mean_accept_prob, 1.0)


@pytest.mark.slow
def test_supports_are_constrained():
    """Values on the half line, several transitions for each proposal, and chains one after the other."""
    slope = np.array([0.6, -0.4, 0.8, 0.2])
    alone = fd.FlowDensity(named_flow(), solver=SOLVER)

    def named():
        fd.sample_sites("theta", alone.with_divergence(Planted(slope)))

    delayed = DelayedAcceptance(short(named, 0.3, 2), {"theta": alone}, steps=3)
    mcmc = chains(delayed, method="sequential", draws=3000, count=2)
    samples = mcmc.get_samples(group_by_chain=True)
    assert set(samples) == {"theta", "a", "tau", "v"}
    np.testing.assert_allclose(samples["theta"][..., 2:], samples["v"], rtol=1e-5)
    logs = np.concatenate([samples["a"][..., None], np.log(samples["tau"])[..., None], np.log(samples["v"])], axis=-1)
    assert_moments(logs, NAMED_MEAN, NAMED_COVARIANCE)
    assert mcmc.get_extra_fields()["accept"].mean() < 0.95


@pytest.mark.slow
def test_nuts_is_corrected():
    mcmc = chains(DelayedAcceptance(NUTS(model(learned(1.0))), {"theta": exact()}))
    assert_moments(mcmc.get_samples(group_by_chain=True)["theta"], MEAN, COVARIANCE)


# A chain by hand ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand():
    """A kernel under an error of 4 nats, and its states: three of warm-up and more."""
    kernel = DelayedAcceptance(short(model(learned(4.0))), {"theta": exact()})
    move = jax.jit(lambda state: kernel.sample(state, (), {}))
    states = [kernel.init(jr.key(1), 3, None, (), {})]
    for _ in range(30):
        states.append(move(states[-1]))
    return kernel, states


def total(draw):
    return correction("test", model(learned(4.0)), (), None, {"theta": exact()}).total(draw)


@pytest.mark.slow
def test_the_log_ratio_is_that_of_where_the_chain_is(by_hand):
    _, states = by_hand
    assert all(state.accept for state in states[:4])
    assert {bool(state.accept) for state in states} == {True, False}
    assert {float(state.log_ratio) for state in states[:3]} == {0.0}
    for before, state in itertools.pairwise(states[3:]):
        np.testing.assert_allclose(state.log_ratio, total(state.z), atol=1e-4)
        assert state.inner.i == state.i
        if not state.accept:
            np.testing.assert_array_equal(state.z["theta"], before.z["theta"])
            np.testing.assert_array_equal(state.potential_energy, before.potential_energy)
            np.testing.assert_array_equal(state.inner.z_grad["theta"], before.inner.z_grad["theta"])


@pytest.mark.slow
def test_without_warm_up_it_starts_where_it_is_put():
    kernel = DelayedAcceptance(short(model(learned(4.0))), {"theta": exact()})
    place = {"theta": jnp.array([[0.3, -0.5], [1.0, -2.0]])}
    state = kernel.init(jr.split(jr.key(0), 2), 0, place, (), {})
    np.testing.assert_array_equal(state.z["theta"], place["theta"])
    np.testing.assert_allclose(state.log_ratio, jax.vmap(total)(place), atol=1e-4)


@pytest.mark.slow
def test_a_draw_that_the_exact_density_does_not_have_is_refused(by_hand, monkeypatch):
    kernel, states = by_hand
    home = "flowdensity.diagnostics.correction.Correction.total"
    monkeypatch.setattr(home, lambda self, draw: jnp.sum(draw["theta"]) * jnp.nan)
    after = jax.jit(lambda state: kernel.sample(state, (), {}))(states[-1])
    assert not after.accept
    np.testing.assert_array_equal(after.z["theta"], states[-1].z["theta"])
    assert np.isfinite(after.mean_accept_prob)


@pytest.mark.slow
def test_a_run_goes_on_from_its_warm_up():
    mcmc = MCMC(
        DelayedAcceptance(short(model(learned(4.0))), {"theta": exact()}),
        num_warmup=10, num_samples=5, num_chains=2, chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.warmup(jr.key(0))
    start = mcmc.last_state
    np.testing.assert_allclose(start.log_ratio, jax.vmap(total)(start.z), atol=1e-4)
    runs = []
    for key in (1, 1, 2):
        mcmc.post_warmup_state = start
        mcmc.run(jr.key(key))
        runs.append(np.asarray(mcmc.get_samples()["theta"]))
    assert mcmc.last_state.i == 15
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.any(runs[0] != runs[2])


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [model(exact()), SA(model(exact())), HMC(potential_fn=lambda z: z**2)])
def test_another_kernel_is_refused(kernel):
    with pytest.raises(TypeError, match=r"DelayedAcceptance expected `kernel` .* Fix: "):
        DelayedAcceptance(kernel, {"theta": exact()})


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match=r"DelayedAcceptance expected `steps` .* Fix: "):
        DelayedAcceptance(NUTS(model(exact())), {"theta": exact()}, steps=0)


@pytest.mark.parametrize(
    ("name", "says"), [("phi", "to name sites of `model`"), ("y", "site 'y' to have a FlowDensity")]
)
def test_a_site_that_cannot_be_corrected_is_refused_before_the_run(name, says):
    mcmc = MCMC(
        DelayedAcceptance(NUTS(model(exact())), {name: exact()}), num_warmup=1, num_samples=1, progress_bar=False
    )
    with pytest.raises(ValueError, match=rf"DelayedAcceptance expected .*{says}.* Fix: "):
        mcmc.run(jr.key(0))
