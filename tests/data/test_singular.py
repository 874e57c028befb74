import warnings

import jax.random as jr
import numpy as np
import pytest
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
    names = {"fd": fd, "key": jr.key(1), "data": data}
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
    named = {"a": rows[:, 0], "b": rows[:, :2]}
    (said,) = warned({"b": rows[:, :2]})
    assert said.endswith("data['b'] = fd.dequantize(key, data['b'], unit=[0, 0.1])")
    named = cured(said, {"b": rows[:, :2]})
    assert not warned(named)


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
