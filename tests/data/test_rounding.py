import jax.random as jr
import numpy as np
import pytest

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
        ([1.0, np.nan], 1.0, "finite values; got 1 that are not"),
        ([[1.0, 2.0]], [1.0, 1.0, 1.0], r"broadcasts to \(1, 2\); got \(3,\)"),
        ([1.0, 2.0], -1.0, "a finite `unit` of at least 0; got -1.0"),
        ([1.0, 2.0], np.inf, "a finite `unit` of at least 0; got inf"),
    ],
    ids=["not rounded", "not rounded and large", "nan", "units of too many columns", "negative unit", "infinite unit"],
)
def test_what_cannot_be_spread_is_refused(data, unit, says):
    with pytest.raises(ValueError, match=rf"dequantize expected .*{says}"):
        fd.dequantize(jr.key(0), data, unit)
