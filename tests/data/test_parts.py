"""Parts of a table: every row in one, and its copies in the same."""

import numpy as np

from flowdensity.data.parts import parts


def test_every_row_is_in_one_part_and_its_copies_are_in_the_same():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 2))[rng.integers(0, 40, 200)]
    found = parts(rows, 5)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(200))
    kinds = [{row.tobytes() for row in rows[part]} for part in found]
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    assert max(map(len, kinds)) - min(map(len, kinds)) <= 1


def test_parts_of_rows_that_are_all_different_have_one_size():
    rows = np.random.default_rng(0).normal(size=(203, 3))
    assert [len(part) for part in parts(rows, 5)] == [41, 41, 41, 40, 40]
