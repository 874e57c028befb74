"""reweight: weights, their diagnostics and resampling, where the exact posterior is known in closed form."""

import arviz
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS
from planted import NONE, SOLVER, Planted, in_arviz, observed, tilted
from references import (
    CONTEXTS,
    GAUSSIAN_COVARIANCE,
    GAUSSIAN_MEAN,
    NAMED,
    NAMED_COVARIANCE,
    NAMED_MEAN,
    SLOPE,
    amortized,
    conditional_gaussian_flow,
    gaussian_flow,
    named_flow,
    x64,
)

import flowdensity as fd
from flowdensity.data.scaling import Scaling
from flowdensity.diagnostics.correction import correction
from flowdensity.diagnostics.posterior import draws as draws_of
from flowdensity.diagnostics.reweight import reweight

CHAINS, DRAWS = 2, 1000
TOTAL = CHAINS * DRAWS
Y, NOISE = np.array([0.5, -1.0]), 0.8
MEAN, COVARIANCE = observed(Y, NOISE)
AWAY = np.array([1.0, 0.5])
HALF = 0.5 * AWAY / np.sqrt(AWAY @ COVARIANCE @ AWAY)
"""A slope that is 0.5 nats, root mean square, over the posterior."""


def exact(**options) -> fd.FlowDensity:
    return fd.FlowDensity(gaussian_flow(**options), solver=SOLVER)


def learned(slope=HALF, bend=NONE) -> fd.FlowDensity:
    return exact().with_divergence(Planted(slope, bend))


def given() -> fd.FlowDensity:
    return fd.FlowDensity(conditional_gaussian_flow(), CONTEXTS, solver=SOLVER)


def model(density, y=Y, noise=NOISE):
    theta = numpyro.sample("theta", density)
    numpyro.deterministic("sum", theta.sum(-1))
    numpyro.sample("y", dist.Normal(theta, noise).to_event(1), obs=y)


def sampled(slope=HALF, bend=NONE, y=Y, noise=NOISE, seed=0) -> np.ndarray:
    """Independent draws of the posterior under the planted error, which is a Gaussian."""
    prior = tilted(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE, slope, bend)
    mean, covariance = observed(y, noise, *prior)
    return np.random.default_rng(seed).multivariate_normal(mean, covariance, (CHAINS, DRAWS))


def posterior_of(theta: np.ndarray, **options):
    return in_arviz({"theta": theta, "sum": theta.sum(-1)}, **options)


def weigh(theta: np.ndarray, density: fd.FlowDensity, **options):
    posterior = posterior_of(theta, **options)
    return reweight(jr.key(1), posterior, model, {"theta": exact()}, model_args=(density,), progress=False)


def assert_mean(pairs, expected, errors=4.0):
    mean, error = pairs
    assert np.all(error > 0.0)
    assert np.all(np.abs(mean - expected) < errors * error), (mean - expected) / error


@pytest.fixture(scope="module")
def half_a_nat():
    return weigh(sampled(), learned())


# The log ratio ----------------------------------------------------------------------------------

ROWS = np.random.default_rng(3).multivariate_normal(GAUSSIAN_MEAN, GAUSSIAN_COVARIANCE, 4)
ERRORS = (ROWS - GAUSSIAN_MEAN) @ HALF
MASK = np.array([True, False, True, True])


def rowwise(density):
    with numpyro.plate("rows", 4):
        numpyro.sample("theta", density)


def scaled(density):
    with numpyro.plate("rows", 4), handlers.scale(scale=2.5):
        numpyro.sample("theta", density)


def part(density):
    with numpyro.plate("rows", 8, subsample_size=4):
        numpyro.sample("theta", density)


def seen(density):
    with numpyro.plate("rows", 4):
        numpyro.sample("theta", density, obs=ROWS)


