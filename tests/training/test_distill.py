"""A whole density distilled into one network: its labels, its normalizer, and what its report says."""

import pickle
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import CONDITIONAL_NOISE, CONDITIONAL_SLOPE
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from references import (
    CONTEXTS,
    MIXTURE,
    conditional_gaussian_flow,
    gaussian_flow,
    paired,
    patch_everywhere,
    random_flow,
    untrained_flow,
)
from scipy.stats import multivariate_normal

import flowdensity as fd
from flowdensity.models.flows import with_reference
from flowdensity.models.log_density import LogDensityNetwork
from flowdensity.references.mixture import GaussianMixture
from flowdensity.training import distill
from flowdensity.training.distill import measured, normalized
from flowdensity.training.labels import contexts_of, labeled
from flowdensity.training.losses import LogDensityLabels

DRAWS = 4000
REPORTED = 1024
"""Draws, at least, that a report's figures are of."""


@pytest.fixture(scope="module")
def amortized(mixture_fit):
    """The mixture in two dimensions."""
    return fd.distill(
        jr.key(20), mixture_fit.density, width=64, labels=8192, training=fd.Training(steps=1500), progress=False
    )


@pytest.fixture(scope="module")
def amortized_conditional(conditional_fit):
    """The conditional Gaussian."""
    return fd.distill(
        jr.key(21), conditional_fit.density, width=64, labels=8192, training=fd.Training(steps=1500), progress=False
    )


def known(contexts) -> np.ndarray:
    """Which contexts are among the four."""
    return np.isclose(np.asarray(contexts)[:, None], CONTEXTS, atol=1e-6).all(2).any(1)


def log_prob_and_slope(density, events):
    return jax.jit(jax.vmap(jax.value_and_grad(density.log_prob)))(events)


# What it is fitted to ----------------------------------------------------------------------------


@pytest.mark.slow
def test_labels_are_log_densities_and_their_gradients():
    density = fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=fd.FixedStep(4))
    model = density.model
    labels = labeled(jr.key(0), density, 100, each=1, spread=True, progress=False)
    assert {len(leaf) for leaf in labels} == {100}

    def log_prob(state, context):
        return density.given(context).log_prob(model.scaling.unwhiten(state))

    values, slopes = jax.vmap(jax.value_and_grad(log_prob, argnums=(0, 1)))(labels.states, labels.contexts)
    np.testing.assert_allclose(labels.values, values, atol=1e-4)
    np.testing.assert_allclose(labels.slopes, jnp.concatenate([slopes[0], slopes[1]], axis=1), rtol=1e-4, atol=1e-4)
    # The contexts are those that the density has been given, but for some; the states, but for some, its samples given them.
    same = labeled(jr.key(0), density, 2048, each=1, spread=False, progress=False)
    moved = labeled(jr.key(0), density, 2048, each=1, spread=True, progress=False)
    assert known(same.contexts).all()
    share = np.mean(~known(moved.contexts))
    # A tenth are moved outwards, and so are half of the fifth that is exchanged; a fourth of these is zero, and stays.
    expected = 0.75 * (1.0 - 0.9 * 0.9)
    assert abs(share - expected) < 4.5 * np.sqrt(expected * (1.0 - expected) / 2048)


def test_without_a_context_of_its_own_it_is_distilled_for_normal_ones(conditional_fit):
    contexts = np.asarray(contexts_of(jr.key(0), conditional_fit.density, 2000))
    assert contexts.shape == (2000, 1)
    assert abs(contexts.mean()) < 4.5 / np.sqrt(2000)
    assert abs(contexts.std() - 1.0) < 4.5 / np.sqrt(4000)


# What it comes to --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_says_how_far_off_it_is(mixture_fit, amortized):
    fast, report = amortized
    found = report.amortization
    events = mixture_fit.density.sample(jr.key(1), (DRAWS,))
    value, slope = log_prob_and_slope(fast, events)
    expected, expected_slope = log_prob_and_slope(mixture_fit.density, events)
    error = np.asarray(value - expected, np.float64)
    assert abs(error.mean() - found.bias[0]) < 4.5 * np.hypot(error.std() / np.sqrt(DRAWS), found.bias[1])
    rmse = np.sqrt(np.mean(np.square(error)))
    own = np.square(error).std() / (2.0 * rmse * np.sqrt(DRAWS))
    assert abs(rmse - found.rmse[0]) < 4.5 * np.hypot(own, found.rmse[1])
    assert found.rmse[0] < 0.1
    # The report has the gradient in whitened coordinates, as a share of the flow's.
    scaling = mixture_fit.density.model.scaling
    whitened, wrong = (
        np.asarray(each @ scaling.scale, np.float64) for each in (expected_slope, slope - expected_slope)
    )
    wrong, right = (np.sum(np.square(each), axis=1) for each in (wrong, whitened))
    share = np.sqrt(wrong.mean() / right.mean())
    spread = (wrong - share**2 * right).std() / right.mean() / (2.0 * share)
    assert abs(share - found.gradient) < 4.5 * spread * np.sqrt(1.0 / DRAWS + 1.0 / REPORTED)
    assert found.efficiency > 0.99
    assert "log normalizer" in report.summary()
    assert str(report).count("amortized minus flow log_prob") == 1


