"""Folds of a table: every row in one, and its copies in the same."""

import numpy as np

from flowdensity.data.statistics import folds, resampled


def test_every_row_is_in_one_fold_and_its_copies_are_in_the_same():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 2))[rng.integers(0, 40, 200)]
    found = folds(rows, 5)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(200))
    kinds = [{row.tobytes() for row in rows[fold]} for fold in found]
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    assert max(map(len, kinds)) - min(map(len, kinds)) <= 1


def test_folds_of_rows_that_are_all_different_have_one_size():
    rows = np.random.default_rng(0).normal(size=(203, 3))
    assert [len(fold) for fold in folds(rows, 5)] == [41, 41, 41, 40, 40]


def test_rows_that_alternate_are_both_looked_at():
    rows = np.arange(8_000)[:, None]
    taken = resampled(rows, None, 4_000)
    assert len(np.unique(taken)) == 4_000
    assert np.all(np.diff(taken[:, 0]) > 0)
    assert abs(np.mean(taken % 2) - 0.5) < 4.0 * 0.5 / np.sqrt(4_000)
