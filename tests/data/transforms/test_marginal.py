"""Marginal Gaussianization: its map, which coordinates are transformed, and how it combines with the whitening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import MIXTURE, assert_whitens, central_difference, x64
from scipy.special import expit, logit
from scipy.stats import norm

from flowdensity.data.scaling import fit_scaling
from flowdensity.data.transforms.marginal import MIN_ROWS, MarginalGaussianization, fit_marginals

COLUMNS = np.array([0, 2])
CENTERS = np.array([[-1.0, 0.5, 4.0], [0.0, 0.1, 0.2]])
WIDTHS = np.array([[0.3, 1.0, 0.2], [0.02, 0.5, 0.02]])
MAP = MarginalGaussianization(COLUMNS, CENTERS, WIDTHS)


def edged(rng: np.random.Generator, rows: int) -> np.ndarray:
    """A pixel that is next to always dark, one that is anything but normal too, and one that is normal."""
    dark = np.where(rng.random(rows) < 0.8, 0.0, rng.integers(1, 17, rows)) + rng.random(rows)
    other = np.where(rng.random(rows) < 0.5, 0.0, 16.0) + rng.random(rows)
    return np.stack([dark, rng.normal(size=rows), other], axis=1)


def test_there_and_back():
    with x64():
        here, values = MarginalGaussianization(COLUMNS, CENTERS, WIDTHS), jnp.array([0.7, -3.0, 0.13])
        mapped, log_det = here.forward_and_log_det(values)
        assert mapped[1] == values[1]
        np.testing.assert_allclose(here.inverse(mapped), values, rtol=1e-12)
        jacobian = jax.jacfwd(lambda u: here.forward_and_log_det(u)[0])(values)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-12)
        for back in (jax.jacfwd(here.inverse)(mapped), jax.jacrev(here.inverse)(mapped)):
            np.testing.assert_allclose(back, np.linalg.inv(jacobian), rtol=1e-9, atol=1e-12)
        gradient = jax.grad(lambda u: here.forward_and_log_det(u)[1])(values)
        by_differences = central_difference(lambda u: here.forward_and_log_det(jnp.asarray(u))[1], values)
        np.testing.assert_allclose(gradient, by_differences, rtol=1e-6, atol=1e-9)


def test_the_map_is_that_from_the_distribution_function_to_the_normal_law():
    """To within the few hundredths by which a logistic law's map to a normal one is off in closed form; far out it grows less."""
    values = np.linspace(-8.0, 9.0, 200)
    function = expit((values[:, None] - CENTERS[0]) / WIDTHS[0]).mean(axis=1)
    inside = (function > 1e-3) & (function < 1.0 - 1e-3)
    rows = np.stack([values, values, values], axis=1)
    mapped = np.asarray(jax.vmap(lambda row: MAP.forward_and_log_det(row)[0])(jnp.asarray(rows, float)))[:, 0]
    np.testing.assert_allclose(mapped[inside], norm.ppf(function[inside]), atol=0.04)
    assert np.all(np.diff(mapped) > 0.0)
    # Far out it is the root of the exponent of the widest law, one of three.
    far = float(MAP.forward_and_log_det(jnp.array([0.5 + 1.0 * 5e3, 0.0, 0.0]))[0][0])
    np.testing.assert_allclose(far, np.sqrt(0.5 * np.pi * (5e3 + np.log(3.0))), rtol=1e-5)


def test_far_out_everything_is_finite():
    for values in (jnp.array([1e6, 0.0, -1e6]), jnp.array([-1e20, 1e20, 1e20])):
        for found in jax.tree.leaves((MAP.forward_and_log_det(values), jax.jacfwd(MAP.forward_and_log_det)(values))):
            assert np.all(np.isfinite(found))
        assert np.all(np.isfinite(jax.jacrev(lambda u: MAP.forward_and_log_det(u)[1])(values)))
    for mapped in (jnp.array([30.0, 1e6, -30.0]), jnp.array([-1e3, 0.0, 1e3])):
        values = MAP.inverse(mapped)
        np.testing.assert_allclose(MAP.forward_and_log_det(values)[0], mapped, rtol=1e-4)
        assert np.all(np.isfinite(jax.jacrev(MAP.inverse)(mapped)))


