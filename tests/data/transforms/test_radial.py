"""Radial Gaussianization: its map, the tails it finds, and where it replaces transforms of single columns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import MIXTURE, assert_whitens, central_difference, x64
from scipy.stats import multivariate_t, norm

from flowdensity.data.scaling import Scaling, fit_scaling
from flowdensity.data.transforms.candidates import is_radial
from flowdensity.data.transforms.radial import MIN_ROWS, RadialGaussianization, fit_radial

DIM, DEGREES = 6, 1.5
CENTER = np.linspace(-2.0, 3.0, DIM)
ROOT = np.eye(DIM) + 0.3 * np.random.default_rng(9).normal(size=(DIM, DIM))
DIRECTION = ROOT @ np.full(DIM, DIM**-0.5)
MAP = partial(RadialGaussianization, CENTER, np.linalg.inv(ROOT))


def heavy(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows of Student's t law."""
    mixing = rng.chisquare(DEGREES, size=(rows, 1)) / DEGREES
    return CENTER + rng.normal(size=(rows, DIM)) @ ROOT.T / np.sqrt(mixing)


def transforms_of(scaling: Scaling) -> list[type]:
    """Classes of the transforms between the support and the whitening."""
    return [type(transform) for transform in scaling.chain.transforms[1:-1]]


@pytest.mark.parametrize("distance", [1e-6, 0.05, 0.2, 3.0, 1e4])
def test_there_and_back(distance):
    """On either side of where the series end, too."""
    with x64():
        here, values = MAP(DEGREES), jnp.asarray(CENTER + distance * DIRECTION)
        mapped, log_det = here.forward_and_log_det(values)
        np.testing.assert_allclose(here.inverse(mapped) - CENTER, values - CENTER, rtol=1e-9, atol=1e-14)
        jacobian = jax.jacfwd(lambda u: here.forward_and_log_det(u)[0])(values)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-12)
        for back in (jax.jacfwd(here.inverse)(mapped), jax.jacrev(here.inverse)(mapped)):
            np.testing.assert_allclose(back @ jacobian, np.eye(DIM), atol=1e-9)
        gradient = jax.grad(lambda u: here.forward_and_log_det(u)[1])(values)
        by_differences = central_difference(lambda u: here.forward_and_log_det(jnp.asarray(u))[1], values)
        np.testing.assert_allclose(gradient, by_differences, rtol=1e-5, atol=1e-8)


def test_the_center_is_a_point_like_any_other():
    with x64():
        here = MAP(DEGREES)
        mapped, log_det = here.forward_and_log_det(jnp.asarray(CENTER))
        np.testing.assert_allclose(mapped, CENTER)
        assert log_det == 0.0
        np.testing.assert_allclose(
            jax.jacrev(lambda u: here.forward_and_log_det(u)[0])(jnp.asarray(CENTER)), np.eye(DIM)
        )
        # With log(1 + s)/s = 1 - s/2 + ... the log-determinant is -(D - 2) s/4 - s + ...
        curvature = jax.hessian(lambda u: here.forward_and_log_det(u)[1])(jnp.asarray(CENTER))
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
    for values in (1e6 * jnp.ones(DIM), 1e15 * jnp.asarray(DIRECTION), jnp.asarray(CENTER)):
        for found in jax.tree.leaves((here.forward_and_log_det(values), jax.jacfwd(here.forward_and_log_det)(values))):
            assert np.all(np.isfinite(found))
        assert np.all(np.isfinite(jax.jacrev(lambda u: here.forward_and_log_det(u)[1])(values)))
    # Rows of a hundred normal dimensions, six deviations out, come back in single precision.
    degrees = fit_radial(np.random.default_rng(0).standard_cauchy(size=(500, 1)) * np.ones((1, 100))).degrees
    wide = RadialGaussianization(np.zeros(100), np.eye(100), degrees)
    mapped = jnp.full(100, 1.6)
    np.testing.assert_allclose(wide.forward_and_log_det(wide.inverse(mapped))[0], mapped, rtol=1e-4)


def test_many_degrees_of_freedom_are_none():
    values = jnp.asarray(DIRECTION)
    mapped, log_det = MAP(1e8).forward_and_log_det(values)
    np.testing.assert_allclose(mapped, values, rtol=1e-5)
    assert abs(log_det) < 1e-5


