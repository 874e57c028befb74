"""The map between events and whitened states: invertible, with the right log-determinant, in any unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import EPS32, x64

from flowdensity.data.scaling import fit_scaling, standardize
from flowdensity.data.sites import Sites
from flowdensity.data.statistics import FULL_COVARIANCE_LIMIT


def rows(shape: tuple[int, ...], count: int = 200, seed: int = 0) -> np.ndarray:
    """Correlated Gaussian events with unequal scales, shape `(count, *shape)`."""
    rng = np.random.default_rng(seed)
    dim = int(np.prod(shape))
    table = rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)
    return table.reshape(count, *shape)


def sigmoid(u: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-u))


def softmax(u: np.ndarray) -> np.ndarray:
    return np.exp(u) / np.exp(u).sum(-1, keepdims=True)


# name: (support, events on it). All but the simplex keep their dimension.
CASES = {
    "real scalar": (constraints.real, rows(())),
    "real vector": (constraints.real, rows((3,))),
    "real_vector": (constraints.real_vector, rows((3,))),
    "real matrix": (constraints.real, rows((2, 3))),
    "positive scalar": (constraints.positive, np.exp(rows(()))),
    "positive vector": (constraints.positive, np.exp(0.5 * rows((3,)))),
    "positive matrix": (constraints.positive, np.exp(0.5 * rows((2, 2)))),
    "unit interval": (constraints.unit_interval, sigmoid(0.5 * rows((2,)))),
    "interval": (constraints.interval(-2.0, 5.0), -2.0 + 7.0 * sigmoid(0.5 * rows((2,)))),
    "greater than 3": (constraints.greater_than(3.0), 3.0 + np.exp(0.5 * rows((2,)))),
}
SIMPLEX = (constraints.simplex, softmax(0.5 * rows((4,))))


@pytest.mark.parametrize(("support", "events"), [*CASES.values(), SIMPLEX], ids=[*CASES.keys(), "simplex"])
def test_unwhiten_inverts_whiten(support, events):
    with x64():
        scaling, _ = fit_scaling(events, support)
        states = jax.vmap(lambda x: scaling.whiten(x)[0])(jnp.asarray(events))
        back = jax.vmap(scaling.unwhiten)(states)
    assert scaling.event_shape == events.shape[1:]
    assert states.shape == (len(events), scaling.dim)
    # numpyro clips its sigmoids at the float's smallest step from 0 and 1; nothing here comes near.
    np.testing.assert_allclose(back, events, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("support", "events"), CASES.values(), ids=CASES.keys())
def test_log_determinant_is_that_of_the_jacobian(support, events):
    with x64():
        scaling, _ = fit_scaling(events, support)
        for event in jnp.asarray(events[:5]):
            jacobian = jax.jacobian(lambda x: scaling.whiten(x)[0])(event)
            sign, expected = np.linalg.slogdet(np.asarray(jacobian).reshape(scaling.dim, scaling.dim))
            log_det = scaling.whiten(event)[1]
            assert sign == 1.0  # the Cholesky factor and the bijections used here all increase
            assert log_det.shape == ()
            np.testing.assert_allclose(log_det, expected, rtol=1e-10, atol=1e-10)


def test_a_simplex_loses_one_dimension():
    scaling, white = fit_scaling(SIMPLEX[1], SIMPLEX[0])
    assert scaling.dim == 3
    assert white.shape == (200, 3)


@pytest.mark.parametrize(("support", "events"), [*CASES.values(), SIMPLEX], ids=[*CASES.keys(), "simplex"])
def test_the_whitened_table_is_centered_and_is_what_the_map_gives(support, events):
    with x64():
        scaling, white = fit_scaling(events, support)
        states = jax.vmap(lambda x: scaling.whiten(x)[0])(jnp.asarray(events))
    np.testing.assert_allclose(white.mean(0), 0.0, atol=1e-10)
    np.testing.assert_allclose(white, states, atol=1e-8)


def shrunk_covariance(table: np.ndarray) -> tuple[np.ndarray, float]:
    """scikit-learn's Ledoit-Wolf covariance of the standardized columns, back in their units, and its shrinkage."""
    covariance = pytest.importorskip("sklearn.covariance")
    deviation = table.std(0)
    standard = (table - table.mean(0)) / deviation
    shrunk, shrinkage = covariance.ledoit_wolf(standard, assume_centered=True)
    return shrunk * np.outer(deviation, deviation), shrinkage


