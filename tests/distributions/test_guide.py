"""Flows as guides: where they start, what they learn, and which divergence they learn it with."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, init_to_median
from numpyro.infer.reparam import NeuTraReparam
from numpyro.infer.util import log_density
from references import NAMED, cases, conditional_gaussian_flow, named_flow, random_flow, untrained_flow
from scipy.stats import multivariate_normal

import flowdensity as fd
from flowdensity.divergence.stochastic import MAX_EXACT_DIMENSION

SOLVER = fd.FixedStep(2)  # compilation takes most of the time; the accuracy of one test has a finer one
COVARIATE = np.array([0.5, 1.0, 1.5, 2.0])
OBSERVED = np.array([0.2, 0.9, 1.0, 2.1])
NOISE = 0.7
# The prior and the likelihood are Gaussian in a and in the logarithm of tau.
DESIGN = np.stack([np.ones(4), COVARIATE], axis=-1)
EVIDENCE = multivariate_normal(np.zeros(4), DESIGN @ DESIGN.T + NOISE**2 * np.eye(4)).logpdf(OBSERVED)


def regression():
    a = numpyro.sample("a", dist.Normal())
    tau = numpyro.sample("tau", dist.LogNormal())
    numpyro.deterministic("slope", jnp.log(tau))
    with numpyro.plate("rows", 4):
        numpyro.sample("y", dist.Normal(a + COVARIATE * jnp.log(tau), NOISE), obs=OBSERVED)


def small(dim: int) -> fd.networks.ResidualMLP:
    return fd.networks.ResidualMLP(jr.key(0), dim, width=16, depth=1, experts=0)


def initialized(guide: fd.AutoFlow, model=regression) -> dict:
    svi = SVI(model, guide, optax.adam(1e-2), Trace_ELBO())
    return svi.get_params(svi.init(jr.key(1)))


# AutoFlow ----------------------------------------------------------------------------------------


def several():
    numpyro.sample("v", dist.Normal(1.0, 2.0).expand([2]).to_event(1))
    numpyro.sample("tau", dist.Gamma(2.0, 1.0))
    numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))


@pytest.mark.slow
def test_it_starts_at_a_diagonal_normal():
    guide = fd.AutoFlow(several, init_scale=0.3, solver=SOLVER, prefix="q")
    params = initialized(guide, several)
    assert set(params) == {"q_loc", "q_scale", "q_flow$params"}
    assert guide.latent_dim == 5  # two real, one positive, and a simplex of three
    np.testing.assert_allclose(params["q_scale"], 0.3, rtol=1e-5)
    # Away from the mean, where a network that is not zero would move it.
    points = params["q_loc"] + 0.3 * jr.normal(jr.key(2), (20, 5))
    posterior = guide.get_posterior(params)
    assert isinstance(posterior, fd.FlowDensity)
    expected = dist.Normal(params["q_loc"], params["q_scale"]).to_event(1).log_prob(points)
    np.testing.assert_allclose(posterior.log_prob(points), expected, rtol=1e-5)
    noise = posterior.base.sample(jr.key(3))
    np.testing.assert_allclose(posterior.from_base(noise), params["q_loc"] + params["q_scale"] * noise, rtol=1e-5)


@pytest.fixture(scope="module")
def trained():
    """A guide trained on the conjugate model, its parameters and losses."""
    guide = fd.AutoFlow(
        regression, network=small(2), solver=fd.FixedStep(6), init_loc_fn=init_to_median, init_scale=0.4
    )
    schedule = optax.cosine_decay_schedule(2e-2, 200)
    svi = SVI(regression, guide, optax.adam(schedule), Trace_ELBO(num_particles=4))
    result = svi.run(jr.key(4), 200, progress_bar=False)
    return guide, result.params, np.asarray(result.losses)


@pytest.mark.slow
def test_it_learns_a_correlated_posterior(trained):
    """The bound comes near the evidence, which no diagonal normal does."""
    guide, params, losses = trained
    bound = Trace_ELBO()
    elbos = -np.asarray(
        jax.jit(jax.vmap(lambda key: bound.loss(key, params, regression, guide)))(jr.split(jr.key(5), 1000)), float
    )
    error = elbos.std() / np.sqrt(len(elbos))
    gap = EVIDENCE - elbos.mean()
    assert -4.0 * error < gap < 0.05 + 4.0 * error
    precision = np.eye(2) + DESIGN.T @ DESIGN / NOISE**2
    diagonal = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert diagonal > 0.05 + 8.0 * error
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_samples_have_the_shapes_and_supports_of_the_model(trained):
    guide, params, _ = trained
    for shape in ((), (3, 2)):
        drawn = guide.sample_posterior(jr.key(6), params, sample_shape=shape)
        assert {name: value.shape for name, value in drawn.items()} == {"a": shape, "tau": shape, "slope": shape}
        assert np.all(drawn["tau"] > 0.0)
        np.testing.assert_allclose(drawn["slope"], np.log(drawn["tau"]), rtol=1e-5, atol=1e-6)
    drawn = Predictive(guide, params=params, num_samples=7)(jr.key(7))
    assert drawn["a"].shape == drawn["tau"].shape == (7,)
    assert np.all(drawn["tau"] > 0.0)
    drawn = Predictive(regression, guide=guide, params=params, num_samples=7)(jr.key(8))
    assert drawn["y"].shape == (7, 4)
    assert drawn["slope"].shape == (7,)


@pytest.mark.slow
def test_a_trained_posterior_is_a_density_of_its_own(trained):
    guide, params, _ = trained
    posterior = guide.get_posterior(params)
    assert isinstance(posterior.divergence, fd.ExactDivergence)
    assert posterior.event_shape == (2,)
    # It is what the guide samples, and the log density that a sample comes with is its own.
    event, (density,) = posterior.sample_with_intermediates(jr.key(9), (50,))
    # Six third-order steps each way, and what the training made of their errors.
    assert np.median(np.abs(posterior.log_prob(event) - density)) < 0.1


AUTO_REFUSED = {
    "no width": (lambda: fd.AutoFlow(regression, init_scale=0.0), "`init_scale` as a number above 0; got 0.0"),
    "another dimension": (
        lambda: initialized(fd.AutoFlow(regression, network=small(3))),
        "`network` for the 2 unconstrained.*got one for 3 coordinates and 0 of context",
    ),
    "a context": (
        lambda: initialized(fd.AutoFlow(regression, network=fd.networks.ResidualMLP(jr.key(0), 2, 1, width=4))),
        "no context; got one for 2 coordinates and 1 of context",
    ),
}


@pytest.mark.parametrize(("call", "says"), AUTO_REFUSED.values(), ids=AUTO_REFUSED.keys())
def test_auto_flow_refuses_what_does_not_fit(call, says):
    with pytest.raises(ValueError, match=rf"AutoFlow expected .*{says}.*Fix: "):
        call()


# A density's weights as parameters -----------------------------------------------------------------


class Stale(fd.divergences.AbstractDivergence):
    """Of another network than the one that is being trained, as a distilled one is after a step."""

    def __call__(self, model, time, state, context):
        raise AssertionError("a stale divergence was used")


def moved_flow(*, conditional: bool = False) -> fd.models.GaussianFlow:
    """A network that is not zero, over the named values of the references."""
    like = named_flow(conditional=conditional)
    flow = random_flow(jr.key(11), 4, 3 if conditional else 0, size=0.1)
    return eqx.tree_at(lambda m: (m.scaling, m.context_scaling), flow, (like.scaling, like.context_scaling))


def named_density() -> fd.FlowDensity:
    return fd.FlowDensity(moved_flow(), divergence=Stale(), solver=SOLVER)


def conditional_density() -> fd.FlowDensity:
    return fd.FlowDensity(moved_flow(conditional=True), divergence=Stale(), solver=SOLVER)


def array_density() -> fd.FlowDensity:
    return fd.FlowDensity(random_flow(jr.key(12), 2, size=0.1), divergence=Stale(), solver=SOLVER)


def test_the_divergence_is_exact_in_few_dimensions_and_a_fresh_probe_in_more():
    for dim, kind in ((MAX_EXACT_DIMENSION, fd.ExactDivergence), (MAX_EXACT_DIMENSION + 1, fd.HutchinsonDivergence)):
        rows = np.random.default_rng(0).normal(size=(40, dim))
        density = fd.FlowDensity(untrained_flow(jr.key(0), rows), divergence=Stale())
        once, again, other = (
            handlers.seed(lambda density=density: fd.flow_module("q", density), jr.key(seed))().divergence
            for seed in (0, 0, 1)
        )
        assert isinstance(once, kind)
        if kind is fd.HutchinsonDivergence:
            assert np.all(jr.key_data(once.key) == jr.key_data(again.key))
            assert np.any(jr.key_data(once.key) != jr.key_data(other.key))


def test_the_weights_are_one_parameter_and_start_where_they_are():
    density = named_density()
    trace = handlers.trace(handlers.seed(lambda: fd.flow_module("q", density), jr.key(0))).get_trace()
    assert [(name, site["type"]) for name, site in trace.items() if site["type"] == "param"] == [("q$params", "param")]
    start = trace["q$params"]["value"]
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), start, eqx.filter(density.model.network, eqx.is_array))
    assert all(jax.tree.leaves(same))
    doubled = {"q$params": jax.tree.map(lambda leaf: 2.0 * leaf, start)}
    moved = handlers.substitute(lambda: fd.flow_module("q", density), data=doubled)()
    np.testing.assert_array_equal(moved.model.network.outward.weight, 2.0 * density.model.network.outward.weight)
    assert moved.sites == NAMED
    # It follows an ELBO from here, and no Gaussian path.
    assert isinstance(moved.model, fd.models.GaussianFlow)
    assert not moved.model.follows_path


CONTEXT = {"s": np.array([0.5, -1.0]), "t": np.array(0.3)}
# name: (density, name of the joint site, its sites in the model)
GUIDES = {
    "named": (named_density, "flow", dict(zip(*NAMED, strict=True))),
    "given a context": (lambda: conditional_density().given(CONTEXT), "theta", dict(zip(*NAMED, strict=True))),
    "an array": (array_density, "x", {"x": (2,)}),
}


@pytest.mark.parametrize(("build", "name", "sites"), cases(GUIDES, ["named"]))
def test_a_fitted_density_is_a_guide_over_its_sites(build, name, sites):
    density = build()
    guide = fd.as_guide(density, name)
    trace = handlers.trace(handlers.seed(guide, jr.key(1))).get_trace("whatever", the="model takes")
    sampled = {key for key, site in trace.items() if site["type"] == "sample"}
    assert sampled == {name, *sites}
    assert {key for key, site in trace.items() if site["type"] == "param"} == {f"{name}$params"}
    assert bool(trace[name]["infer"].get("is_auxiliary")) == (name not in sites)
    for site, shape in sites.items():
        assert trace[site]["value"].shape == shape
        assert trace[site]["fn"].event_shape == shape
        assert not trace[site]["infer"].get("is_auxiliary")
    event = trace[name]["value"]
    values = {key: trace[key]["value"] for key in sampled}
    total, _ = log_density(handlers.seed(guide, jr.key(2)), (), {}, {key: jnp.asarray(v) for key, v in values.items()})
    np.testing.assert_allclose(total, density.with_divergence(fd.ExactDivergence()).log_prob(event), rtol=1e-5)
    returned = handlers.seed(guide, jr.key(1))()
    assert {key: value.shape for key, value in returned.items()} == sites


def test_draws_of_a_guide_have_the_supports_of_its_sites():
    drawn = Predictive(fd.as_guide(named_density()), num_samples=20)(jr.key(3))
    assert drawn["v"].shape == (20, 2)
    assert np.all(drawn["v"] > 0.0)
    assert np.all(drawn["tau"] > 0.0)
    np.testing.assert_allclose(named_density().pack({site: drawn[site] for site in NAMED.names}), drawn["flow"])


def observed():
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 1.0))
    v = numpyro.sample("v", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(a + v.sum(), tau), obs=5.0)


@pytest.mark.slow
def test_a_fitted_density_trains_on():
    guide = fd.as_guide(named_density())
    svi = SVI(observed, guide, optax.adam(2e-2), fd.PathGradientELBO(num_particles=4))
    result = svi.run(jr.key(4), 40, progress_bar=False)
    assert set(result.params) == {"flow$params"}
    # From a posterior far below the observation: a gain of many times the noise of a loss.
    assert result.losses[-10:].mean() < result.losses[:3].mean() - 1.0
    trained = handlers.substitute(lambda: fd.flow_module("flow", named_density()), data=result.params)()
    assert isinstance(trained, fd.FlowDensity)
    assert np.any(trained.model.network.outward.weight != named_density().model.network.outward.weight)


def test_a_guide_weighs_its_draws():
    """Of a model that is the density's own Gaussian all importance weights are alike."""
    rows = 1.0 + 2.0 * np.random.default_rng(1).normal(size=(500, 1))
    density = fd.FlowDensity(untrained_flow(jr.key(0), rows), solver=SOLVER)
    mean, deviation = rows.mean(), rows.std()
    guide = fd.as_guide(density, "x")

    def model():
        numpyro.sample("x", dist.Normal(mean, deviation).expand([1]).to_event(1))

    bound = Trace_ELBO()
    losses = [bound.loss(jr.key(seed), {}, model, guide) for seed in range(3)]
    # Rounding of log densities of a few nats.
    np.testing.assert_allclose(losses, 0.0, atol=1e-5)


REFUSED = {
    "another distribution": (lambda: dist.Normal(), TypeError, "`density` of type FlowDensity; got Normal"),
    "a model": (named_flow, TypeError, "got ExactGaussianFlow"),
    "wrapped": (lambda: array_density().expand((3,)), TypeError, "got ExpandedDistribution"),
    "no context": (lambda: fd.FlowDensity(conditional_gaussian_flow()), ValueError, r"context, of shape \(3,\)"),
    "no named context": (conditional_density, ValueError, r"context, of shape \(3,\)"),
}


@pytest.mark.parametrize("caller", ["as_guide", "flow_module"])
@pytest.mark.parametrize(("build", "error", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_other_kinds_are_refused(caller, build, error, says):
    with pytest.raises(error, match=rf"{caller} expected .*{says}.*Fix: "):
        fd.as_guide(build()) if caller == "as_guide" else fd.flow_module("q", build())


def test_numpyro_is_told_that_it_has_no_transform():
    with pytest.raises(ValueError, match="NeuTraReparam only supports guides that implement `get_transform`"):
        NeuTraReparam(fd.AutoFlow(lambda: numpyro.sample("theta", dist.Normal())), {})
