"""A FlowDensity inside numpyro's own: mixtures, transforms, chains and handlers."""

import pickle

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import transforms
from numpyro.infer import HMC, MCMC
from numpyro.infer.inspect import get_dependencies, get_model_relations
from numpyro.infer.util import log_density
from references import CONTEXTS, EPS32, amortized, conditional_gaussian_flow, gaussian_flow, named_flow, random_flow
from scipy.special import logsumexp

import flowdensity as fd

# What is tested is who calls whom, not accuracy, and compilation takes most of the time.
SOLVER = fd.FixedStep(2)
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
COVARIANCE = np.array([[1.5, -0.4], [-0.4, 0.8]])
VALUES = jnp.array([[0.5, -1.0], [2.0, 0.3], [-4.0, 1.0]])


def density() -> fd.FlowDensity:
    return fd.FlowDensity(gaussian_flow(), solver=SOLVER)


def given() -> fd.FlowDensity:
    return fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=SOLVER)


def same_family() -> dist.Distribution:
    return dist.MixtureSameFamily(dist.Categorical(probs=WEIGHTS), given())


def general() -> dist.Distribution:
    return dist.MixtureGeneral(
        dist.Categorical(probs=jnp.array([0.3, 0.7])),
        [density(), dist.MultivariateNormal(jnp.ones(2), COVARIANCE)],
    )


def shifted() -> dist.Distribution:
    return dist.TransformedDistribution(density(), transforms.AffineTransform(jnp.array([1.0, -2.0]), 3.0))


def mixed(terms: list, weights: np.ndarray) -> np.ndarray:
    return logsumexp(np.stack(terms, axis=-1).astype(np.float64) + np.log(weights), axis=-1)


# name: (composition, its log density with the terms written out)
COMPOSED = {
    "a mixture over contexts": (
        same_family,
        lambda x: mixed([given().log_prob(x[:, None])[:, k] for k in range(4)], WEIGHTS),
    ),
    "a mixture beside a normal": (
        general,
        lambda x: mixed(
            [density().log_prob(x), dist.MultivariateNormal(jnp.ones(2), COVARIANCE).log_prob(x)], [0.3, 0.7]
        ),
    ),
    "transformed": (
        shifted,
        lambda x: density().log_prob((x - jnp.array([1.0, -2.0])) / 3.0) - 2.0 * np.log(3.0),
    ),
}


@pytest.mark.parametrize(("build", "written_out"), COMPOSED.values(), ids=COMPOSED.keys())
def test_log_density_is_that_written_out(build, written_out):
    composed = build()
    assert composed.batch_shape == ()
    assert composed.event_shape == (2,)
    value = jax.jit(composed.log_prob)(VALUES)
    np.testing.assert_allclose(value, written_out(VALUES), rtol=1e-5, atol=1e-5)
    assert composed.sample(jr.key(0), (5,)).shape == (5, 2)
    np.testing.assert_array_equal(composed.support(VALUES), [True] * 3)


def test_a_mixture_is_sampled_in_its_proportions():
    """Components by context, far apart: which one a draw came from is read off it."""
    far = np.array([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0], [-100.0, 0.0, 0.0], [200.0, 0.0, 0.0]])
    fn = fd.FlowDensity(conditional_gaussian_flow(), far, solver=SOLVER)
    draws = np.asarray(dist.MixtureSameFamily(dist.Categorical(probs=WEIGHTS), fn).sample(jr.key(1), (4000,)))
    centers = 1.0 + far @ np.array([0.8, -0.3, 0.0])
    counts = np.bincount(np.abs(draws[:, :1] - centers).argmin(1), minlength=4)
    assert np.all(np.abs(counts - 4000 * WEIGHTS) < 4.5 * np.sqrt(4000 * WEIGHTS * (1.0 - WEIGHTS)))


@pytest.mark.parametrize("build", [density, given, lambda: density().expand((3,)), same_family, shifted])
@pytest.mark.parametrize(
    "moment",
    [lambda d: d.mean, lambda d: d.variance, lambda d: d.cdf(VALUES), lambda d: d.icdf(VALUES), lambda d: d.entropy()],
    ids=["mean", "variance", "cdf", "icdf", "entropy"],
)
def test_what_has_no_closed_form_is_not_implemented(build, moment):
    with pytest.raises(NotImplementedError):
        moment(build())


# Chains --------------------------------------------------------------------------------------------


def regression(y=0.4):
    theta = numpyro.sample("theta", density())
    shift = numpyro.sample("shift", dist.Normal(theta[0], 1.0))
    numpyro.sample("y", dist.Normal(shift + theta[1], 0.5), obs=y)


def latent():
    numpyro.sample("theta", density())


def chains(method: str) -> MCMC:
    mcmc = MCMC(
        HMC(latent, num_steps=2, adapt_step_size=False),
        num_warmup=5,
        num_samples=4,
        num_chains=2,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jr.key(0))
    return mcmc


@pytest.fixture(scope="module")
def vectorized() -> MCMC:
    return chains("vectorized")


@pytest.mark.slow
def test_chain_methods_agree_in_shape(vectorized):
    shapes = [
        {name: (draws.shape, draws.dtype) for name, draws in mcmc.get_samples(group_by_chain=True).items()}
        for mcmc in (vectorized, chains("sequential"))
    ]
    assert shapes[0] == shapes[1]
    assert {name: shape for name, (shape, _) in shapes[0].items()} == {"theta": (2, 4, 2)}


