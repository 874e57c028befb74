import warnings

import jax
import jax.random as jr
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpyro.distributions import constraints
from sklearn import datasets

import flowdensity as fd
from flowdensity.data.containers import read
from flowdensity.data.singular import ties
from flowdensity.data.tables import context_table, event_table
from flowdensity.data.warned import warn_about_tables
from flowdensity.training.prepare import prepare


def test_ties_of_real_tables_are_found_with_what_they_are_rounded_to():
    assert [(t.column, t.unit) for t in ties(datasets.load_iris().data)] == [(c, 0.1) for c in range(4)]
    units = {t.column: t.unit for t in ties(datasets.load_wine().data)}
    # Of the seventh column no value is in more than one row in fifty, and proline is about as fine.
    assert units == dict.fromkeys((0, 1, 2, 5, 7, 8, 10), 0.01) | {3: 0.1, 4: 1.0}
    units = {t.column: t.unit for t in ties(datasets.load_diabetes(scaled=False).data)}
    assert units[1] is None, "the sex is no number of a scale"
    assert units[0] == units[3] == units[4] == 1.0
    # In 13 of 569 tumours there is no concavity; all else has four or five digits.
    found = ties(datasets.load_breast_cancer().data)
    assert {(t.value, t.unit) for t in found} == {(0.0, None)}
    assert [t.column for t in found] == [6, 7, 16, 17, 26, 27]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_has_no_ties_is_left_alone(kind):
    rng = np.random.default_rng(0)
    assert not ties(rng.normal(size=(5000, 3)).astype(kind))
    assert not ties(np.round(rng.normal(size=(5000, 1)), 2).astype(kind)), (
        "cells of a hundredth of a deviation are fine"
    )
    assert not ties(np.zeros((3, 2)))


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("place", [0.0, 100.0])
def test_an_atom_is_not_the_work_of_rounding(share, place):
    rng = np.random.default_rng(1)
    column = np.where(rng.random(1000) < share, place, rng.normal(place, 1.0, 1000))[:, None]
    (found,) = ties(column)
    assert (found.value, found.unit) == (place, None)
    (found,) = ties(np.maximum(rng.normal(100.0, 15.0, (2000, 1)), 90.0))
    assert (found.value, found.unit) == (90.0, None), "censored"


def test_ties_are_found_in_whatever_order():
    rng = np.random.default_rng(2)
    for start in range(4):
        column = rng.normal(size=(4000, 1))
        column[start::4] = 0.0
        (found,) = ties(column)
        assert abs(found.share - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 2000)


