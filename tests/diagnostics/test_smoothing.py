"""Lines of plots are densities, against closed forms."""

import numpy as np
import pytest
from scipy.stats import norm

from flowdensity.diagnostics.smoothing import smoothed_density, span_of


def test_two_far_modes_are_not_smoothed_into_each_other():
    """Silverman's width is 2.5 times that of either mode here, and would take 63 % off their peaks."""
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(-5.0, 0.3, 4096), rng.normal(5.0, 0.3, 4096)])
    rng.shuffle(values)
    (x,), height, _ = smoothed_density(values[:, None], [(-8.0, 8.0)])
    exact = 0.5 * (norm(-5.0, 0.3).pdf(x) + norm(5.0, 0.3).pdf(x))
    # A squared error of 0.5 % above the best is a width of 0.44, which takes 9 % off; and four standard errors of 2.4 %.
    assert np.max(np.abs(height - exact)) < (0.09 + 4.0 * 0.024) * exact.max()


def test_the_end_of_a_support_is_not_smoothed_away():
    values = np.random.default_rng(4).exponential(size=8192)
    (x,), height, _ = smoothed_density(values[:, None], [(-1.0, 7.0)])
    assert x[0] > -0.01
    assert height[0] == 0.0
    assert abs(height[1] - 1.0) < 0.15
    assert abs(np.sum(height) * (x[1] - x[0]) - 1.0) < 1e-9


@pytest.mark.parametrize("values", [np.full(100, 2.0), np.repeat([1.0, 2.0], 50), np.array([1.0, 2.0, 4.0, 8.0])])
def test_draws_of_stuck_chains_and_few_draws_have_a_density(values):
    (x,), height, _ = smoothed_density(values[:, None], [(0.0, 10.0)])
    assert np.isfinite(height).all()
    assert abs(np.sum(height) * (x[1] - x[0]) - 1.0) < 1e-9


def test_a_long_tail_does_not_squeeze_the_other_values():
    """The quantiles of a normal and of a lognormal law are known, so that the ends of a panel are as well."""
    normal = np.random.default_rng(2).normal(size=200_000)
    low, high = span_of(normal)
    np.testing.assert_allclose([low, high], [-3.09 * 1.16, 3.09 * 1.16], rtol=0.03)
    low, high = span_of(np.exp(1.5 * normal))
    cut = 1.0 + 1.5 * (np.exp(1.5 * 2.326) - 1.0)
    np.testing.assert_allclose(high, 1.08 * cut, rtol=0.05)
    assert high < 0.6 * np.quantile(np.exp(1.5 * normal), 0.999)
    assert span_of(normal, normal + 10.0)[1] > 13.0