# name: (model, its value, the log ratio)
PLACES = {
    "alone": (lambda d: numpyro.sample("theta", d), ROWS[0], ERRORS[0]),
    "plate": (rowwise, ROWS, ERRORS),
    "expanded": (lambda d: numpyro.sample("theta", d.expand((4,))), ROWS, ERRORS),
    "one event": (lambda d: numpyro.sample("theta", d.expand((4,)).to_event(1)), ROWS, ERRORS.sum()),
    "masked": (lambda d: rowwise(d.mask(MASK)), ROWS, np.where(MASK, ERRORS, 0.0)),
    "masked in an event": (
        lambda d: numpyro.sample("theta", d.expand((4,)).mask(MASK).to_event(1)),
        ROWS,
        ERRORS[MASK].sum(),
    ),
    "scaled": (scaled, ROWS, 2.5 * ERRORS),
    "some of the rows": (handlers.substitute(part, {"rows": jnp.arange(4)}), ROWS, 2.0 * ERRORS),
    "observed": (seen, None, ERRORS),
}


# The solver's error at 8 steps, measured against 16, is below 4e-4 nats.
@pytest.mark.parametrize(("place", "value", "expected"), PLACES.values(), ids=PLACES.keys())
def test_the_log_ratio_is_the_planted_error(place, value, expected):
    corrected = correction("test", place, (learned(),), None, {"theta": exact()})
    draw = {} if value is None else {"theta": jnp.asarray(value)}
    ratio = corrected.log_ratios(draw)["theta"]
    assert ratio.shape == np.shape(expected)
    np.testing.assert_allclose(ratio, expected, atol=2e-3)
    np.testing.assert_allclose(corrected.total(draw), np.sum(expected), atol=2e-3)


def test_the_exact_density_has_the_contexts_of_the_model():
    fast = given().with_divergence(Planted(HALF, lean=[0.3, -0.2, 0.1]))
    alone = fd.FlowDensity(conditional_gaussian_flow(), solver=SOLVER)
    corrected = correction("test", rowwise, (fast,), None, {"theta": alone})
    value = ROWS + CONTEXTS @ SLOPE.T
    expected = (value - GAUSSIAN_MEAN) @ HALF + CONTEXTS @ [0.3, -0.2, 0.1]
    np.testing.assert_allclose(corrected.log_ratios({"theta": value})["theta"], expected, atol=2e-3)


@pytest.mark.parametrize("kind", [lambda d: d, amortized], ids=["its flow", "itself"])
def test_an_amortized_density_is_corrected_to_its_flow(kind):
    fast = amortized(learned())
    corrected = correction("test", rowwise, (fast,), None, {"theta": kind(exact())})
    ratio = corrected.log_ratios({"theta": ROWS})["theta"]
    np.testing.assert_allclose(ratio, exact().log_prob(ROWS) - fast.log_prob(ROWS), atol=1e-5)
    assert corrected.errors == {"theta": "amortization, divergence (Planted)"}


def test_a_solver_is_corrected_to_a_finer_one():
    coarse, fine = exact().with_solver(fd.FixedStep(2)), exact()
    corrected = correction("test", rowwise, (coarse,), None, {"theta": fine})
    assert corrected.errors == {"theta": "solver"}
    ratio = corrected.log_ratios({"theta": ROWS})["theta"]
    np.testing.assert_allclose(ratio, fine.log_prob(ROWS) - coarse.log_prob(ROWS), atol=1e-5)
    assert np.abs(ratio).max() > 1e-2


def test_double_precision():
    with x64():
        rows = jnp.asarray(ROWS, jnp.float64)
        corrected = correction("test", rowwise, (learned(),), None, {"theta": exact()})
        ratio = corrected.log_ratios({"theta": rows})["theta"]
        assert ratio.dtype == jnp.float64
        np.testing.assert_allclose(ratio, ERRORS, atol=2e-3)


# Half a nat -------------------------------------------------------------------------------------