def test_rows_are_next_to_as_likely_as_under_their_own_law():
    rng = np.random.default_rng(1)
    rows, fresh = heavy(rng, 2_000), heavy(rng, 20_000)
    scaling, _ = fit_scaling(rows)
    assert transforms_of(scaling) == [RadialGaussianization]
    states, log_dets = jax.vmap(scaling.whiten)(jnp.asarray(fresh, float))
    law = multivariate_t(CENTER, ROOT @ ROOT.T, DEGREES)
    gap = np.asarray(norm.logpdf(states).sum(1) + log_dets) - law.logpdf(fresh)
    error = gap.std() / np.sqrt(len(gap))
    # The family is not quite that of t laws.
    assert -0.1 < gap.mean() < 4.0 * error


@pytest.mark.parametrize("rows", [MIN_ROWS, 4_000])
def test_normal_rows_and_clusters_and_tails_of_one_column_stay_out_of_it(rows):
    rng = np.random.default_rng(2)
    normal = rng.normal(size=(rows, DIM)) @ ROOT.T
    for table in (normal, MIXTURE.sample(rng, rows), np.where(np.arange(DIM), normal, np.sinh(2.0 * normal))):
        assert RadialGaussianization not in transforms_of(fit_scaling(table)[0])


def test_components_of_different_widths_are_not_long_tails():
    """The widest component looks like a tail under one Gaussian, but a mixture with narrow components fits the rows better."""
    rng = np.random.default_rng(7)
    component = rng.integers(3, size=(2_000, 1))
    root = np.linalg.cholesky(0.9 ** np.abs(np.subtract.outer(np.arange(8), np.arange(8))))
    rows = (
        np.array([-2.0, 0.0, 2.0])[component]
        + np.array([0.25, 0.5, 1.0])[component] * rng.normal(size=(2_000, 8)) @ root.T
    )
    assert fit_radial(rows) is not None
    assert not is_radial(rows)


def test_a_spike_has_no_radius():
    rng = np.random.default_rng(3)
    rows = heavy(rng, 1_000)
    rows[::2] = CENTER
    assert fit_radial(rows) is None
    assert fit_radial(np.tile(CENTER, (200, 1))) is None
    assert fit_radial(heavy(rng, MIN_ROWS - 1)) is None
    assert fit_radial(np.column_stack([heavy(rng, 500), np.ones(500)])) is None


def test_a_column_that_varies_in_next_to_no_row_has_no_radius_either():
    """It is constant in the rows that are looked at."""
    rows = np.column_stack([heavy(np.random.default_rng(6), 50_000), np.zeros(50_000)])
    rows[17, -1] = 1.0
    scaling, white = fit_scaling(rows)
    assert RadialGaussianization not in transforms_of(scaling)
    assert np.all(np.isfinite(white))


def test_the_whitening_is_that_of_the_transformed_table():
    rng = np.random.default_rng(4)
    events = np.exp(0.1 * heavy(rng, 2_000))
    with x64():
        scaling, white = fit_scaling(events, constraints.positive)
        assert transforms_of(scaling) == [RadialGaussianization]
        np.testing.assert_allclose(white.mean(0), 0.0, atol=1e-9)
        np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(DIM), atol=0.02)
        assert_whitens(scaling, events, white, np.log)


def test_units_and_weights():
    rng = np.random.default_rng(5)
    events = heavy(rng, 600)
    stretch = np.diag(np.logspace(-3.0, 5.0, DIM))
    weights = np.tile([0.0, 2.0], 300) / 600.0
    with x64():
        found, moved = fit_radial(events), fit_radial(1e3 + events @ stretch)
        weighted, repeated = fit_radial(events, weights), fit_radial(np.repeat(events[1::2], 2, axis=0))
    np.testing.assert_allclose(moved.center, 1e3 + stretch @ np.asarray(found.center), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(moved.whitener) @ stretch, found.whitener, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved.degrees, found.degrees, rtol=1e-4)
    for one, other in zip(jax.tree.leaves(weighted), jax.tree.leaves(repeated), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