def warned(data, support=None, contexts=None):
    """What is said of a table."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handed = [read("fit_flow", "data", data)] + (
            [] if contexts is None else [read("fit_flow", "context", contexts)]
        )
        table = event_table("fit_flow", handed[0], support)
        warn_about_tables("fit_flow", table, context_table("fit_flow", contexts, len(table.rows)), handed)
    return [str(each.message) for each in caught]


def cured(said, data):
    """The table after the line of code that the warning ends in."""
    names = {"fd": fd, "jax": jax, "numpy": np, "key": jr.key(1), "data": data}
    exec(said.rpartition("Fix: ")[2], names)
    return names["data"]


def test_the_remedy_for_ties_is_a_line_that_works():
    rows = np.random.default_rng(0).normal(size=(300, 3))
    rows[:, 1:] = np.round(rows[:, 1:], 1)
    (said,) = warned(rows)
    assert said.startswith("fit_flow expected columns of `data` with few ties; got data[:, ")
    assert ", and also ties in data[:, " in said
    assert said.endswith("Fix: data = fd.dequantize(key, data, unit=[0, 0.1, 0.1])")
    spread = cured(said, rows)
    assert not warned(spread)
    assert abs(np.corrcoef((spread - rows)[:, 1:].T)[0, 1]) < 0.3, "each column has noise of its own"
    counts = np.random.default_rng(0).poisson(3.0, 300)
    (said,) = warned(counts)
    assert not warned(cured(said, counts))
    named = {"a": rows[:, 2], "b": rows[:, :2]}
    (said,) = warned(named)
    assert said.endswith("Fix: data = fd.dequantize(key, data, unit={'a': 0.1, 'b': [0, 0.1]})")
    assert not warned(cured(said, named))


def as_dict(table):
    return {name: table[name].to_numpy() for name in table}


def as_dataset(table):
    return xr.Dataset({name: (("draw",), table[name].to_numpy()) for name in table})


@pytest.mark.parametrize("kind", [pd.DataFrame.to_numpy, pd.DataFrame.copy, as_dict, as_dataset])
@pytest.mark.parametrize("name", ["iris", "wine", "diabetes"])
def test_all_rounded_columns_of_a_table_are_spread_in_one_go(name, kind):
    """In each container, and for columns that were standardized, or of which the logarithm was taken."""
    table = getattr(datasets, f"load_{name}")(as_frame=True).data.drop(columns="sex", errors="ignore")
    data = kind(table)
    (said,) = (each for each in warned(data) if "few ties" in each)
    spread = cured(said, data)
    assert not [each for each in warned(spread) if "few ties" in each]
    assert isinstance(spread, dict if kind is as_dataset else type(data))
    moved = np.abs(pd.DataFrame(spread).to_numpy() - table.to_numpy())
    assert np.all(moved <= 0.5 * np.ptp(table.to_numpy(), axis=0)), "no row has gone, or has gone far"


def test_the_units_of_many_columns_are_set_by_their_numbers():
    rows = np.random.default_rng(0).normal(size=(300, 2, 7))
    rows[:, 1, :5] = np.round(rows[:, 1, :5], 1)
    rows[:, 0, 2] = np.round(2.0 * rows[:, 0, 2])
    (said,) = warned(rows)
    assert not warned(cured(said, rows))


def test_logarithms_of_rounded_values_are_spread_between_their_neighbors():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=500), "b": np.log(rng.integers(20, 80, 500))})
    (said,) = warned(table)
    spread = cured(said, table)
    assert not warned(spread)
    pd.testing.assert_series_equal(spread["a"], table["a"])
    moved = np.exp(spread["b"]) - np.exp(table["b"])
    assert np.max(np.abs(moved)) < 0.52, "the midpoint of two logarithms is nearly the logarithm of the midpoint"
    assert abs(moved.var() - 1.0 / 12.0) < 4.5 / np.sqrt(180.0 * len(moved))


def test_no_ties_are_left_in_the_cells_at_the_ends():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, 2000)
    table = np.stack([rng.normal(size=2000), np.log1p(counts)], axis=1)
    (said,) = warned(table)
    spread = cured(said, table)
    assert not warned(spread)
    spread = spread[:, 1]
    assert len(np.unique(spread)) > 0.99 * len(counts)
    # The lowest cell reaches as far below log(1) as above it, up to the midpoint of log(1) and log(2).
    assert np.max(np.abs(spread[counts == 0])) <= 0.5 * np.log(2.0)


def test_a_category_is_dropped_rather_than_one_of_its_values():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=300), "sex": rng.integers(0, 2, 300)})
    (said,) = warned(table)
    assert "pass it as `context`" in said
    assert said.endswith("Fix: data = data.drop(columns='sex')")
    assert list(cured(said, table)) == ["a"]
    (said,) = warned(table.to_numpy())
    assert cured(said, table.to_numpy()).shape == (300, 1)


def test_a_value_again_and_again_has_no_line_of_code():
    rows = np.random.default_rng(0).normal(size=(300, 1))
    rows[::20] = 0.0
    (said,) = warned(rows)
    assert "data[:, 0], in which 5.0% of the rows are 0" in said
    assert "Model a special value, such as 0 for 'none', separately" in said
    assert not warned(cured(said, rows))


def test_repeated_rows_are_weighed_instead():
    distinct = np.random.default_rng(0).normal(size=(100, 2))
    data = np.repeat(distinct, 10, axis=0)
    (said,) = warned(data)
    assert "got 100 distinct rows among 1000" in said
    rows, counts = np.unique(data, axis=0, return_counts=True)
    assert not warned(rows)
    np.testing.assert_array_equal(counts, 10)


def test_several_simulations_of_each_parameter_are_no_repeated_rows():
    rng = np.random.default_rng(0)
    parameters, simulations = np.repeat(rng.normal(size=(100, 2)), 5, axis=0), rng.normal(size=(500, 3))
    assert not warned(parameters, contexts=simulations)
    (said,) = warned(np.repeat(parameters, 5, axis=0), contexts=np.repeat(simulations, 5, axis=0))
    assert "got 500 distinct rows among 2500" in said
    assert "weights = numpy.bincount(" in said


def test_columns_that_follow_from_others_are_found():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3)) * [1.0, 1e3, 1.0]
    assert not warned(rows)
    rows[:, 2] = 1e-3 * rows[:, 1] - 0.1 * rows[:, 0] + 7.0
    (said,) = warned(rows)
    assert "linearly independent columns in `data`; got linearly dependent columns, including data[:, " in said
    assert not warned(rows + [0.0, 0.0, 1e-2] * rng.normal(size=(300, 1))), "a hundredth of a deviation is enough"
    assert not warned(rows[:4]), "few rows are on a plane whatever they are"
    parts = rng.gamma(2.0, size=(300, 2))
    (said,) = warned(np.column_stack([parts, parts.sum(1)]), constraints.positive)
    assert "linearly independent" in said, "of what was recorded, if not of its logarithms"


def test_a_simplex_is_no_plane_to_its_own_support():
    shares = np.random.default_rng(0).dirichlet([2.0, 3.0, 4.0], 300)
    assert not warned(shares, constraints.simplex)
    (said,) = warned(shares)
    assert "linearly independent" in said
    few = np.random.default_rng(0).multinomial(10, [0.2, 0.3, 0.5], 300) / 10.0
    few = few[(few > 0.0).all(1)]
    (said,) = warned(few[np.unique(few, axis=0, return_index=True)[1]], constraints.simplex)
    assert "Fix: data = data[" in said, "noise would leave the simplex"


def test_a_fit_says_so_before_any_work():
    rows = np.round(np.random.default_rng(0).normal(size=(300, 2)), 1)
    with pytest.warns(UserWarning, match="fit_flow expected columns of `data` with few ties"):
        prepare("fit_flow", jr.key(0), rows, None, None, None, None)