@pytest.mark.slow
def test_its_normalizer_is_what_quadrature_finds(plane, amortized):
    """Weights against the flow's samples integrate the network's density times the ratio of the flow's law to its log_prob."""
    fast, report = amortized
    points = np.stack(np.meshgrid(plane.axis, plane.axis, indexing="ij"), -1).astype(np.float32)
    values = np.asarray(fast.log_prob(points), np.float64)
    weighted = np.log(np.sum(np.exp(values + plane.exact - plane.learned)) * plane.cell)
    found, error = report.amortization.log_normalizer
    assert error < 0.01
    # The network was normalized on as many samples of its own; 5e-4 is for the quadrature, in single precision.
    assert abs(found - weighted) < 4.5 * error + 5e-4
    assert abs(weighted) < 4.5 * error + 5e-4
    assert abs(np.log(np.sum(np.exp(values)) * plane.cell)) < 0.02


@pytest.mark.slow
def test_far_out_it_is_gaussian(amortized):
    fast, _ = amortized
    directions = np.random.default_rng(0).normal(size=(16, 2))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    middle = fast.flow.sample(jr.key(2), (DRAWS,)).mean(0)
    previous = np.inf
    for scale in (10.0, 100.0, 1000.0):
        events = jnp.asarray(middle + scale * directions, jnp.float32)
        values, slopes = log_prob_and_slope(fast, events)
        assert jnp.all(jnp.isfinite(slopes))
        assert np.all(np.sum(np.asarray(slopes) * directions, axis=1) < 0.0)
        assert np.max(values) < -0.05 * scale**2
        assert np.max(values) < previous
        previous = float(np.min(values))


@pytest.mark.slow
def test_nuts_with_it_finds_the_posterior(plane, amortized):
    fast, _ = amortized

    def model():
        theta = numpyro.sample("theta", fast)
        numpyro.sample("x", dist.Normal(theta[0], 0.4), obs=-0.6)

    mcmc = MCMC(
        NUTS(model), num_warmup=200, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jr.key(3))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["theta"], np.float64)
    points = np.stack(np.meshgrid(plane.axis, plane.axis, indexing="ij"), -1).astype(np.float32)
    likelihood = -0.5 * np.square((-0.6 - plane.axis) / 0.4)
    mean, deviation = plane.moments(np.asarray(fast.log_prob(points), np.float64) + likelihood[:, None])
    size = np.array([effective_sample_size(draws[..., column]) for column in range(2)])
    assert np.all(size > 300.0)
    assert np.all(np.abs(draws.mean((0, 1)) - mean) < 4.5 * deviation / np.sqrt(size))


@pytest.mark.slow
def test_what_it_is_asked_beside_a_log_density_comes_from_the_flow(mixture_fit, amortized):
    fast, _ = amortized
    np.testing.assert_array_equal(fast.sample(jr.key(4), (3,)), mixture_fit.density.sample(jr.key(4), (3,)))
    assert fast.support is mixture_fit.density.support
    again = pickle.loads(pickle.dumps(fast))
    events = fast.sample(jr.key(5), (7,))
    np.testing.assert_array_equal(again.log_prob(events), fast.log_prob(events))


# Conditional densities and supports --------------------------------------------------------------


@pytest.mark.slow
def test_a_conditional_density_and_its_gradient_into_the_context(amortized_conditional):
    fast, report = amortized_conditional
    rng = np.random.default_rng(40)
    contexts = np.float32(rng.normal(size=(2000, 1)))
    away = rng.multivariate_normal(np.zeros(2), CONDITIONAL_NOISE, 2000)
    events = np.float32(np.array([1.0, 5.0]) + contexts @ CONDITIONAL_SLOPE.T + away)
    # As for the flow itself: what is missing to the truth is a tenth of the mutual information, at most.
    truth = multivariate_normal(np.zeros(2), CONDITIONAL_NOISE).logpdf(away)
    marginal = CONDITIONAL_NOISE + CONDITIONAL_SLOPE @ CONDITIONAL_SLOPE.T
    information = 0.5 * (np.linalg.slogdet(marginal)[1] - np.linalg.slogdet(CONDITIONAL_NOISE)[1])
    missing, error = paired(truth, fast.given(contexts).log_prob(events))
    assert -4.5 * error < missing < 0.1 * information + 4.5 * error
    slopes = jax.grad(lambda c: fast.given(c).log_prob(events).sum())(jnp.asarray(contexts))
    expected = away @ np.linalg.inv(CONDITIONAL_NOISE) @ CONDITIONAL_SLOPE
    # The share that `diagnose` allows a gradient to be off.
    assert np.sqrt(np.mean(np.square(slopes - expected)) / np.mean(np.square(expected))) < 0.3
    assert report.amortization.between_contexts < 0.02
    with pytest.raises(ValueError, match=r"AmortizedDensity.log_prob expected a context .*density.given\(context\)"):
        fast.log_prob(events)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* contexts lie far outside")
