"""Encoders of contexts with many rows, and the map from contexts to their outputs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import flowdensity as fd
from flowdensity.data.tables import context_table
from flowdensity.models.encoder_checks import check_encoder
from flowdensity.models.encoders import moments
from flowdensity.models.encoding import encoded_contexts, new_encoding

ENCODERS = {"set": fd.encoders.DeepSet(jr.key(0), 2), "series": fd.encoders.Sequence(jr.key(1), 2)}
encoders = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
ROWS = np.random.default_rng(0).normal(size=(20, 2)) * [1.0, 3.0] + [0.5, 0.0]


def contexts(count: int = 50, rows: int = 12) -> np.ndarray:
    """Contexts of which some rows at the end are absent."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(count, rows, 2)) + rng.normal(size=(count, 1, 2))
    values[np.arange(rows) >= rng.integers(3, rows + 1, count)[:, None]] = np.nan
    return values


@encoders
@pytest.mark.parametrize("which", ["__call__", "summaries"])
def test_absent_rows_do_not_matter(encoder, which):
    apply = getattr(encoder, which)
    padded = jnp.concatenate([jnp.asarray(ROWS), 7.0 * jnp.ones((9, 2))])
    alone = apply(jnp.asarray(ROWS), jnp.ones(20, bool))
    np.testing.assert_allclose(
        apply(jnp.where(jnp.arange(29)[:, None] < 20, padded, 0.0), jnp.arange(29) < 20), alone, atol=1e-5
    )


def test_a_set_has_no_order_and_a_series_has_one():
    order = np.random.default_rng(2).permutation(20)
    present = jnp.ones(20, bool)
    for name, encoder in ENCODERS.items():
        straight, mixed = (encoder(jnp.asarray(rows), present) for rows in (ROWS, ROWS[order]))
        assert np.allclose(straight, mixed, atol=1e-5) == (name == "set")


def test_the_moments_are_those_of_scipy():
    found = moments(jnp.asarray(ROWS, float), jnp.ones(20, bool))
    mean, log_sd, skewness, kurtosis = np.asarray(found[:8]).reshape(4, 2)
    np.testing.assert_allclose(mean, ROWS.mean(0), rtol=1e-4)
    np.testing.assert_allclose(log_sd, np.log(ROWS.std(0)), atol=1e-4)
    np.testing.assert_allclose(np.sinh(skewness), stats.skew(ROWS), atol=1e-3)
    np.testing.assert_allclose(np.sinh(kurtosis), stats.kurtosis(ROWS, fisher=False), rtol=1e-3)
    np.testing.assert_allclose(found[8], np.corrcoef(ROWS.T)[0, 1], atol=1e-4)
    np.testing.assert_allclose(found[9], np.log(20), rtol=1e-5)


def test_the_autocorrelations_are_those_of_the_series():
    series = np.cumsum(ROWS, axis=0)
    found = np.asarray(ENCODERS["series"].summaries(jnp.asarray(series, float), jnp.ones(20, bool)))[-8:].reshape(4, 2)
    centered = series - series.mean(0)
    for lag in range(1, 5):
        expected = np.sum(centered[lag:] * centered[:-lag], axis=0) / np.sum(centered**2, axis=0)
        np.testing.assert_allclose(found[lag - 1], expected, rtol=1e-4)