def test_edges_and_spikes_are_found_and_rows_are_likelier_for_it():
    rng = np.random.default_rng(0)
    rows, fresh = edged(rng, 1_500), edged(rng, 20_000)
    found = fit_marginals(rows)
    np.testing.assert_array_equal(found.columns, COLUMNS)
    assert found.centers.shape == found.widths.shape == (2, 32)
    states, log_dets = jax.vmap(fit_scaling(rows)[0].whiten)(jnp.asarray(fresh, float))
    score = np.mean(norm.logpdf(states).sum(axis=1) + log_dets)
    # Of the entropies: 0.8 log 0.8 + 0.2 log(0.2/16), log 1/2, and that of a normal law.
    truth = 0.8 * np.log(0.8) + 0.2 * np.log(0.2 / 16.0) - np.log(2.0) - 0.5 * np.log(2.0 * np.pi * np.e)
    plain = norm.logpdf((fresh - rows.mean(0)) / rows.std(0)).sum(axis=1).mean() - np.log(rows.std(0)).sum()
    assert truth - 0.5 < score < truth
    assert plain < truth - 2.0


@pytest.mark.parametrize("rows", [MIN_ROWS, 4_000])
def test_normal_columns_and_clusters_stay_as_they_are(rows):
    rng = np.random.default_rng(1)
    assert fit_marginals(rng.normal(size=(rows, 3)) @ rng.normal(size=(3, 3))) is None
    assert fit_marginals(MIXTURE.sample(rng, rows)) is None


@pytest.mark.parametrize("rows", [150, 4_000])
def test_a_single_column_with_two_modes_stays_as_it_is(rows):
    """A mixture represents its two modes better than a map by quantiles, which leaves too much density between them."""
    rng = np.random.default_rng(7)
    modes = np.where(rng.random(rows) < 0.4, rng.normal(1.5, 0.2, rows), rng.normal(4.9, 0.8, rows))
    assert fit_marginals(modes[:, None]) is None
    np.testing.assert_array_equal(fit_marginals(edged(rng, rows)).columns, COLUMNS)


def test_ties_and_constants_stay_as_they_are():
    """A column of ties has no density, and would be a candidate without end."""
    rng = np.random.default_rng(2)
    ties = np.stack([rng.integers(0, 3, 500), np.ones(500), np.arange(500) % 2], axis=1).astype(float)
    assert fit_marginals(ties) is None
    assert fit_marginals(edged(rng, MIN_ROWS - 1)) is None


def test_a_column_with_one_odd_row_does_not_hide_the_edges_of_others():
    """Where that row is held out, the column is constant in the others."""
    rng = np.random.default_rng(6)
    rows = edged(rng, 600)
    np.testing.assert_array_equal(fit_marginals(rows).columns, COLUMNS)
    for value in (0.0, 5.0):
        odd = np.where(np.arange(600) == 17, value + 1.0, value)
        np.testing.assert_array_equal(fit_marginals(np.column_stack([rows, odd])).columns, COLUMNS)


def test_the_whitening_is_that_of_the_transformed_table():
    rng = np.random.default_rng(3)
    events = expit(0.2 * edged(rng, 800))
    with x64():
        scaling, white = fit_scaling(events, constraints.unit_interval)
        *_, edges, _ = scaling.chain.transforms
        np.testing.assert_array_equal(edges.columns, COLUMNS)
        np.testing.assert_allclose(white.mean(0), 0.0, atol=1e-9)
        assert_whitens(scaling, events, white, logit)


def test_units_and_weights():
    rng = np.random.default_rng(4)
    events = edged(rng, 600)
    weights = np.tile([0.0, 2.0], 300) / 600.0
    with x64():
        found, moved = fit_marginals(events), fit_marginals(1e6 + 1e5 * events)
        weighted, repeated = fit_marginals(events, weights), fit_marginals(np.repeat(events[1::2], 2, axis=0))
    np.testing.assert_array_equal(moved.columns, found.columns)
    np.testing.assert_allclose(moved.centers, 1e6 + 1e5 * np.asarray(found.centers), rtol=1e-9)
    np.testing.assert_allclose(moved.widths, 1e5 * np.asarray(found.widths), rtol=1e-6)
    for one, other in zip(jax.tree.leaves(weighted), jax.tree.leaves(repeated), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
