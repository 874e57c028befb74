"""Rows that count as often as they weigh."""

import numpy as np


def shares(weights: np.ndarray | None, rows: int) -> np.ndarray:
    """Weights of sum 1, shape `(rows,)`: alike where there are none."""
    return np.full(rows, 1.0 / rows) if weights is None else weights / weights.sum()


def resampled(table: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
    """`count` rows of a table, in their order and without chance, each about as often as it weighs.

    For what knows no weights, or would take too long with all rows.
    """
    ends = np.cumsum(shares(weights, len(table)))
    return table[np.searchsorted(ends / ends[-1], (np.arange(count) + 0.5) / count)]