def test_the_repaired_means_are_the_exact_ones(half_a_nat):
    mean = half_a_nat.mean()
    assert_mean(mean["theta"], MEAN)
    assert_mean(mean["sum"], MEAN.sum())
    raw = sampled()
    away = (raw.mean((0, 1)) - MEAN) / (raw.std((0, 1)) / np.sqrt(TOTAL))
    assert np.abs(away).max() > 8.0


def test_the_figures_are_those_of_half_a_nat(half_a_nat):
    """With independent draws and a Gaussian log ratio of variance v the weights keep exp(-v) of the draws."""
    assert half_a_nat.pareto_k < 0.5
    assert half_a_nat.reliable
    assert half_a_nat.threshold == pytest.approx(1.0 - 1.0 / np.log10(TOTAL))
    assert half_a_nat.error == pytest.approx(0.5, abs=4.0 * 0.5 / np.sqrt(2.0 * TOTAL) + 1e-3)
    weights = np.exp(half_a_nat.log_weights)
    # 1.3 % is the standard deviation of this ratio, and 9 % that of arviz's effective sample size of independent draws.
    assert 1.0 / np.sum(weights**2) / TOTAL == pytest.approx(np.exp(-0.25), abs=4.0 * 0.013)
    assert half_a_nat.effective_sample_size * np.sum(weights**2) == pytest.approx(1.0, abs=4.0 * 0.09)
    assert not half_a_nat.factorized
    assert half_a_nat.log_weights.shape == (CHAINS, DRAWS)
    assert np.exp(half_a_nat.log_weights).sum() == pytest.approx(1.0)


def test_the_standard_error_of_a_mean_is_that_of_the_theory(half_a_nat):
    """For u ~ N(0, 1) and weights exp(s u): the variance of the weighted mean of u is exp(s^2) (1 + s^2) / S."""
    along = (sampled() - MEAN) @ AWAY / np.sqrt(AWAY @ COVARIANCE @ AWAY)
    mean, error = half_a_nat.expectation(along)
    assert_mean((mean, error), 0.0)
    assert error == pytest.approx(np.sqrt(np.exp(0.25) * 1.25 / TOTAL), rel=0.15)


def test_an_expectation_of_anything(half_a_nat):
    square = (sampled() - MEAN) ** 2
    assert_mean(half_a_nat.expectation(square), np.diag(COVARIANCE))
    with pytest.raises(ValueError, match=r"Reweighted.expectation expected `values` .* Fix: "):
        half_a_nat.expectation(square[:1])


def test_the_summary_says_what_it_corrects_and_what_not(half_a_nat):
    text = half_a_nat.summary()
    said = (
        f"{half_a_nat.error:.3g} nats",
        f"{half_a_nat.pareto_k:.2f}, below the limit of 0.70",
        "theta: divergence (Planted)",
    )
    for words in (*said, "not corrected: differences between the flow and its data"):
        assert words in text
    assert "Fix" not in text


def test_nothing_to_correct():
    theta = sampled(np.zeros(2))
    result = weigh(theta, exact())
    assert result.pareto_k == 0.0
    assert result.error < 1e-5
    np.testing.assert_allclose(result.log_weights, -np.log(TOTAL), atol=1e-5)
    assert result.effective_sample_size == pytest.approx(TOTAL, rel=4.0 * 0.09)
    assert "nothing: it was exact" in result.summary()


def test_a_hopeless_error_is_said_to_be_hopeless():
    """4 nats: the posteriors are 4 standard deviations apart, where 20 other draws of 2,000 had k between 1.15 and 1.71."""
    with pytest.warns(UserWarning, match=r"Pareto k is .*Fix: .*fd\.DelayedAcceptance\(numpyro\.infer\.NUTS"):
        result = weigh(sampled(8.0 * HALF), learned(8.0 * HALF))
    assert result.pareto_k > 1.0
    assert not result.reliable
    assert result.effective_sample_size < 0.1 * TOTAL
    assert "Fix: kernel = fd.DelayedAcceptance(numpyro.infer.NUTS(model)" in result.summary()


