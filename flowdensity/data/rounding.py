"""Rounded columns, such as counts, gray levels and lengths to a millimeter, as data of a continuous density."""

import math

import jax.random as jr
import numpy as np

from .._arrays import Fixes
from .._checks import check_count, check_key, check_number, real_array
from .._typing import ArrayLike, Key

MIN_MULTIPLES = 0.8
"""Minimum share of the rows that are multiples of the unit; some may have been recorded more finely."""
MULTIPLE_TOLERANCE = 1e-3
"""Largest distance from a multiple, in units, at which a value counts as one."""


def dequantize(key: Key, data: ArrayLike, unit: ArrayLike = 1.0) -> np.ndarray:
    r"""Spread rounded values over their cells: $x + w(u - \tfrac12)$ with $w$ the unit and $u$ uniform on [0, 1).

    A density that is learned from tied rows as they are grows there without bound. The expected log density
    of the result, plus $\sum_i\log w_i$ over the rounded columns, is a lower bound on the log probability of the rounded values
    (Theis et al. 2016, arXiv 1511.01844); `Rounded` computes that probability itself.

    Args:
        key: JAX PRNG key.
        data: an array of values of which nearly all are multiples of the unit, shape `(n, *event_shape)`. Cells are centered on
            them: for values that were rounded down, such as an age in years, the result is half a unit too low.
        unit: what the values are rounded to, in their own units; of a shape that broadcasts against `data`, so that each
            column can have its own. 0 leaves a column as it is.

    Returns:
        Float64 array of the shape of `data`.

    Raises:
        TypeError: if `key` is no key, or `data` or `unit` are no numbers.
        ValueError: if a value is not finite, a unit negative or of another shape, or many values are no multiples of it.
    """
    check_key("dequantize", key)
    table = np.atleast_1d(real_array("dequantize", "data", data))
    if not np.isfinite(table).all():
        raise ValueError(
            f"dequantize expected `data` with finite values; got {np.count_nonzero(~np.isfinite(table))} that are not. "
            "Fix: data = numpy.asarray(data)[numpy.isfinite(data).reshape(len(data), -1).all(axis=1)]"
        )
    units = units_of("dequantize", unit, table.shape)
    _check_multiples(table, units)
    return table + units * (np.asarray(jr.uniform(key, table.shape), np.float64) - 0.5)


def bits_per_dimension(log_prob: ArrayLike, dim: int, unit: float = 1.0) -> np.ndarray:
    r"""Log densities of dequantized events as bits per dimension, $-(\log p + D\log w)/(D\ln 2)$: less is better.

    Args:
        log_prob: log densities in nats, any shape.
        dim: number of coordinates $D$ of an event.
        unit: width $w$ of the cells, as in `dequantize`: 1 for gray levels as they are, 1/256 for those over 256.

    Returns:
        Array of the same shape.

    Raises:
        TypeError: if `log_prob` are no real numbers.
        ValueError: if `dim` is no integer of at least 1, or `unit` not above 0.
    """
    dim = check_count("bits_per_dimension", "dim", dim, fix=64)
    unit = check_number("bits_per_dimension", "unit", unit, 0.0, fix=1.0)
    return -(real_array("bits_per_dimension", "log_prob", log_prob) / dim + math.log(unit)) / math.log(2.0)


def units_of(caller: str, unit: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Units as an array that broadcasts against values of a shape.

    Raises:
        TypeError: if they are no numbers.
        ValueError: if they do not broadcast, or one is negative or not finite.
    """
    units = real_array(caller, "unit", unit, Fixes(categories="unit = 1.0"))
    try:
        fits = np.broadcast_shapes(units.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{caller} expected `unit` of a shape that broadcasts to {shape}; got {units.shape}. "
            f"One number is for all columns. Fix: unit = numpy.resize(unit, {shape[-1:]})"
        )
    bad = ~(np.isfinite(units) & (units >= 0))
    if bad.any():
        raise ValueError(
            f"{caller} expected `unit` at least 0 and finite; got {units[bad].flat[0]}. It is 0 for numbers that are not "
            "rounded. Fix: unit = numpy.where(numpy.isfinite(unit), numpy.abs(unit), 0.0)"
        )
    return units


def is_whole(values: np.ndarray, unit: ArrayLike) -> np.ndarray:
    """Which values are multiples of a positive unit, to the precision of float32."""
    cells = values / unit
    return np.abs(cells - np.round(cells)) <= np.minimum(MULTIPLE_TOLERANCE + 1e-7 * np.abs(cells), 0.1)


def _check_multiples(table: np.ndarray, units: np.ndarray) -> None:
    units = np.broadcast_to(units, table.shape)
    shares = np.mean((units == 0) | is_whole(table, np.where(units == 0, 1.0, units)), axis=0)
    if np.min(shares, initial=1.0) < MIN_MULTIPLES:
        column = tuple(int(i) for i in np.unravel_index(np.argmin(shares), shares.shape))
        place = f"data[:, {', '.join(map(str, column))}]" if column else "data"
        raise ValueError(
            f"dequantize expected multiples of `unit`; got {place}, of which {shares[column]:.0%} of the rows are multiples of "
            f"{units[(0, *column)]:g}. The unit of a column is what it was rounded to when it was recorded, before any "
            f"standardizing, and 0 if it was not. Fix: unit = {np.where(shares < MIN_MULTIPLES, 0.0, units[0]).tolist()}"
        )
