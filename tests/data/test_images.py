import jax.random as jr
import numpy as np
import pytest

import flowdensity as fd


def test_whole_numbers_are_spread_over_their_own_cells():
    pixels = np.random.default_rng(0).integers(0, 17, (2000, 3, 2))
    spread = fd.dequantise(jr.key(0), pixels, levels=17)
    np.testing.assert_array_equal(np.floor(17.0 * spread), pixels)
    left = 17.0 * spread - pixels
    assert abs(left.mean() - 0.5) < 4.5 / np.sqrt(12.0 * left.size)
    assert abs(left.var() - 1.0 / 12.0) < 4.5 / np.sqrt(180.0 * left.size)


def test_bits_of_a_uniform_law():
    """Every level equally likely costs log2(levels) bits; half of them, one bit less."""
    np.testing.assert_allclose(fd.bits_per_dimension(np.zeros(3), 5, levels=256), np.full(3, 8.0))
    np.testing.assert_allclose(fd.bits_per_dimension(5.0 * np.log(2.0), 5, levels=16), 3.0)


@pytest.mark.parametrize(
    ("data", "levels", "says"),
    [
        ([0.5, 1.0], 256, r"got 0.5 at index \(0,\)"),
        ([[3, 16]], 16, r"got 16.0 at index \(0, 1\).*Fix: levels=17"),
        ([-1], 256, "whole numbers from 0 to 255"),
        ([np.nan], 256, "got nan"),
        ([0], 1, "`levels` as an integer of at least 2"),
    ],
    ids=["half", "too many", "negative", "nan", "one level"],
)
def test_what_is_no_level_is_refused(data, levels, says):
    with pytest.raises(ValueError, match=rf"dequantise expected .*{says}"):
        fd.dequantise(jr.key(0), data, levels=levels)
