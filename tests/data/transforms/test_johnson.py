"""Johnson's SU transform: its density, which coordinates are transformed, and how it combines with the whitening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import MIXTURE, assert_whitens, x64
from scipy.stats import johnsonsu

from flowdensity.data.scaling import fit_scaling
from flowdensity.data.transforms.johnson import JohnsonSU, fit_johnson

PARAMETERS = np.array([[0.5, 0.0, -2.0], [2.0, 1.0, 0.3], [-0.7, 0.0, 0.4], [0.8, 1.0, 1.5]])
ACTIVE = np.array([True, False, True])


def skewed(rng: np.random.Generator, rows: int) -> np.ndarray:
    """A coordinate with a long tail upwards and one that is normal, correlated after their transforms."""
    noise = rng.normal(size=(rows, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
    return np.stack([3.0 + 10.0 * np.sinh((noise[:, 0] + 1.0) / 0.9), 5.0 - 2.0 * noise[:, 1]], axis=1)


def test_there_and_back():
    with x64():
        tails, values = JohnsonSU(PARAMETERS, ACTIVE), jnp.array([7.0, -3.0, -2.5])
        mapped, log_det = tails.forward_and_log_det(values)
        np.testing.assert_allclose(tails.inverse(mapped), values, rtol=1e-12)
        assert mapped[1] == values[1]
        jacobian = jax.jacfwd(lambda u: tails.forward_and_log_det(u)[0])(values)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-12)
        xi, width, gamma, delta = PARAMETERS[:, 0]
        law = johnsonsu(gamma, delta, xi, width)
        normal = -0.5 * mapped[0] ** 2 - 0.5 * np.log(2.0 * np.pi)
        np.testing.assert_allclose(normal + jnp.log(jacobian[0, 0]), law.logpdf(7.0), rtol=1e-12)


def test_far_out_everything_is_finite():
    tails = JohnsonSU(PARAMETERS, ACTIVE)
    for values in (jnp.array([1e6, 1e6, -1e6]), jnp.array([-1e20, 1e20, 1e20])):
        for gradient in jax.tree.leaves(
            (jax.jacfwd(tails.forward_and_log_det)(values), jax.jacrev(tails.forward_and_log_det)(values))
        ):
            assert np.all(np.isfinite(gradient))
    # A coordinate that is not active does not overflow on the way back.
    assert np.all(np.isfinite(jax.jacrev(tails.inverse)(jnp.array([1.0, 1e6, 1.0]))))


def test_a_long_tail_is_found_and_its_law_with_it():
    rng = np.random.default_rng(0)
    found = fit_johnson(skewed(rng, 4_000))
    np.testing.assert_array_equal(found.active, [True, False])
    xi, width, gamma, delta = np.asarray(found.parameters, np.float64)[:, 0]
    fresh = skewed(rng, 20_000)[:, 0]
    gap = johnsonsu(-1.0, 0.9, 3.0, 10.0).logpdf(fresh) - johnsonsu(gamma, delta, xi, width).logpdf(fresh)
    # Four parameters told by 4,000 rows: half a nat in 4,000 for each, on the average.
    error = gap.std() / np.sqrt(len(gap))
    assert -4.0 * error < gap.mean() < 4.0 * (4 / 2 / 4_000) + 4.0 * error


@pytest.mark.parametrize("rows", [60, 4_000])
def test_normal_columns_and_clusters_stay_as_they_are(rows):
    rng = np.random.default_rng(1)
    assert fit_johnson(rng.normal(size=(rows, 3)) @ rng.normal(size=(3, 3))) is None
    assert fit_johnson(MIXTURE.sample(rng, rows)) is None


def test_a_transform_that_costs_more_than_it_gains_is_left_out():
    """Two columns that are lines of each other, but for a little noise, are transformed together or not at all."""
    rng = np.random.default_rng(2)
    first = skewed(rng, 1_000)[:, 0]
    together = np.stack([first, 2.0 * first + 0.01 * rng.normal(size=1_000)], axis=1)
    np.testing.assert_array_equal(fit_johnson(together).active, [True, True])
    # A column that is the difference of two others, which are nearly normal: transformed, it would no longer be that.
    other = 5.0 * first.std() * rng.normal(size=1_000)
    line = np.stack([first, first + other + 0.01 * rng.normal(size=1_000), other], axis=1)
    assert fit_johnson(line[:, :1]) is not None
    assert fit_johnson(line) is None


def test_the_whitening_is_that_of_the_transformed_table():
    rng = np.random.default_rng(3)
    events = np.exp(0.1 * skewed(rng, 2_000))
    with x64():
        scaling, white = fit_scaling(events, constraints.positive)
        (tails,) = scaling.chain.transforms[1:-1]
        np.testing.assert_array_equal(tails.active, [True, False])
        np.testing.assert_allclose(white.mean(0), 0.0, atol=1e-9)
        np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(2), atol=0.01)
        assert_whitens(scaling, events, white)


def test_units_do_not_matter():
    rng = np.random.default_rng(4)
    events = skewed(rng, 500)
    with x64():
        found, again = fit_johnson(events), fit_johnson(1e6 + 1e5 * events)
    np.testing.assert_array_equal(found.active, again.active)
    expected = np.asarray(found.parameters)[:, 0] * [1e5, 1e5, 1.0, 1.0] + [1e6, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(again.parameters[:, 0], expected, rtol=1e-3)


def test_a_row_counts_as_often_as_it_weighs():
    rng = np.random.default_rng(5)
    events = skewed(rng, 400)
    weights = np.tile([0.0, 2.0], 200) / 400.0
    with x64():
        found, again = fit_johnson(events, weights), fit_johnson(np.repeat(events[1::2], 2, axis=0))
    np.testing.assert_array_equal(found.active, again.active)
    np.testing.assert_allclose(found.parameters, again.parameters, rtol=1e-6)


def test_a_constant_column_among_the_rows_that_are_looked_at_changes_nothing():
    rng = np.random.default_rng(7)
    events = skewed(rng, 500)
    with x64():
        found, expected = fit_johnson(np.column_stack([events, np.ones(500)])), fit_johnson(events)
    np.testing.assert_array_equal(found.active, [*expected.active, False])
    np.testing.assert_allclose(found.parameters[:, :2], expected.parameters)


def test_no_width_is_below_single_precision():
    rng = np.random.default_rng(8)
    near = 1.0 + 1e-9 * rng.normal(size=1_000)
    found = fit_johnson(np.where(rng.random(1_000) < 0.6, near, 1.0 + rng.normal(size=1_000))[:, None])
    assert found.active[0]
    assert found.parameters[1, 0] > 20.0 * np.finfo(np.float32).eps


def test_ties_make_no_peak():
    """A column that is zero in most rows has a likelihood without bound: its width has a floor."""
    rng = np.random.default_rng(6)
    column = np.where(rng.random(1_000) < 0.6, 0.0, rng.normal(size=1_000))
    found = fit_johnson(column[:, None])
    assert found.active[0]
    assert found.parameters[1, 0] >= 0.049 * column.std()
    assert fit_johnson(column[:19, None]) is None
