"""Rows that count as often as they weigh."""

import numpy as np


def shares(weights: np.ndarray | None, rows: int) -> np.ndarray:
    """Weights of sum 1, shape `(rows,)`: alike where there are none."""
    return np.full(rows, 1.0 / rows) if weights is None else weights / weights.sum()


def mean_and_error(values: np.ndarray, share: np.ndarray, kind: np.ndarray) -> tuple[float, float]:
    """Weighted mean of one value a row, and its standard error: rows of one kind, which are alike, say no more than one.

    Args:
        values: shape `(rows,)`.
        share: weights of sum 1, shape `(rows,)`.
        kind: number of the kind of each row, shape `(rows,)`.
    """
    mean = float(share @ values)
    return mean, float(np.linalg.norm(np.bincount(kind, share * (values - mean))))


def resampled(table: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
    """`count` rows of a table, in their order, each about as often as it weighs: for what knows no weights, or takes long.

    Every call takes the same ones. They are counted off in an order of no meaning, since tables may alternate.
    """
    order = np.random.default_rng(0).permutation(len(table))
    ends = np.cumsum(shares(weights, len(table))[order])
    return table[np.sort(order[np.searchsorted(ends / ends[-1], (np.arange(count) + 0.5) / count)])]