def test_few_effective_draws_are_said_to_be_few():
    """Each draw a hundred times: twenty are left of two thousand, before they are weighted."""
    repeated = np.repeat(sampled()[:, :: DRAWS // 5], DRAWS // 5, axis=1)
    with pytest.warns(UserWarning, match=r"there are fewer than 50 effective draws: .* More draws help if arviz\.rhat"):
        result = weigh(repeated, learned())
    assert result.effective_sample_size < 40.0
    known = 1.0 / np.sqrt(result.effective_sample_size)
    assert f"means are known to {known:.2g} posterior standard deviations" in result.summary()


# Resampling -------------------------------------------------------------------------------------


PRIOR = np.random.default_rng(5).normal(size=(1, 30, 2))


def test_a_resampled_posterior_is_of_the_kind_that_came():
    theta = sampled()
    posterior = posterior_of(
        theta,
        coords={"side": ["left", "right"]},
        dims={"theta": ["side"]},
        sample_stats={"energy": theta[..., 0]},
        observed_data={"y": Y},
        prior={"theta": PRIOR},
    )
    again = reweight(
        jr.key(1), posterior, model, {"theta": exact()}, model_args=(learned(),), progress=False
    ).resample()
    assert type(again) is type(posterior)
    np.testing.assert_array_equal(again["observed_data"]["y"], Y)
    assert list(again["posterior"]["side"].values) == ["left", "right"]
    assert again["posterior"]["theta"].dims == ("chain", "draw", "side")
    assert "Pareto k" in again["posterior"].attrs["reweighted"]
    values = draws_of("test", again)
    assert values["theta"].shape == theta.shape
    # What is in one draw stays together, over groups too.
    np.testing.assert_array_equal(values["theta"].sum(-1), values["sum"])
    np.testing.assert_array_equal(values["theta"][..., 0], again["sample_stats"]["energy"])
    np.testing.assert_array_equal(again["prior"]["theta"], PRIOR)
    np.testing.assert_array_equal(posterior["posterior"]["theta"], theta)


def test_resampled_draws_have_the_exact_moments(half_a_nat):
    values = draws_of("test", half_a_nat.resample(draws=3000))["theta"]
    assert values.shape == (CHAINS, 3000, 2)
    # The resampling adds to the weights' own error no more than its 6,000 draws do.
    _, error = half_a_nat.mean()["theta"]
    spread = np.sqrt(error**2 + np.diag(COVARIANCE) / 6000)
    assert np.all(np.abs(values.mean((0, 1)) - MEAN) < 4.0 * spread)
    np.testing.assert_array_equal(values, draws_of("test", half_a_nat.resample(draws=3000))["theta"])


def test_draws_come_as_often_as_they_weigh(half_a_nat):
    """One in each equal part of the weight: no draw's count is further than 1 from what it should be, but at both its ends."""
    theta, wanted = sampled().reshape(-1, 2), 4 * DRAWS
    values = draws_of("test", half_a_nat.resample(draws=wanted))["theta"].reshape(-1, 2)
    order = np.argsort(theta[:, 0])
    rows = order[np.searchsorted(theta[order, 0], values[:, 0])]
    np.testing.assert_array_equal(theta[rows], values)
    counts = np.bincount(rows, minlength=TOTAL)
    assert np.all(np.abs(counts - CHAINS * wanted * np.exp(half_a_nat.log_weights.reshape(-1))) < 2.0)
    assert np.all(np.diff(rows) >= 0)


def test_a_dataset_is_a_posterior_too(half_a_nat):
    dataset = posterior_of(sampled())["posterior"]
    dataset = dataset.to_dataset() if hasattr(dataset, "to_dataset") else dataset
    result = reweight(jr.key(1), dataset, model, {"theta": exact()}, model_args=(learned(),), progress=False)
    np.testing.assert_array_equal(result.log_weights, half_a_nat.log_weights)
    again = result.resample(draws=7)
    assert type(again) is type(dataset)
    assert again["theta"].shape == (CHAINS, 7, 2)


def test_no_draws_are_refused(half_a_nat):
    with pytest.raises(ValueError, match=r"Reweighted.resample expected `draws` .* Fix: "):
        half_a_nat.resample(draws=0)


# Groups -----------------------------------------------------------------------------------------

GROUP_Y = np.array([[0.5, -1.0], [2.0, -2.0], [60.0, 30.0], [1.0, -1.5]])
FAR = 0.3 * np.linalg.inv(GAUSSIAN_COVARIANCE)
"""An error that grows with the distance from the prior's mean: 0.1-0.2 nats in three groups, and 4 in the other."""


def grouped(density, extra=None):
    with numpyro.plate("group", 4):
        theta = numpyro.sample("theta", density)
        numpyro.deterministic("first", theta[..., 0])
        extra = extra(theta) if extra else 0.0
        numpyro.sample("y", dist.Normal(theta + extra, 0.5).to_event(1), obs=GROUP_Y)
    numpyro.deterministic("all", theta.sum((-2, -1)))


def group_draws(slope, bend):
    return np.stack([sampled(slope, bend, y, 0.5, seed) for seed, y in enumerate(GROUP_Y)], axis=2)


@pytest.fixture(scope="module")
def by_group():
    theta = group_draws(np.zeros(2), FAR)
    posterior = in_arviz(
        {"theta": theta, "first": theta[..., 0], "all": theta.sum((-2, -1))},
        coords={"group": list("abcd")},
        dims={"theta": ["group", "side"], "first": ["group"]},
        sample_stats={"energy": theta[..., 0, 0]},
        observed_data={"y": GROUP_Y},
    )
    density = learned(np.zeros(2), FAR)
    with pytest.warns(UserWarning, match="Pareto k"):
        return reweight(jr.key(2), posterior, grouped, {"theta": exact()}, model_args=(density,), progress=False)


def test_only_the_group_that_is_bad_is_bad(by_group):
    assert by_group.factorized
    assert by_group.log_weights.shape == (CHAINS, DRAWS, 4)
    assert by_group.pareto_k.shape == by_group.effective_sample_size.shape == by_group.error.shape == (4,)
    np.testing.assert_array_equal(by_group.pareto_k < by_group.threshold, [True, True, False, True])
    assert np.all(by_group.pareto_k[[0, 1, 3]] < 0.5)
    assert "1 of 4 groups" in by_group.summary()
    assert "each group of group" in by_group.summary()


def test_each_good_group_has_its_own_mean(by_group):
    mean = by_group.mean()
    assert set(mean) == {"theta", "first"}
    for group in (0, 1, 3):
        expected, _ = observed(GROUP_Y[group], 0.5)
        assert_mean(tuple(part[group] for part in mean["theta"]), expected)
        np.testing.assert_allclose(mean["first"][0][group], mean["theta"][0][group, 0])


def test_groups_are_resampled_one_by_one(by_group):
    again = by_group.resample()
    assert "sample_stats" not in (again.children if hasattr(again, "children") else again.groups())
    np.testing.assert_array_equal(again["observed_data"]["y"], GROUP_Y)
    assert list(again["posterior"]["group"].values) == list("abcd")
    values = draws_of("test", again)
    # What is computed from the values is computed anew.
    np.testing.assert_allclose(values["first"], values["theta"][..., 0], rtol=1e-6)
    np.testing.assert_allclose(values["all"], values["theta"].sum((-2, -1)), rtol=1e-5, atol=1e-5)
    before = draws_of("test", by_group.posterior)["theta"]
    for group in (0, 1, 3):
        assert set(values["theta"][..., group, 0].ravel()) <= set(before[..., group, 0].ravel())
        expected, covariance = observed(GROUP_Y[group], 0.5)
        _, error = by_group.mean()["theta"]
        spread = np.sqrt(error[group] ** 2 + np.diag(covariance) / TOTAL)
        assert np.all(np.abs(values["theta"][..., group, :].mean((0, 1)) - expected) < 4.0 * spread)


def with_a_parent(density):
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    grouped(density, lambda _: shift)


def with_a_sum(density):
    grouped(density)
    numpyro.factor("sum", 0.0)


def coupled(density):
    grouped(density, lambda theta: jnp.roll(theta, 1, axis=-2))


@pytest.mark.parametrize("together", [with_a_parent, with_a_sum, coupled])
def test_groups_that_hang_together_are_weighed_together(together):
    theta = group_draws(HALF, NONE)[:, :50]
    posterior = in_arviz({"theta": theta, "shift": theta[..., 0, 0]})
    result = reweight(
        jr.key(2), posterior, together, {"theta": exact()}, model_args=(learned(0.1 * HALF),), progress=False
    )
    assert not result.factorized
    assert result.log_weights.shape == (CHAINS, 50)
    expected = 0.1 * ((theta - GAUSSIAN_MEAN) @ HALF).sum(-1)
    assert result.error == pytest.approx(expected.std(), abs=1e-2)


def test_a_site_inside_a_scan_is_corrected():
    rows = np.random.default_rng(0).normal(size=(3, 2))

    def chained(density):
        def step(carry, row):
            theta = numpyro.sample("theta", density)
            numpyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=row)
            return carry, None

        scan(step, None, rows)

    theta = GAUSSIAN_MEAN + np.random.default_rng(1).normal(size=(3, 2))
    found = correction("test", chained, (learned(0.1 * HALF),), None, {"theta": exact()}).total(
        {"theta": jnp.asarray(theta)}
    )
    expected = exact().log_prob(theta) - learned(0.1 * HALF).log_prob(theta)
    np.testing.assert_allclose(found, np.sum(expected), rtol=1e-3, atol=1e-4)
    assert abs(found) > 0.01


def test_weakly_coupled_groups_of_many_observations_are_weighed_together():
    """What couples them is a fraction of a nat, in groups whose log densities are thousands."""
    rows = np.random.default_rng(0).normal(size=(4, 1000, 2))

    def weakly(density):
        with numpyro.plate("group", 4):
            theta = numpyro.sample("theta", density)
            center = theta + 0.15 * jnp.roll(theta, 1, axis=-2)
            numpyro.sample("y", dist.Normal(center[:, None], 1.0).expand((4, 1000, 2)).to_event(2), obs=rows)

    theta = 0.03 * np.random.default_rng(1).normal(size=(CHAINS, 50, 4, 2))
    result = reweight(
        jr.key(2),
        in_arviz({"theta": theta}),
        weakly,
        {"theta": exact()},
        model_args=(learned(0.1 * HALF),),
        progress=False,
    )
    assert not result.factorized


@pytest.mark.slow
def test_two_plates_have_two_axes_of_groups():
    noise = np.array([[0.5], [1.0], [2.0]])

    def crossed(density):
        with numpyro.plate("row", 2, dim=-2), numpyro.plate("column", 3, dim=-1):
            theta = numpyro.sample("theta", density)
            numpyro.sample("y", dist.Normal(theta, noise).to_event(1), obs=Y)

    columns = [[sampled(noise=n, seed=3 * row + i) for i, n in enumerate(noise[:, 0])] for row in range(2)]
    theta = np.moveaxis(np.array(columns), (0, 1), (2, 3))
    result = reweight(
        jr.key(0), in_arviz({"theta": theta}), crossed, {"theta": exact()}, model_args=(learned(),), progress=False
    )
    assert result.pareto_k.shape == (2, 3)
    mean, error = result.mean()["theta"]
    for index in np.ndindex(2, 3):
        assert_mean((mean[index], error[index]), observed(Y, noise[index[1], 0])[0])
    assert draws_of("test", result.resample(draws=5))["theta"].shape == (CHAINS, 5, 2, 3, 2)


# Elsewhere in a model ---------------------------------------------------------------------------


def test_a_learned_likelihood_is_corrected():
    """theta ~ N(0, I) and y ~ N(mean + A theta, C), whose learned log density leans by l . theta: the mean is off by S l."""
    y, lean = np.array([[0.5, -1.5], [2.0, -2.5]]), np.array([0.3, -0.2, 0.3])

    def simulated(likelihood):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((3,)).to_event(1))
        with numpyro.plate("events", 2):
            numpyro.sample("y", likelihood.given(theta), obs=y)

    alone = fd.FlowDensity(conditional_gaussian_flow(), solver=SOLVER)
    inverse = np.linalg.inv(GAUSSIAN_COVARIANCE)
    covariance = np.linalg.inv(np.eye(3) + 2.0 * SLOPE.T @ inverse @ SLOPE)
    expected = covariance @ SLOPE.T @ inverse @ (y - GAUSSIAN_MEAN).sum(0)
    # Two observations, and each with the error.
    wrong = expected - covariance @ (2.0 * lean)
    theta = np.random.default_rng(0).multivariate_normal(wrong, covariance, (CHAINS, DRAWS))
    result = reweight(
        jr.key(0),
        in_arviz({"theta": theta}),
        simulated,
        {"y": alone},
        model_args=(alone.with_divergence(Planted(np.zeros(2), lean=lean)),),
        progress=False,
    )
    assert not result.factorized
    assert result.error == pytest.approx(np.sqrt(4.0 * lean @ covariance @ lean), rel=0.1)
    assert_mean(result.mean()["theta"], expected)
    assert np.abs((theta.mean((0, 1)) - expected) / (theta.std((0, 1)) / np.sqrt(TOTAL))).max() > 8.0


