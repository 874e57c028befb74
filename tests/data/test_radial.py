"""Radial Gaussianisation: there and back, the tails it finds, and where it takes the place of maps of each column."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import MIXTURE, assert_whitens, central_difference, x64
from scipy.stats import multivariate_t, norm

from flowdensity.data.radial import FEW, RadialGaussianisation, fit_radial
from flowdensity.data.scaling import fit_scaling, is_radial

DIM, DEGREES = 6, 1.5
CENTRE = np.linspace(-2.0, 3.0, DIM)
ROOT = np.eye(DIM) + 0.3 * np.random.default_rng(9).normal(size=(DIM, DIM))
DIRECTION = ROOT @ np.full(DIM, DIM**-0.5)
MAP = partial(RadialGaussianisation, CENTRE, np.linalg.inv(ROOT))


def heavy(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of Student's t law."""
    mixing = rng.chisquare(DEGREES, size=(rows, 1)) / DEGREES
    return CENTRE + rng.normal(size=(rows, DIM)) @ ROOT.T / np.sqrt(mixing)


@pytest.mark.parametrize("distance", [1e-6, 0.05, 0.2, 3.0, 1e4])
def test_there_and_back(distance):
    """On either side of where the series end, too."""
    with x64():
        here, values = MAP(DEGREES), jnp.asarray(CENTRE + distance * DIRECTION)
        mapped, log_det = here.straighten(values)
        np.testing.assert_allclose(here.bend(mapped) - CENTRE, values - CENTRE, rtol=1e-9, atol=1e-14)
        jacobian = jax.jacfwd(lambda u: here.straighten(u)[0])(values)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-12)
        for back in (jax.jacfwd(here.bend)(mapped), jax.jacrev(here.bend)(mapped)):
            np.testing.assert_allclose(back @ jacobian, np.eye(DIM), atol=1e-9)
        gradient = jax.grad(lambda u: here.straighten(u)[1])(values)
        by_differences = central_difference(lambda u: here.straighten(jnp.asarray(u))[1], values)
        np.testing.assert_allclose(gradient, by_differences, rtol=1e-5, atol=1e-8)


def test_the_centre_is_a_point_like_any_other():
    with x64():
        here = MAP(DEGREES)
        mapped, log_det = here.straighten(jnp.asarray(CENTRE))
        np.testing.assert_allclose(mapped, CENTRE)
        assert log_det == 0.0
        np.testing.assert_allclose(jax.jacrev(lambda u: here.straighten(u)[0])(jnp.asarray(CENTRE)), np.eye(DIM))
        # With log(1 + s)/s = 1 - s/2 + ... the log-determinant is -(D - 2) s/4 - s + ...
        curvature = jax.hessian(lambda u: here.straighten(u)[1])(jnp.asarray(CENTRE))
        expected = -(0.5 * (DIM - 2) + 2.0) / DEGREES * np.linalg.inv(ROOT @ ROOT.T)
        np.testing.assert_allclose(curvature, expected, rtol=1e-9)


def test_a_column_with_one_odd_row_does_not_hide_the_tails_of_others():
    """Where that row is held out, the column is constant in the others."""
    rows = heavy(np.random.default_rng(5), 400)
    assert is_radial(rows)
    for value in (0.0, 5.0):
        assert is_radial(np.column_stack([rows, np.where(np.arange(400) == 17, value + 1.0, value)]))


def test_far_out_everything_is_finite():
    here = MAP(DEGREES)
    for values in (1e6 * jnp.ones(DIM), 1e15 * jnp.asarray(DIRECTION), jnp.asarray(CENTRE)):
        for found in jax.tree.leaves((here.straighten(values), jax.jacfwd(here.straighten)(values))):
            assert np.all(np.isfinite(found))
        assert np.all(np.isfinite(jax.jacrev(lambda u: here.straighten(u)[1])(values)))
    # Rows of a hundred normal dimensions, six deviations out, come back in single precision.
    _, _, degrees = fit_radial(np.random.default_rng(0).standard_cauchy(size=(500, 1)) * np.ones((1, 100)))
    wide = RadialGaussianisation(np.zeros(100), np.eye(100), degrees)
    mapped = jnp.full(100, 1.6)
    np.testing.assert_allclose(wide.straighten(wide.bend(mapped))[0], mapped, rtol=1e-4)


