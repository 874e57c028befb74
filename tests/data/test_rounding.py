import jax.random as jr
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import flowdensity as fd


def test_rounded_values_are_spread_over_their_own_cells():
    values = np.random.default_rng(0).integers(-9, 9, (2000, 3, 2)) * 0.25
    left = (fd.dequantize(jr.key(0), values, unit=0.25) - values) / 0.25
    assert np.all(np.abs(left) <= 0.5)
    assert abs(left.mean()) < 4.5 / np.sqrt(12.0 * left.size)
    assert abs(left.var() - 1.0 / 12.0) < 4.5 / np.sqrt(180.0 * left.size)


def test_each_column_has_its_own_unit():
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.integers(0, 9, 500), rng.normal(size=500), 10.0 * rng.integers(0, 9, 500)])
    moved = fd.dequantize(jr.key(0), values, unit=[1.0, 0.0, 10.0]) - values
    np.testing.assert_array_equal(moved[:, 1], 0.0)
    np.testing.assert_allclose(np.ptp(moved, axis=0), [1.0, 0.0, 10.0], rtol=0.03)


@pytest.mark.parametrize("shift", [0.5, np.pi])
def test_cells_are_centered_on_values_that_were_shifted(shift):
    """Such as ages, which are rounded down, or columns that were standardized."""
    values = np.random.default_rng(0).integers(20, 80, 500) + shift
    left = fd.dequantize(jr.key(0), values) - values
    assert np.all(np.abs(left) <= 0.5)
    assert np.ptp(left) > 0.95


ROWS = np.column_stack([np.arange(6.0), np.linspace(0.0, 1.0, 6) ** 2])
LABELS = pd.Index(list("uvwxyz"), name="patient")
SPREAD = fd.dequantize(jr.key(0), ROWS, unit=[1.0, 0.0])


def test_a_table_comes_back_as_a_table():
    table = pd.DataFrame(ROWS, columns=["age", 7], index=LABELS)
    for unit in ([1.0, 0.0], {"age": 1.0}, {"age": 1, 7: 0}):
        spread = fd.dequantize(jr.key(0), table, unit)
        pd.testing.assert_frame_equal(spread, pd.DataFrame(SPREAD, columns=table.columns, index=LABELS))
    pd.testing.assert_frame_equal(table, pd.DataFrame(ROWS, columns=table.columns, index=LABELS))
    ages = fd.dequantize(jr.key(0), table["age"])
    assert (ages.name, list(ages.index)) == ("age", list(LABELS))


def test_a_dict_comes_back_as_a_dict():
    data = {"age": ROWS[:, 0].astype(int), "both": ROWS}
    spread = fd.dequantize(jr.key(0), data, {"age": 1.0, "both": [1.0, 0.0]})
    assert {name: (type(each), each.shape) for name, each in spread.items()} == {
        "age": (np.ndarray, (6,)),
        "both": (np.ndarray, (6, 2)),
    }
    moved = spread["both"] - ROWS
    assert np.all(moved[:, 1] == 0.0)
    assert np.all((np.abs(moved[:, 0]) <= 0.5) & (moved[:, 0] != spread["age"] - ROWS[:, 0]))


def test_arrays_of_xarray_keep_their_dimensions_and_draws_become_rows():
    image = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("x", "y"))
    assert fd.dequantize(jr.key(0), image).dims == ("x", "y")
    draws = xr.Dataset({"a": (("chain", "draw"), np.arange(6.0).reshape(2, 3))})
    assert fd.dequantize(jr.key(0), draws)["a"].shape == (6,)


def test_bits_of_a_uniform_law():
    """256 levels, equally likely, cost eight bits in whatever units they are; half of them, one bit less."""
    np.testing.assert_allclose(fd.bits_per_dimension(-5.0 * np.log(256.0), 5), 8.0)
    np.testing.assert_allclose(fd.bits_per_dimension(np.zeros(3), 5, unit=1 / 256), np.full(3, 8.0))
    np.testing.assert_allclose(fd.bits_per_dimension(5.0 * np.log(2.0), 5, unit=1 / 256), 7.0)


@pytest.mark.parametrize(
    ("data", "unit", "says"),
    [
        (
            np.random.default_rng(0).normal(size=(50, 2)),
            1.0,
            r"multiples of `unit`.*got data\[:, \d\].*multiples of 1\.",
        ),
        (np.random.default_rng(0).normal(1e6, 1.0, (50, 1)), 1.0, r"multiples of `unit`.*got data\[:, 0\]"),
        ([1.0, np.nan], 1.0, r"finite values; got nan at index \(1,\), and 1 such rows of 2"),
        ([[1.0, 2.0]], [1.0, 1.0, 1.0], r"broadcasts to \(1, 2\); got \(3,\)"),
        ([1.0, 2.0], {"a": 1.0}, r"`unit` as a number or an array.*got a dict with \['a'\]"),
        ({"a": [1.0, 2.0]}, {"b": 1.0}, r"names of columns of `data`, which are \['a'\]; got \['b'\]"),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 1.0]}, r"`unit\['a'\]` of a shape that broadcasts to \(\); got \(2,\)"),
        ({"a": [1.0, 2.0], "b": [1.0]}, 1.0, r"the same number of rows.*got {'a': 2, 'b': 1}"),
        ({"a": [1.0, 2.0], "b": [0.1, 0.25]}, 1.0, r"got data\['b'\].*Fix: unit = {'a': 1.0, 'b': 0.0}"),
        ([1.0, 2.0], -1.0, "a finite `unit` of at least 0; got -1.0"),
        ([1.0, 2.0], np.inf, "a finite `unit` of at least 0; got inf"),
    ],
    ids=[
        "not rounded",
        "not rounded and large",
        "nan",
        "units of too many columns",
        "units by name of an array",
        "unit of another column",
        "units of too many coordinates",
        "columns of different lengths",
        "one column not rounded",
        "negative unit",
        "infinite unit",
    ],
)
def test_what_cannot_be_spread_is_refused(data, unit, says):
    with pytest.raises(ValueError, match=rf"dequantize expected .*{says}"):
        fd.dequantize(jr.key(0), data, unit)
