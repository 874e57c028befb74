"""Which rows of a table are alike, and parts of it that are held out in turn: copies of a row are in one part."""

import numpy as np


def kinds(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are alike in a table of shape `(n, dim)`: the number of the first of each kind, `(kinds,)`, and the kind of each
    row, `(n,)`."""
    _, first, kind = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, kind.ravel()


def parts(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Numbers of the rows in each of `count` parts of a table, shape `(n, dim)`, with about as many kinds of rows each.

    Every call makes the same ones.
    """
    first, kind = kinds(rows)
    order = np.argsort(first)[np.random.default_rng(0).permutation(len(first))]
    return [np.flatnonzero(np.isin(kind, part)) for part in np.array_split(order, count)]
