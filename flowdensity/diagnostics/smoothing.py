"""Kernel density estimates of one or two coordinates on a grid, for the lines and contours of plots.

arviz estimates densities of one coordinate. Its estimate for two coordinates is private, and its only bandwidth rule blurs
separate modes. Here lines and contours come from the same estimate, so that a panel agrees with the marginals beside it.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from scipy.ndimage import gaussian_filter

Span: TypeAlias = tuple[float, float]

TAIL = 1.5
"""Maximum length of a tail in a panel, as a multiple of the distance from the median to the quantile of 1 % or 99 %."""


def span_of(*values: np.ndarray) -> Span:
    """Return the ends of a panel: the range without 0.1 % of the values at either end, plus a margin.

    A long tail is cut at 1.5 times the distance from the median to the quantile of 1 % or 99 %, so that it does not squeeze the
    other values into a corner. The tails of normal values are shorter than that.
    """
    ends = []
    for each in values:
        least, near, median, far, most = np.quantile(each, [0.001, 0.01, 0.5, 0.99, 0.999])
        ends += [max(least, median - TAIL * (median - near)), min(most, median + TAIL * (far - median))]
    low, high = float(min(ends)), float(max(ends))
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def smoothed_density(
    values: np.ndarray, spans: Sequence[Span], shares: Iterable[float] = ()
) -> tuple[list[np.ndarray], np.ndarray, list[float]]:
    """Estimate the density of rows of one or two coordinates on a grid.

    The width of the kernel is Silverman's, or smaller by a factor of up to eight. It is the largest width whose squared error,
    for a density estimated from one half of the rows and compared with the other, is within 0.5 % of the smallest error. If more
    than 1 % of the rows are within a kernel width of the last row, the support ends there: the kernel is reflected, and the
    density beyond is zero.

    Args:
        values: shape `(rows, 1)` or `(rows, 2)`.
        spans: ends of the grid for each coordinate.
        shares: fractions of the rows, for `levels`.

    Returns:
        The points of the grid along each coordinate, the density on the grid, and for each of `shares` the level above which that
        fraction of the rows lies.
    """
    count, dim = values.shape
    cells, span = {1: 1024, 2: 128}[dim], np.array(spans).T
    quartiles = np.quantile(values, [0.25, 0.75], axis=0)
    spread = np.minimum(values.std(axis=0), (quartiles[1] - quartiles[0]) / 1.34)
    # All draws of a chain that is stuck may be equal, so the width has a floor.
    width = np.maximum(0.9 * spread * count ** (-1.0 / (4.0 + dim)), 1e-3 * (span[1] - span[0]))
    least, most = values.min(axis=0), values.max(axis=0)
    low, high = np.mean(values < least + width, axis=0), np.mean(values > most - width, axis=0)
    low, high = np.where(low > 0.01, least, least - 4.0 * width), np.where(high > 0.01, most, most + 4.0 * width)
    low, high = np.maximum(low, span[0]), np.maximum(np.minimum(high, span[1]), low + width)
    size = (high - low) / cells
    ends = list(zip(low, high, strict=True))
    halves = [np.histogramdd(half, cells, ends)[0] for half in (values[: count // 2], values[count // 2 :])]
    errors = {}
    for factor in 0.5 ** np.arange(0.0, 3.1, 0.5):
        smooth = [gaussian_filter(half, factor * width / size) for half in halves]
        errors[factor] = sum(np.sum(s * s - 2.0 * s * half) for s, half in zip(smooth, halves[::-1], strict=True))
    best = min(errors.values())
    factor = next(factor for factor, error in errors.items() if error - best <= 0.005 * abs(best))
    counts = halves[0] + halves[1]
    density = gaussian_filter(counts, factor * width / size) / (counts.sum() * size.prod())
    order = np.argsort(density, axis=None)[::-1]
    held = np.cumsum(counts.ravel()[order]) / counts.sum()
    levels = [float(density.ravel()[order][np.searchsorted(held, share)]) for share in shares]
    grid = [start + step * (np.arange(-1, cells + 1) + 0.5) for start, step in zip(low, size, strict=True)]
    return grid, np.pad(density, 1), levels