NAMED_SLOPE = np.array([0.3, -0.2, 0.4, 0.1])


@pytest.mark.parametrize("rows", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_named_values(rows):
    """Under no observation the exact posterior is the prior, jointly Gaussian in `a` and the logarithms of `tau` and `v`."""
    alone = fd.FlowDensity(named_flow(), solver=SOLVER)

    def named(density):
        if rows is None:
            fd.sample_sites("theta", density)
        else:
            with numpyro.plate("rows", rows):
                fd.sample_sites("theta", density)

    mean, covariance = tilted(NAMED_MEAN, NAMED_COVARIANCE, NAMED_SLOPE, np.zeros((4, 4)))
    shape = (CHAINS, DRAWS) if rows is None else (CHAINS, DRAWS, rows)
    theta = np.random.default_rng(1).multivariate_normal(mean, covariance, shape)
    theta[..., 1:] = np.exp(theta[..., 1:])
    values = {"theta": theta, "a": theta[..., 0], "tau": theta[..., 1], "v": theta[..., 2:]}
    density = alone.with_divergence(Planted(NAMED_SLOPE))
    result = reweight(jr.key(0), in_arviz(values), named, {"theta": alone}, model_args=(density,), progress=False)
    assert result.factorized == (rows is not None)
    means = result.mean()
    assert set(means) == set(values)
    assert_mean(means["a"], NAMED_MEAN[0])
    assert_mean(means["v"], np.exp(NAMED_MEAN + 0.5 * np.diag(NAMED_COVARIANCE))[2:])
    assert_mean(result.expectation(np.log(values["tau"])), NAMED_MEAN[1])
    again = draws_of("test", result.resample(draws=50))
    assert again["v"].shape == (CHAINS, 50, *shape[2:], 2)
    np.testing.assert_allclose(again["theta"][..., 2:], again["v"], rtol=1e-5)


@pytest.mark.slow
def test_nuts_with_a_planted_error_is_repaired_to_nuts_without():
    def run(density):
        kernel = NUTS(model)
        mcmc = MCMC(
            kernel, num_warmup=300, num_samples=600, num_chains=2, chain_method="vectorized", progress_bar=False
        )
        mcmc.run(jr.key(3), density)
        return arviz.from_numpyro(mcmc)

    wrong, right = run(learned()), run(exact())
    result = reweight(jr.key(1), wrong, model, {"theta": exact()}, model_args=(learned(),), progress=False)
    assert result.pareto_k < 0.5
    assert result.error == pytest.approx(0.5, rel=0.1)
    # Weights that are even give the mean and standard error of draws as they are.
    even = reweight(jr.key(1), right, model, {"theta": exact()}, model_args=(exact(),), progress=False).mean()["theta"]
    mean, error = result.mean()["theta"]
    assert np.all(np.abs(mean - even[0]) < 4.0 * np.hypot(error, even[1]))
    assert_mean((mean, error), MEAN)
    raw = draws_of("test", wrong)["theta"].mean((0, 1))
    assert np.abs((raw - even[0]) / even[1]).max() > 5.0


# Refused ----------------------------------------------------------------------------------------


def reparametrized(density):
    handlers.reparam(model, config={"theta": fd.FlowReparam()})(density)


def shuffled(density):
    with numpyro.plate("rows", 8, subsample_size=4):
        numpyro.sample("theta", density)


def other(density):
    numpyro.sample("theta", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))