@encoders
def test_summaries_and_outputs_are_standardized(encoder):
    table = context_table("fit_flow", contexts(), 50, absent=True)
    encoding, inputs = new_encoding(table, check_encoder("fit_flow", encoder, table))
    encoded = np.asarray(encoded_contexts(encoding, jnp.asarray(inputs, float)))
    assert encoded.shape == (50, encoding.dim)
    np.testing.assert_allclose(encoded.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(encoded.std(0), 1.0, atol=1e-3)
    whitened = jax.vmap(lambda c: encoding.whiten(c)[0])(jnp.asarray(table.rows, float))
    np.testing.assert_allclose(whitened, encoded, atol=2e-4)
    np.testing.assert_array_equal(encoding.fewest, [np.min(np.sum(~np.isnan(table.rows[..., 0]), axis=1))])


def test_sites_without_an_encoder_are_summaries_themselves():
    named = {"y": contexts(), "x": np.random.default_rng(3).normal(size=(50, 3))}
    table = context_table("fit_flow", named, 50, absent=True)
    encoding, inputs = new_encoding(table, check_encoder("fit_flow", {"y": ENCODERS["set"]}, table))
    values = (named["x"] - named["x"].mean(0)) / named["x"].std(0)
    np.testing.assert_allclose(inputs[:, encoding.summary_dim - 3 : encoding.summary_dim], values, atol=1e-4)


def test_the_reach_changes_nothing_within_it():
    table = context_table("fit_flow", contexts(), 50, absent=True)
    encoding, _ = new_encoding(table, check_encoder("fit_flow", ENCODERS["set"], table))
    rows = jnp.asarray(table.rows, float)
    free = jax.vmap(encoding.encoded)(rows)
    radii = np.linalg.norm(free, axis=1)
    near = eqx.tree_at(lambda e: e.reach, encoding, jnp.asarray(np.median(radii)))
    pulled = jax.vmap(lambda c: near.whiten(c)[0])(rows)
    inside = radii < np.median(radii)
    np.testing.assert_array_equal(pulled[inside], free[inside])
    np.testing.assert_allclose(np.linalg.norm(pulled[~inside], axis=1), np.median(radii), rtol=1e-5)


def test_more_rows_than_in_the_fit():
    """A context padded to more rows than those of the fit has the same encoding."""
    named = {"y": contexts()}
    table = context_table("fit_flow", named, 50, absent=True)
    encoding, _ = new_encoding(table, check_encoder("fit_flow", ENCODERS["set"], table))
    wider = encoding.with_rows("y", 20)
    padded = np.concatenate([named["y"][0], np.full((8, 2), np.nan)]).reshape(-1)
    np.testing.assert_allclose(
        wider.whiten(jnp.asarray(padded, float))[0], encoding.whiten(jnp.asarray(table.rows[0], float))[0], atol=1e-5
    )


BAD = {
    "a function": (lambda x: x, TypeError, "as an equinox module"),
    "other columns": (fd.encoders.DeepSet(jr.key(0), 3), ValueError, "rows have 2 columns; got one for 3"),
    "an unknown name": ({"z": ENCODERS["set"]}, ValueError, "names of the sites"),
    "one encoder for two sites": (ENCODERS["set"], ValueError, "as a dict"),
    "no encoder for absent rows": ({"x": fd.encoders.DeepSet(jr.key(0), 1)}, ValueError, "an encoder for the site 'y'"),
    "a module that takes no absent rows": (
        {"y": eqx.nn.Linear(2, 2, key=jr.key(0))},
        ValueError,
        "without absent rows",
    ),
}


@pytest.mark.parametrize(("encoder", "error", "message"), BAD.values(), ids=BAD)
def test_bad_encoders(encoder, error, message):
    named = (
        {"y": contexts()} if "columns" in message or "module" in message else {"y": contexts(), "x": np.ones((50, 3))}
    )
    with pytest.raises(error, match=message) as caught:
        fd.fit_flow(jr.key(0), np.random.default_rng(0).normal(size=(50, 1)), context=named, encoder=encoder)
    assert "Fix:" in str(caught.value)


def test_rows_that_are_absent_in_part_or_between_others():
    for change, message in (
        (lambda v: v[0].__setitem__((1, 0), np.nan), "with finite values"),
        (lambda v: v[0].__setitem__(0, np.nan), "after the others"),
    ):
        values = contexts()
        change(values)
        with pytest.raises(ValueError, match=message):
            fd.fit_flow(
                jr.key(0), np.random.default_rng(0).normal(size=(50, 1)), context=values, encoder=ENCODERS["set"]
            )


def test_an_encoder_needs_a_context():
    with pytest.raises(ValueError, match="expected a `context`"):
        fd.fit_flow(jr.key(0), np.random.default_rng(0).normal(size=(50, 1)), encoder=ENCODERS["set"])