def test_a_table_leaves_its_support_in_double_precision():
    """The logarithms of 1e6 +- 1 differ by 1e-6, which is one unit in the last place of single precision."""
    table = 1e6 + np.random.default_rng(2).normal(size=500)
    _, white = fit_scaling(table, constraints.positive)
    logs = np.log(table)
    # One part in 1e16 of 13.8, in units of 1e-6.
    np.testing.assert_allclose(white[:, 0], (logs - logs.mean()) / logs.std(), atol=1e-8)


@pytest.mark.parametrize(("count", "dim"), [(8, 5), (50, 20), (400, 5), (30, 60), (20_000, 4)])
def test_covariance_is_shrunk_as_scikit_learn_does(count, dim):
    table = rows((dim,), count, seed=1)
    expected, shrinkage = shrunk_covariance(table)
    with x64():
        scaling, white = fit_scaling(table)
        factor = np.asarray(scaling.scale)
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())

    # The whitened table has covariance I up to the shrinkage: an eigenvalue v of the correlation matrix becomes
    # v/((1 - shrinkage) v + shrinkage).
    plain = np.linalg.eigvalsh(np.corrcoef(table.T))
    np.testing.assert_allclose(
        np.linalg.eigvalsh(white.T @ white / count),
        plain / ((1.0 - shrinkage) * plain + shrinkage),
        atol=1e-8,
    )


def test_many_uncorrelated_rows_are_white_to_within_sampling_error():
    white = fit_scaling(np.random.default_rng(4).normal(size=(20_000, 4)) * [1.0, 10.0, 0.1, 3.0] + 5.0)[1]
    # Each of the ten entries of a sample covariance of N(0, I) has standard error sqrt(2/n) at most.
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=4.5 * np.sqrt(2.0 / 20_000))


def test_collinear_columns_are_whitened():
    table = rows((2,), 100)
    table = np.column_stack([table, table[:, 0] - 2.0 * table[:, 1]])
    scaling, white = fit_scaling(table)
    assert np.all(np.isfinite(white))
    back = jax.vmap(lambda x: scaling.unwhiten(scaling.whiten(x)[0]))(jnp.asarray(table, jnp.float32))
    # The condition number of the factor is at most sqrt(dim / 1e-6), and float32 rounds each of its products.
    tolerance = EPS32 * np.sqrt(3.0 / 1e-6) * np.abs(table).max()
    np.testing.assert_allclose(back, table, atol=tolerance)


UNITS = {"1e6 +- 1e5": (1e6, 1e5), "1e3 +- 1": (1e3, 1.0), "1e-6 +- 1e-7": (1e-6, 1e-7), "0 +- 1e-9": (0.0, 1e-9)}


@pytest.mark.parametrize(("location", "deviation"), UNITS.values(), ids=UNITS.keys())
def test_units_do_not_matter(location, deviation):
    plain = rows((2,), 1000)
    plain = (plain - plain.mean(0)) / plain.std(0)
    events = location + deviation * plain
    scaling, white = fit_scaling(events)
    np.testing.assert_allclose(white, fit_scaling(plain)[1], atol=1e-6)

    states, log_det = jax.vmap(scaling.whiten)(jnp.asarray(events, jnp.float32))
    # An event and the location are each rounded to float32, which the whitener (entries up to a few over the
    # deviation) magnifies; the state itself is rounded too.
    entries = np.abs(np.linalg.inv(np.linalg.cholesky(np.cov(plain.T)))).sum(1)
    rounding = EPS32 * (location / deviation + 4.0) * entries
    assert np.all(np.abs(np.asarray(states) - white) <= rounding)
    expected = -0.5 * np.linalg.slogdet(shrunk_covariance(events)[0])[1]
    np.testing.assert_allclose(log_det, expected, rtol=4.0 * EPS32)

    back = jax.vmap(scaling.unwhiten)(states)
    np.testing.assert_allclose(back, events, atol=8.0 * EPS32 * (location + 10.0 * deviation))