THETA = sampled()[:, :50]
BROKEN = THETA.copy()
BROKEN[0, 3, 1] = np.nan
# name: (error, what it says, changes to the call)
REFUSED = {
    "no mapping": (TypeError, "`exact` to map names", {"exact": exact()}),
    "nothing to correct": (TypeError, "`exact` to map names", {"exact": {}}),
    "no density": (TypeError, "FlowDensity or AmortizedDensity; got Normal", {"exact": {"theta": dist.Normal()}}),
    "unknown site": (ValueError, "to name sites of `model`; got 'phi'", {"exact": {"phi": exact()}}),
    "deterministic site": (ValueError, "a log density; it is deterministic", {"exact": {"sum": exact()}}),
    "change of variables": (ValueError, "only the solver could be corrected", {"model": reparametrized}),
    "another density": (ValueError, "site 'theta' to have a FlowDensity .*; got Normal", {"model": other}),
    "other events": (
        ValueError,
        "events of shape",
        {"exact": {"theta": fd.FlowDensity(gaussian_flow(event_shape=(2, 1)))}},
    ),
    "other contexts": (ValueError, "contexts of shape", {"exact": {"theta": given()}}),
    "rows at random": (ValueError, "without random subsampling; plate 'rows' subsamples its rows", {"model": shuffled}),
    "no arviz": (TypeError, "`posterior` in arviz's form; got dict", {"posterior": {"theta": THETA}}),
    "a site is lacking": (ValueError, r"it lacks \['theta'\]", {"posterior": in_arviz({"sum": THETA[..., 0]})}),
    "another shape": (ValueError, r"shape \(chain, draw, 2\)", {"posterior": in_arviz({"theta": THETA[..., 0]})}),
    "few draws": (ValueError, "at least 25 draws", {"posterior": in_arviz({"theta": THETA[:, :6]})}),
    "not finite": (ValueError, "got 1 of 100 that are not finite", {"posterior": in_arviz({"theta": BROKEN})}),
}


@pytest.mark.parametrize(("error", "says", "changes"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_corrected_is_refused(error, says, changes):
    call = {"posterior": posterior_of(THETA), "model": model, "exact": {"theta": exact()}} | changes
    with pytest.raises(error, match=rf"(?s)reweight expected .*{says}.* Fix: "):
        reweight(jr.key(0), **call, model_args=(learned(),), progress=False)


def test_names_in_another_order_are_refused():
    flow = named_flow()
    turned = Scaling(NAMED_MEAN, np.ones(4), flow.scaling.support, (4,), NAMED._replace(names=("tau", "a", "v")))
    turned = fd.FlowDensity(eqx.tree_at(lambda m: m.scaling, flow, turned))
    with pytest.raises(ValueError, match=r"to have names .* Fix: "):
        correction("test", lambda: numpyro.sample("theta", fd.FlowDensity(flow)), (), None, {"theta": turned})