def test_it_is_a_likelihood_of_whatever_parameters(amortized_conditional):
    """Of an observation under contexts that would not have made it, and under contexts beyond those of the fit."""
    fast, _ = amortized_conditional
    contexts = np.linspace(-8.0, 8.0, 41, dtype=np.float32)[:, None]
    for truth in (-1.0, 0.0, 1.5):
        event = np.array([1.0, 5.0]) + CONDITIONAL_SLOPE[:, 0] * truth
        value, flow = (np.asarray(each.given(contexts).log_prob(event), np.float64) for each in (fast, fast.flow))
        assert abs(contexts[np.argmax(value), 0] - contexts[np.argmax(flow), 0]) < 0.5
        # What is unlikely may be more or less so; none of it is taken to be likely.
        assert np.all(value[flow < flow.max() - 12.0] < flow.max() - 6.0)
    far = np.asarray(fast.given(np.array([[1e3], [1e4], [1e6]], np.float32)).log_prob(event), np.float64)
    np.testing.assert_allclose(far, far[-1], atol=1e-2)


@pytest.mark.slow
def test_a_planted_normalizer_is_found_and_taken_out(amortized_conditional):
    """Of a network whose log density is too high by 0.3 + 0.2 c."""
    fast, _ = amortized_conditional
    planted = jnp.asarray([0.3, 0.2])
    wrong = eqx.tree_at(lambda n: n.normalizer, fast.state_log_prob, fast.state_log_prob.normalizer - planted)
    found = measured(jr.key(6), fast.flow, wrong, 8192)
    # The integral over contexts too: E exp(0.3 + 0.2 c) with a standard normal c.
    assert abs(found.log_normalizer[0] - 0.32) < 4.5 * found.log_normalizer[1]
    # The coefficient of variation of exp(0.2 c), from 64 contexts.
    between = np.sqrt(np.expm1(0.2**2))
    assert found.between_contexts == pytest.approx(between, abs=4.5 * between / np.sqrt(2.0 * 64))
    assert found.bias[0] > 0.2
    right = normalized(jr.key(7), fast.flow, wrong, 4096)
    np.testing.assert_allclose(right.normalizer, fast.state_log_prob.normalizer, atol=0.005)


def test_the_normalizer_of_a_network_that_is_far_off_is_found(monkeypatch):
    """Newton's method alone overshoots where ratios of densities are so unequal."""
    rng = np.random.default_rng(0)
    density = fd.FlowDensity(untrained_flow(jr.key(0), rng.normal(size=(50, 2)), rng.normal(size=(50, 3))))
    network = LogDensityNetwork(
        jr.key(1),
        2,
        3,
        reach=jnp.asarray(5.0),
        context_reach=jnp.asarray(5.0),
        scale=jnp.asarray(1.0),
        width=4,
        experts=0,
    )
    contexts = rng.normal(size=(4096, 3))
    excess = 5.0 * rng.normal(size=4096) + contexts @ [3.0, -3.0, 1.0]
    table = np.zeros((4096, 2)), contexts, np.zeros(4096), np.zeros((4096, 5))
    labels = LogDensityLabels(*(jnp.asarray(each, float) for each in table))
    monkeypatch.setattr(distill, "labeled", lambda *args, **options: labels)
    monkeypatch.setattr(distill, "errors_at", lambda *args: (jnp.asarray(excess, float), None))
    found = normalized(jr.key(2), density, network, 4096)
    features = np.asarray(jax.vmap(network.normalizer_features)(labels.contexts), np.float64)
    ratios = np.exp(np.float32(excess) - features @ np.asarray(found.normalizer - network.normalizer, np.float64))
    # The first-order conditions: mean 1, and no covariance with the contexts.
    np.testing.assert_allclose(features.T @ (ratios - 1.0) / 4096, 0.0, atol=1e-3)


