"""`sample` and `log_prob` are one density: frequencies of draws against integrals over the plane."""

import equinox as eqx
import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import cases, random_flow
from scipy.stats import chi2, kstest

import flowdensity as fd
from flowdensity.data.scaling import Scaling
from flowdensity.data.supports import joint

DRAWS = 20_000
FALSE_ALARM = 1e-5
"""Chance that a right implementation fails one of these tests."""


def cell_probabilities(log_density: np.ndarray, cell: float, block: int) -> np.ndarray:
    """Integrals of a density on a grid over square blocks of `block` by `block` grid cells."""
    side = len(log_density) // block
    return (np.exp(log_density) * cell).reshape(side, block, side, block).sum((1, 3)).ravel()


def test_draws_fall_where_the_density_says(mixture_fit, plane):
    """Pearson's chi-squared over blocks of the plane, the sparse ones joined."""
    block = 5
    probabilities = cell_probabilities(plane.exact, plane.cell, block)
    draws = np.asarray(mixture_fit.density.sample(jr.key(0), (DRAWS,)), np.float64)
    width = block * (plane.axis[1] - plane.axis[0])
    edge = plane.axis[0] - 0.5 * (plane.axis[1] - plane.axis[0])
    side = len(plane.axis) // block
    rows, columns = np.floor((draws - edge) / width).astype(int).T
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    counts = np.bincount(rows[inside] * side + columns[inside], minlength=side**2)

    common = probabilities * DRAWS >= 10.0
    observed = np.append(counts[common], DRAWS - counts[common].sum())
    expected = np.append(probabilities[common], 1.0 - probabilities[common].sum()) * DRAWS
    assert common.sum() > 30
    statistic = np.sum(np.square(observed - expected) / expected)
    assert statistic < chi2(common.sum()).isf(FALSE_ALARM)

    # The test has power: draws of the fitted Gaussian are caught.
    normal = np.random.default_rng(1).multivariate_normal(mixture_fit.data.mean(0), np.cov(mixture_fit.data.T), DRAWS)
    rows, columns = np.clip(np.floor((normal - edge) / width).astype(int), 0, side - 1).T
    counts = np.bincount(rows * side + columns, minlength=side**2)
    observed = np.append(counts[common], DRAWS - counts[common].sum())
    assert np.sum(np.square(observed - expected) / expected) > 2.0 * chi2(common.sum()).isf(FALSE_ALARM)


def test_noise_of_draws_is_standard_normal(mixture_fit):
    """The way back from the events of the data's own law is the probability integral transform of the flow."""
    density = mixture_fit.density
    draws = density.sample(jr.key(1), (5_000,))
    noise = np.asarray(density.to_base(draws), np.float64)
    for column in noise.T:
        assert kstest(column, "norm").pvalue > FALSE_ALARM
    assert abs(np.corrcoef(noise.T)[0, 1]) < 4.5 / np.sqrt(5_000)


def test_scalar_draws_follow_the_integral_of_the_density(positive_fit):
    """Kolmogorov and Smirnov's test against the distribution function by quadrature in log x."""
    density = positive_fit.density
    log_x = np.linspace(np.log(1e-3), np.log(1e3), 4001)
    pdf = np.exp(np.asarray(density.log_prob(np.exp(log_x)), np.float64) + log_x)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (pdf[1:] + pdf[:-1]) * np.diff(log_x))])
    draws = np.asarray(density.sample(jr.key(2), (5_000,)), np.float64)
    assert np.all(draws > 0.0)
    # The learned divergence need not make it integrate to exactly one; the shape is what is tested.
    cdf = cumulative / cumulative[-1]
    assert kstest(np.log(draws), lambda u: np.interp(u, log_x, cdf)).pvalue > FALSE_ALARM


def test_the_exact_density_of_the_plane_integrates_to_one(plane):
    # What is left is the solver's error: (pi/32)^3 = 1e-3 for sixteen third-order steps, at most.
    assert np.exp(plane.exact).sum() * plane.cell == pytest.approx(1.0, abs=1e-3)


def test_the_learned_density_of_the_plane_integrates_to_one(mixture_fit, plane):
    # A learned log density that is off by a mean b and a spread s integrates to exp(b + s^2/2). Calibration takes the
    # mean out up to its standard error, which is that of the residuals; a spread below 0.06 adds 0.002.
    _, error = mixture_fit.report.residuals.bias
    total = np.exp(plane.learned).sum() * plane.cell
    assert abs(total - 1.0) < 4.0 * error + 2e-3
    assert error < 0.01


def test_the_positive_density_integrates_to_one(positive_fit):
    log_x = np.linspace(np.log(1e-4), np.log(1e4), 4001)
    pdf = np.exp(np.asarray(positive_fit.density.log_prob(np.exp(log_x)), np.float64) + log_x)
    _, error = positive_fit.report.residuals.bias
    assert abs(np.trapezoid(pdf, log_x) - 1.0) < 4.0 * error + 2e-3


def test_moments_of_draws_are_moments_of_the_density(mixture_fit, plane):
    draws = np.asarray(mixture_fit.density.sample(jr.key(3), (DRAWS,)), np.float64)
    weights = np.exp(plane.exact) * plane.cell
    for axis in range(2):
        marginal = weights.sum(1 - axis)
        for power in (1, 2):
            expected = np.sum(marginal * plane.axis**power)
            error = np.std(draws[:, axis] ** power) / np.sqrt(DRAWS)
            assert abs(np.mean(draws[:, axis] ** power) - expected) < 4.5 * error


CELLS = 150
MIDPOINTS = (np.arange(CELLS) + 0.5) / CELLS
SQUARE = np.stack(np.meshgrid(MIDPOINTS, MIDPOINTS, indexing="ij"), -1).reshape(-1, 2)
TRIANGLE = np.concatenate([SQUARE, 1.0 - SQUARE.sum(-1, keepdims=True)], -1)[SQUARE.sum(-1) < 1.0]
# name: (support, shape of an event, dimension, midpoints of cells, volume of a cell)
BOUNDED = {
    "interval": (constraints.interval(-1.0, 3.0), (), 1, 4.0 * MIDPOINTS - 1.0, 4.0 / CELLS),
    "square": (constraints.unit_interval, (2,), 2, SQUARE, 1.0 / CELLS**2),
    # As numpyro counts it, the density of all coordinates but the last.
    "simplex": (constraints.simplex, (3,), 2, TRIANGLE, 1.0 / CELLS**2),
    "each its own": (
        joint([constraints.interval(0.0, 2.0), constraints.less_than(1.0)], ((), ())),
        (2,),
        2,
        SQUARE * [2.0, 30.0] - [0.0, 29.0],
        60.0 / CELLS**2,
    ),
}


@pytest.mark.parametrize(("support", "shape", "dim", "points", "cell"), cases(BOUNDED, ["interval"]))
def test_a_density_on_a_bounded_support_integrates_to_one(support, shape, dim, points, cell):
    model = random_flow(jr.key(1), dim, size=0.3)
    model = eqx.tree_at(lambda m: m.scaling, model, Scaling(np.zeros(dim), 0.7 * np.ones(dim), support, shape))
    density = fd.FlowDensity(model)
    draws = np.asarray(density.sample(jr.key(2), (1000,)))
    assert draws.shape == (1000, *shape)
    assert np.asarray(density.support(draws)).all()
    integral = np.sum(np.exp(np.asarray(density.log_prob(points.astype(np.float32)), np.float64))) * cell
    assert abs(integral - 1.0) < 2e-3