def test_chains_that_hold_a_density_are_pickled(vectorized):
    again = pickle.loads(pickle.dumps(vectorized))
    for name, draws in vectorized.get_samples().items():
        np.testing.assert_array_equal(again.get_samples()[name], draws)
    np.testing.assert_array_equal(again.last_state.z["theta"], vectorized.last_state.z["theta"])


# Handlers ------------------------------------------------------------------------------------------

EVENT = jnp.array([0.3, -0.7])


def test_a_condition_observes_the_event():
    conditioned = handlers.condition(regression, {"theta": EVENT})
    value, trace = log_density(handlers.seed(conditioned, jr.key(1)), (), {}, {"shift": jnp.asarray(0.1)})
    assert trace["theta"]["is_observed"]
    expected = density().log_prob(EVENT) + dist.Normal(0.3, 1.0).log_prob(0.1) + dist.Normal(-0.6, 0.5).log_prob(0.4)
    np.testing.assert_allclose(value, expected, rtol=8.0 * EPS32)


def test_an_intervention_cuts_the_event_off():
    trace = handlers.trace(handlers.seed(handlers.do(regression, {"theta": EVENT}), jr.key(1))).get_trace()
    assert not np.array_equal(trace["theta"]["value"], EVENT)
    np.testing.assert_array_equal(trace["shift"]["fn"].loc, EVENT[0])


def test_relations_are_read_off_a_model():
    def model(y=None):
        with numpyro.plate("groups", 4):
            theta = numpyro.sample("theta", given())
        numpyro.sample("y", dist.Normal(theta.sum(), 1.0), obs=y)

    relations = get_model_relations(model, (0.5,))
    assert relations["sample_sample"] == {"theta": [], "y": ["theta"]}
    assert relations["sample_dist"] == {"theta": "FlowDensity", "y": "Normal"}
    assert relations["plate_sample"] == {"groups": ["theta"]}
    assert relations["observed"] == ["y"]
    dependencies = get_dependencies(model, (0.5,))
    assert set(dependencies["prior_dependencies"]["y"]) == {"theta", "y"}


def test_relations_know_of_named_values():
    def model(y=None):
        values = fd.sample_sites("theta", fd.FlowDensity(named_flow(), solver=SOLVER))
        numpyro.sample("y", dist.Normal(values["a"], values["tau"]), obs=y)

    relations = get_model_relations(model, (0.5,))
    assert relations["sample_dist"]["theta"] == "FlowDensity"
    assert relations["sample_sample"]["y"] == ["a", "tau"]
    assert relations["sample_sample"]["v"] == ["theta"]


@pytest.mark.parametrize("kind", [lambda flow: flow, amortized], ids=["flow", "amortized"])
@pytest.mark.parametrize("conditional", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_scan_scores_every_step(conditional, kind):
    model = random_flow(jr.key(0), 1, size=0.5, context_dim=int(conditional))
    chained = kind(fd.FlowDensity(model, solver=SOLVER))

    def walk(ys):
        def step(state, y):
            here = chained.given(state) if conditional else chained
            state = numpyro.sample("x", here)
            numpyro.sample("y", dist.Normal(state, 1.0).to_event(1), obs=y)
            return state, None

        scan(step, jnp.zeros(1), ys)

    ys, xs = jnp.zeros((4, 1)), jnp.array([[0.1], [0.2], [-0.3], [0.4]])
    before = jnp.concatenate([jnp.zeros((1, 1)), xs[:-1]])
    steps = (chained.given(before) if conditional else chained).log_prob(xs) + dist.Normal(xs[:, 0], 1.0).log_prob(0.0)
    score, _ = log_density(walk, (ys,), {}, {"x": xs})
    np.testing.assert_allclose(score, jnp.sum(steps), rtol=1e-5)


def walker(conditional: bool) -> fd.FlowDensity:
    return fd.FlowDensity(random_flow(jr.key(0), 1, size=0.5, context_dim=int(conditional)), solver=SOLVER)


# name: what is sampled in a plate of two, given the state of a walk
STEPS = {
    "a flow": lambda state: walker(False),
    "one context": lambda state: walker(True).given(state),
    "a context for each": lambda state: walker(True).given(jnp.stack([state, 2.0 * state])),
    "expanded": lambda state: walker(True).given(state).expand((2,)),
    "amortized": lambda state: amortized(walker(True)).given(state),
    "rounded": lambda state: fd.Rounded(walker(True).given(state), 0.5, points=4),
}


@pytest.mark.parametrize("here", STEPS.values(), ids=STEPS.keys())
def test_a_plate_in_a_scan_scores_every_step(here):
    """numpyro gives the axis of the steps to what a plate has expanded past the density's own say in it."""
    states = jnp.array([[0.1], [0.2], [-0.3]])

    def walk():
        def step(_, state):
            with numpyro.plate("both", 2):
                numpyro.sample("x", here(state))
            return None, None

        scan(step, None, states)

    xs = jr.normal(jr.key(1), (3, 2, *here(states[0]).event_shape))
    score, _ = log_density(walk, (), {}, {"x": xs})
    steps = [jnp.sum(here(state).log_prob(x)) for state, x in zip(states, xs, strict=True)]
    np.testing.assert_allclose(score, sum(steps), rtol=1e-5)


def test_densities_that_were_mapped_are_not_taken_for_one():
    """The first of several models would be a wrong answer without a sign of it."""
    several = jax.vmap(lambda key: fd.FlowDensity(random_flow(key, 1), solver=SOLVER))(jr.split(jr.key(0), 3))
    apart = jax.vmap(lambda one: one.log_prob(jnp.ones(1)))(several)
    assert len(np.unique(apart)) == 3
    with pytest.raises((TypeError, ValueError)):
        several.log_prob(jnp.ones(1))