@pytest.mark.parametrize("dim", [FULL_COVARIANCE_LIMIT, FULL_COVARIANCE_LIMIT + 1])
def test_a_wide_table_is_scaled_by_coordinate(dim):
    table = np.random.default_rng(2).normal(size=(60, dim)) * np.linspace(1.0, 5.0, dim) + 3.0
    scaling, white = fit_scaling(table)
    if dim == FULL_COVARIANCE_LIMIT:
        assert scaling.scale.shape == (dim, dim)
    else:
        assert scaling.scale.shape == (dim,)
        np.testing.assert_allclose(white.std(0), 1.0, rtol=1e-12)
        with x64():
            scaling, _ = fit_scaling(table)
            state, log_det = scaling.whiten(jnp.asarray(table[0]))
            np.testing.assert_allclose(state, white[0], rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(log_det, -np.log(table.std(0)).sum(), rtol=1e-12)


def test_contexts_are_standardized_by_coordinate():
    contexts = rows((2, 2), 50)
    scaling, white = standardize(contexts)
    assert scaling.event_shape == (2, 2)
    flat = contexts.reshape(50, 4)
    np.testing.assert_allclose(white, (flat - flat.mean(0)) / flat.std(0), rtol=1e-12)
    with x64():
        scaling, _ = standardize(contexts)
        state, _ = scaling.whiten(jnp.asarray(contexts[3]))
        np.testing.assert_allclose(state, white[3], rtol=1e-10, atol=1e-12)


def test_an_absent_context_whitens_to_nothing():
    scaling, _ = standardize(np.zeros((5, 0)))
    state, log_det = scaling.whiten(jnp.zeros((0,)))
    assert state.shape == (0,)
    assert float(log_det) == 0.0


def test_an_event_far_out_keeps_its_gradient():
    scaling, _ = fit_scaling(np.exp(rows((2,))), constraints.positive)
    for size in (1e-30, 1e-3, 1e3, 1e30):
        state, slope = jax.jvp(lambda x: scaling.whiten(x)[0], (jnp.full(2, size),), (jnp.full(2, size),))
        assert jnp.all(jnp.isfinite(state))
        assert jnp.all(jnp.isfinite(slope))
        assert jnp.any(slope != 0.0)  # x d/dx log x = 1: a relative step is the same step everywhere


def test_the_summary_names_the_transforms():
    """Columns by their names, or by their numbers where the map has others than the event; of many, the first."""
    rng = np.random.default_rng(3)
    plain, long, edged = rng.normal(size=(3, 1000))
    table = np.column_stack([plain, np.exp(long), np.where(edged < 0.8, 0.01 * edged, 5.0 + edged)])
    numbered = "columns: Johnson SU transform of 1, 2; marginal Gaussianization of 2"
    assert fit_scaling(table)[0].summary() == numbered
    sites = Sites(("a", "b c"), ((1,), (2,)))
    named = "columns: Johnson SU transform of 'b c'; marginal Gaussianization of 'b c'"
    assert fit_scaling(table, sites=sites)[0].summary() == named
    assert fit_scaling(table, sites=Sites(("a",), ((4,),)))[0].summary() == numbered
    assert fit_scaling(table[:, :1])[0].summary() == "columns: whitened, none transformed"
    many = "columns: Johnson SU transform of 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert fit_scaling(np.exp(rng.normal(size=(1000, 10))))[0].summary() == many
    student = rng.normal(size=(2000, 5)) / np.sqrt(rng.chisquare(2.0, size=(2000, 1)) / 2.0)
    line = fit_scaling(student)[0].summary()
    assert line.startswith("columns: radial Gaussianization with ")
    assert 1.0 < float(line.split()[-4]) < 4.0