def test_many_degrees_of_freedom_are_none():
    values = jnp.asarray(DIRECTION)
    mapped, log_det = MAP(1e8).straighten(values)
    np.testing.assert_allclose(mapped, values, rtol=1e-5)
    assert abs(log_det) < 1e-5


def test_rows_are_next_to_as_likely_as_under_their_own_law():
    rng = np.random.default_rng(1)
    rows, fresh = heavy(rng, 2_000), heavy(rng, 20_000)
    scaling, _ = fit_scaling(rows)
    assert isinstance(scaling.tails, RadialGaussianisation)
    assert scaling.edges is None
    states, log_dets = jax.vmap(scaling.whiten)(jnp.asarray(fresh, float))
    law = multivariate_t(CENTRE, ROOT @ ROOT.T, DEGREES)
    gap = np.asarray(norm.logpdf(states).sum(1) + log_dets) - law.logpdf(fresh)
    error = gap.std() / np.sqrt(len(gap))
    # The family is not quite that of t laws.
    assert -0.1 < gap.mean() < 4.0 * error


@pytest.mark.parametrize("rows", [FEW, 4_000])
def test_normal_rows_and_clusters_and_tails_of_one_column_stay_out_of_it(rows):
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(rows, DIM)) @ ROOT.T
    for table in (normal, MIXTURE.sample(rng, rows), np.where(np.arange(DIM), normal, np.sinh(2.0 * normal))):
        assert not isinstance(fit_scaling(table)[0].tails, RadialGaussianisation)


def test_a_spike_has_no_radius():
    rng = np.random.default_rng(3)
    rows = heavy(rng, 1_000)
    rows[::2] = CENTRE
    assert fit_radial(rows) is None
    assert fit_radial(np.tile(CENTRE, (200, 1))) is None
    assert fit_radial(heavy(rng, FEW - 1)) is None
    assert fit_radial(np.column_stack([heavy(rng, 500), np.ones(500)])) is None


def test_a_column_that_varies_in_next_to_no_row_has_no_radius_either():
    """It is constant in the rows that are looked at."""
    rows = np.column_stack([heavy(np.random.default_rng(6), 50_000), np.zeros(50_000)])
    rows[17, -1] = 1.0
    scaling, white = fit_scaling(rows)
    assert not isinstance(scaling.tails, RadialGaussianisation)
    assert np.all(np.isfinite(white))


def test_the_whitening_is_of_what_is_straight():
    rng = np.random.default_rng(4)
    events = np.exp(0.1 * heavy(rng, 2_000))
    with x64():
        scaling, white = fit_scaling(events, constraints.positive)
        assert isinstance(scaling.tails, RadialGaussianisation)
        np.testing.assert_allclose(white.mean(0), 0.0, atol=1e-9)
        np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(DIM), atol=0.02)
        assert_whitens(scaling, events, white, np.log)


def test_units_and_weights():
    rng = np.random.default_rng(5)
    events = heavy(rng, 600)
    centre, whitener, degrees = fit_radial(events)
    stretch = np.diag(np.logspace(-3.0, 5.0, DIM))
    again, narrowed, same = fit_radial(1e3 + events @ stretch)
    np.testing.assert_allclose(again, 1e3 + stretch @ centre, rtol=1e-6)
    np.testing.assert_allclose(narrowed @ stretch, whitener, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(same, degrees, rtol=1e-4)
    weights = np.tile([0.0, 2.0], 300) / 600.0
    for one, other in zip(fit_radial(events, weights), fit_radial(np.repeat(events[1::2], 2, axis=0)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
