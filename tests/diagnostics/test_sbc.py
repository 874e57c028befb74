"""Ranks of the truth: uniform where a posterior is right, and found where the density is not that of the simulator."""

import itertools

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from references import conditional_gaussian_flow
from scipy.stats import binom, kstest

import flowdensity as fd
from flowdensity.diagnostics.ranks import ranks_of
from flowdensity.diagnostics.uniform import band, compared_ranks, p_value

LIKELIHOOD = fd.FlowDensity(conditional_gaussian_flow())


def model(y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.1))
    with numpyro.plate("observations", 4):
        numpyro.sample("y", LIKELIHOOD.given(theta), obs=y)
    numpyro.factor("nothing", 0.0 * scale)


def wider(y=None):
    """The same sites with twice the spread of the data."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("scale", dist.LogNormal(0.0, 0.1))
    with numpyro.plate("observations", 4):
        center = LIKELIHOOD.given(theta)
        near = numpyro.deterministic("near", center.sample(numpyro.prng_key()))
        numpyro.sample("y", dist.Normal(near, 2.0).to_event(1), obs=y)


DATA = {"y": np.zeros((4, 2))}


@pytest.mark.slow
def test_a_right_likelihood_gives_uniform_ranks_and_a_wrong_one_does_not():
    right = fd.simulation_based_calibration(
        jr.key(0), model, simulations=60, draws=49, warmup=100, model_kwargs=DATA, progress=False
    )
    assert {name: ranks.shape for name, ranks in right.ranks.items()} == {"theta": (60, 3), "scale": (60,)}
    assert right.draws == 49
    assert not right.bad
    for ranks in (right.ranks["scale"], *right.ranks["theta"].T):
        assert ranks.min() >= 0
        assert ranks.max() <= 49
        assert kstest((ranks + 0.5) / 50, "uniform").pvalue > 1e-4
    wrong = fd.simulation_based_calibration(
        jr.key(1), model, simulator=wider, simulations=60, draws=49, warmup=100, model_kwargs=DATA, progress=False
    )
    assert wrong.bad == ("theta", "expected coverage")
    assert "scale: mean rank" in str(wrong)
    assert "Fix: fd.plots.plot_ranks" in str(wrong)


@pytest.mark.slow
def test_a_coordinate_that_is_constant_is_no_fault():
    """As the upper half of a Cholesky factor: its draws are all equal to the truth."""

    def correlated(y=None):
        factor = numpyro.sample("factor", dist.LKJCholesky(2, 2.0))
        with numpyro.plate("rows", 5):
            numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(2), scale_tril=factor), obs=y)

    found = fd.simulation_based_calibration(
        jr.key(2),
        correlated,
        simulations=60,
        draws=49,
        warmup=100,
        model_kwargs={"y": np.zeros((5, 2))},
        progress=False,
    )
    assert found.ranks["factor"].shape == (60, 2, 2)
    assert not found.bad


def test_p_values_are_those_of_uniform_ranks():
    """Uniform p-values of uniform ranks; small ones of others."""
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 25 + 1, (500, 400))
    p = fd.results.Ranks({"a": ranks}, 25, ranks[:, 0]).p_values["a"]
    assert p.shape == (400,)
    assert kstest(p, "uniform").pvalue > 1e-3
    skewed = fd.results.Ranks({"a": rng.binomial(25, 0.5, (500, 1)), "b": ranks[:, 0]}, 25, ranks[:, 1])
    assert skewed.p_values["a"][0] < 1e-12
    assert skewed.bad == ("a",)


@pytest.mark.parametrize(("count", "draws"), [(3, 2), (5, 3), (4, 1)])
def test_p_values_are_exact(count, draws):
    """The probability of a statistic that is as small, by enumeration of all ranks."""
    every = list(itertools.product(range(draws + 1), repeat=count))
    points = compared_ranks(draws)
    share = (points + 1) / (draws + 1)

    def statistic(ranks):
        below = np.array([np.sum(np.asarray(ranks) <= point) for point in points])
        return np.min(
            np.minimum(1.0, 2.0 * np.minimum(binom.cdf(below, count, share), binom.sf(below - 1, count, share)))
        )

    statistics = np.array([statistic(ranks) for ranks in every])
    for ranks, smallest in zip(every, statistics, strict=True):
        expected = np.mean(statistics <= smallest * (1.0 + 1e-9))
        assert p_value(np.array(ranks), draws) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("count", "draws"), [(20, 9), (60, 49), (500, 300)])
def test_ranks_leave_the_band_where_their_p_value_is_small(count, draws):
    probability, rng = 0.9, np.random.default_rng(0)
    low, high = band(count, draws, probability)
    points, inside = compared_ranks(draws), []
    for _ in range(1000):
        ranks = rng.integers(0, draws + 1, count)
        below = np.searchsorted(np.sort(ranks), points, side="right") / count
        inside.append(bool(np.all((low <= below) & (below <= high))))
        if len(inside) <= 200:
            assert inside[-1] == (p_value(ranks, draws) > 1.0 - probability)
    # Four standard errors. The band may contain more, since counts are integers.
    assert np.mean(inside) > probability - 4.0 * np.sqrt(probability * (1.0 - probability) / len(inside))


def test_p_values_at_the_extremes():
    assert p_value(np.zeros(2000, int), 200) < 1e-100
    assert p_value(np.arange(100), 99) == pytest.approx(1.0)
    assert band(20, 9, 1.0 - 1e-12)[1].max() == 1.0


def test_expected_coverage():
    """Uniform for draws from the exact posterior, and rarely so for draws that are too narrow."""
    rng, noise, draws = np.random.default_rng(0), 0.5, 200
    truths = rng.normal(size=(1000, 2))
    data = truths + noise * rng.normal(size=(1000, 2))
    precision = 1.0 + 1.0 / noise**2
    centers = data / noise**2 / precision
    exact = centers + rng.normal(size=(draws, 1000, 2)) / np.sqrt(precision)

    def coverage(values):
        return ranks_of(jr.key(0), {"theta": values}, {"theta": truths})

    assert coverage(exact).coverage_p_value > 1e-3
    narrow = coverage(centers + 0.5 * (exact - centers))
    assert narrow.coverage_p_value < 1e-6
    assert narrow.bad == ("theta", "expected coverage")


def test_data_within_a_scan_cannot_be_simulated():
    def walk(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))

        def step(last, value):
            now = numpyro.sample("y", dist.Normal(last, scale), obs=value)
            return now, now

        scan(step, 0.0, y)

    with pytest.raises(ValueError, match="expected a model whose data can be simulated anew"):
        fd.simulation_based_calibration(jr.key(0), walk, model_kwargs={"y": jnp.zeros(5)})


def prior_only(y=None):
    numpyro.sample("theta", dist.Normal())


def of_another_shape(y=None):
    numpyro.sample("theta", dist.Normal(jnp.zeros(3)).to_event(1))
    numpyro.sample("scale", dist.Normal())
    numpyro.sample("y", dist.Normal(jnp.zeros((5, 2))).to_event(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simulations": 5}, "`simulations` as an integer of at least 20"),
        ({"draws": 3}, "`draws` as an integer of at least 9"),
        ({"warmup": 0}, "`warmup` as an integer of at least 1"),
        ({"model_kwargs": {}}, "`model` to have latent and observed sites"),
        ({"simulator": prior_only}, r"`simulator` to have site 'theta' with a value of shape \(3,\)"),
        ({"simulator": of_another_shape}, r"`simulator` to have site 'y' with a value of shape \(4, 2\)"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=f"simulation_based_calibration expected {message}"):
        fd.simulation_based_calibration(jr.key(0), model, **({"model_kwargs": DATA, "progress": False} | options))