@pytest.mark.slow
def test_supports_are_included(positive_fit):
    fast, _ = fd.distill(
        jr.key(22), positive_fit.density, width=32, labels=4096, training=fd.Training(steps=1000), progress=False
    )
    log_x = np.linspace(np.log(1e-3), np.log(1e3), 4001)
    values = np.asarray(fast.log_prob(np.exp(log_x).astype(np.float32)), np.float64)
    assert abs(np.trapezoid(np.exp(values + log_x), log_x) - 1.0) < 0.02
    own = np.asarray(positive_fit.density.log_prob(np.exp(log_x[1000:3000]).astype(np.float32)), np.float64)
    assert np.abs(values[1000:3000] - own)[own > -8.0].max() < 0.3
    assert np.all(fast.sample(jr.key(8), (100,)) > 0.0)


@pytest.mark.slow
def test_the_fitted_gaussian_is_distilled_as_it_is():
    model = untrained_flow(jr.key(0), np.random.default_rng(0).normal(size=(50, 2)))
    density = fd.FlowDensity(model, solver=fd.FixedStep(2))
    fast, report = fd.distill(jr.key(1), density, width=8, labels=256, training=fd.Training(steps=3), progress=False)
    events = density.sample(jr.key(2), (20,))
    np.testing.assert_allclose(fast.log_prob(events), density.log_prob(events), atol=1e-4)
    assert report.amortization.rmse[0] < 1e-4
    assert report.amortization.efficiency == pytest.approx(1.0, abs=1e-4)


class Reached(Exception):
    """Training would begin with this network."""


@pytest.mark.parametrize(
    ("dim", "context_dim", "width", "experts"),
    [(4, 0, 32, 0), (3, 1, 64, 0), (3, 2, 128, 64), (8, 0, 128, 64)],
)
def test_the_network_is_of_a_size_for_the_dimensions(monkeypatch, dim, context_dim, width, experts):
    def labels(key, density, count, **options):
        columns = dim, context_dim, None, dim + context_dim
        return LogDensityLabels(*(jr.normal(key, (count,) if size is None else (count, size)) for size in columns))

    def reached(key, network, *args, **options):
        raise Reached(network)

    monkeypatch.setattr(distill, "labeled", labels)
    monkeypatch.setattr(distill, "train", reached)
    monkeypatch.setattr(distill, "departs", lambda *_: True)
    rng = np.random.default_rng(0)
    model = untrained_flow(jr.key(0), rng.normal(size=(50, dim)), rng.normal(size=(50, context_dim)))
    with pytest.raises(Reached) as caught:
        fd.distill(jr.key(1), fd.FlowDensity(model), labels=16, progress=False)
    (network,) = caught.value.args
    assert network.network.inward.out_features == width
    assert (0 if network.experts is None else network.experts.gate.out_features) == experts


@pytest.mark.slow
def test_the_network_departs_from_the_mixture_of_the_velocity():
    """A flow that is its mixture is distilled exactly, whatever the network."""
    model = with_reference(
        random_flow(jr.key(0), 2, size=0.0, reach=1e6),
        GaussianMixture(MIXTURE.weights, MIXTURE.means, MIXTURE.covariances),
    )
    density = fd.FlowDensity(model, solver=fd.FixedStep(64))
    fast, report = fd.distill(jr.key(1), density, width=8, labels=256, training=fd.Training(steps=3), progress=False)
    events = density.sample(jr.key(2), (20,))
    np.testing.assert_allclose(fast.log_prob(events), density.log_prob(events), atol=2e-3)
    assert report.amortization.efficiency == pytest.approx(1.0, abs=1e-4)


# Bad input ---------------------------------------------------------------------------------------

DENSITY = fd.FlowDensity(gaussian_flow())
BAD = {
    "no density": ({"density": gaussian_flow()}, TypeError, "density", "FlowDensity; got ExactGaussianFlow"),
    "few labels": ({"labels": 3}, ValueError, "labels", "at least 16; got 3"),
    "no width": ({"width": 0}, ValueError, "width", "at least 1; got 0"),
    "no options": ({"training": 0.5}, TypeError, "training", "of type Training; got 0.5"),
}


@pytest.mark.parametrize(("options", "error", "argument", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_any_work(monkeypatch, options, error, argument, says):
    def reached(*args, **kwargs):
        pytest.fail("work began before the input was checked")

    for name in ("labeled", "train"):
        patch_everywhere(monkeypatch, name, reached)
    with pytest.raises(error, match=rf"distill expected `{argument}`.*{re.escape(says)}.*Fix: "):
        fd.distill(jr.key(0), **({"density": DENSITY, "progress": False} | options))


def test_a_density_of_something_else_is_refused():
    with pytest.raises(TypeError, match=r"AmortizedDensity expected `network`.*got ExactGaussianFlow.*Fix: "):
        fd.AmortizedDensity(gaussian_flow(), DENSITY)
