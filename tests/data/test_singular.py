import warnings

import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints
from sklearn import datasets

import flowdensity as fd
from flowdensity.data.singular import dependent, ties, warn_where_singular
from flowdensity.data.tables import event_table
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


def warned(data, support=None):
    """What is said of a table."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_where_singular("fit_flow", event_table("fit_flow", data, support))
    return [str(each.message) for each in caught]


def test_ties_are_named_with_their_remedy():
    rows = np.random.default_rng(0).normal(size=(300, 2))
    rows[:, 1] = np.round(rows[:, 1], 1)
    (said,) = warned(rows)
    assert said.startswith("fit_flow expected columns of `data` with few ties; got data[:, 1], in which ")
    assert said.endswith("Fix: data[:, 1] = fd.dequantise(key, data[:, 1], unit=0.1)")
    (said,) = warned({"a": rows[:, :1], "b": rows[:, 1]})
    assert said.endswith("Fix: data['b'] = fd.dequantise(key, data['b'], unit=0.1)")
    assert not warned(fd.dequantise(jr.key(1), rows, unit=[0.0, 0.1]))
    rows[::20, 0] = 0.0
    (said,) = warned(rows[:, :1])
    assert said.endswith(
        "5.0% of the rows are 0. A density learned from them grows without bound there. "
        "Fix: leave it out, or model the rows that have this value apart"
    )


def test_columns_that_follow_from_others_are_found():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3)) * [1.0, 1e3, 1.0]
    assert dependent(rows) is None
    rows[:, 2] = 1e-3 * rows[:, 1] - 0.1 * rows[:, 0] + 7.0
    assert dependent(rows) in (1, 2)
    (said,) = warned(rows)
    assert "add up to a constant, data[:, " in said
    near = rows + [0.0, 0.0, 1.0] * rng.normal(size=(300, 1)) * 1e-2
    assert dependent(near) is None, "a hundredth of a deviation is enough"
    assert dependent(rows[:3]) is None, "three rows are on a plane whatever they are"


def test_a_simplex_is_no_plane_to_its_own_support():
    shares = np.random.default_rng(0).dirichlet([2.0, 3.0, 4.0], 300)
    assert not warned(shares, constraints.simplex)
    (said,) = warned(shares)
    assert "add up to a constant" in said


def test_a_fit_says_so_before_any_work():
    rows = np.round(np.random.default_rng(0).normal(size=(300, 1)), 1)
    with pytest.warns(UserWarning, match="fit_flow expected columns of `data` with few ties"):
        prepare("fit_flow", jr.key(0), rows, None, None, None, None, None, None, None)
