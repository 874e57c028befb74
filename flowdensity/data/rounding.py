"""Dequantization of rounded columns, such as counts, gray levels, and lengths to a millimeter."""

import math

import jax.random as jr
import numpy as np

from .._arrays import Fixes
from .._checks import check_count, check_key, check_number, real_array
from .._typing import ArrayLike, Key

MIN_MULTIPLES = 0.8
"""Minimum share of the rows that are multiples of the unit; the others may have been recorded more finely."""
MULTIPLE_TOLERANCE = 1e-3
"""Maximum distance from a multiple, in units, at which a value counts as a multiple."""


def dequantize(key: Key, data: ArrayLike, unit: ArrayLike = 1.0) -> np.ndarray:
    r"""Spread rounded values uniformly over their cells: $x + w(u - \tfrac12)$ with the unit $w$ and $u$ uniform on [0, 1).

    A density learned from tied rows grows there without bound, so dequantize them first. The expected log density of the
    result, plus $\sum_i\log w_i$ over the rounded columns, is a lower bound on the log probability of the rounded values
    (Theis et al. 2016, arXiv 1511.01844). `Rounded` computes that probability itself.

    Args:
        key: JAX PRNG key.
        data: an array of values, nearly all multiples of the unit, shape `(n, *event_shape)`. Cells are centered on the values.
            If values were rounded down, such as an age in years, the result is half a unit too low.
        unit: unit to which the values are rounded, of a shape that broadcasts to the shape of `data`, so that each column can
            have its own unit. 0 leaves a column unchanged.

    Returns:
        Float64 array of the shape of `data`.

    Raises:
        TypeError: if `key` is not a PRNG key, or `data` or `unit` do not consist of numbers.
        ValueError: if a value is not finite, a unit is negative, not finite or of the wrong shape, or many values are not
            multiples of their unit.

    Examples:
        >>> lengths = np.round(data, 1)
        >>> spread = fd.dequantize(key, lengths, unit=0.1)
        >>> spread.shape
        (200, 2)
    """
    check_key("dequantize", key)
    table = np.atleast_1d(real_array("dequantize", "data", data))
    if not np.isfinite(table).all():
        raise ValueError(
            f"dequantize expected `data` with finite values; got {np.count_nonzero(~np.isfinite(table))} that are not finite. "
            "Fix: data = numpy.asarray(data)[numpy.isfinite(data).reshape(len(data), -1).all(axis=1)]"
        )
    units = units_of("dequantize", unit, table.shape)
    _check_multiples(table, units)
    return table + units * (np.asarray(jr.uniform(key, table.shape), np.float64) - 0.5)


def bits_per_dimension(log_prob: ArrayLike, dim: int, unit: float = 1.0) -> np.ndarray:
    r"""Convert log densities of dequantized events to bits per dimension, $-(\log p + D\log w)/(D\ln 2)$; lower is better.

    Args:
        log_prob: log densities in nats, any shape.
        dim: number of coordinates $D$ of an event.
        unit: width $w$ of the cells, as in `dequantize`: 1 for gray levels, 1/256 for gray levels divided by 256.

    Returns:
        Array of the same shape.

    Raises:
        TypeError: if `log_prob` does not consist of real numbers.
        ValueError: if `dim` is not an integer of at least 1, or `unit` is not above 0.

    Examples:
        >>> fd.bits_per_dimension(density.log_prob(data), dim=2, unit=0.1).mean()
        >>> fd.bits_per_dimension(-2.0 * np.log(2.0), dim=2).item()
        1.0
    """
    dim = check_count("bits_per_dimension", "dim", dim, fix=64)
    unit = check_number("bits_per_dimension", "unit", unit, 0.0, fix=1.0)
    return -(real_array("bits_per_dimension", "log_prob", log_prob) / dim + math.log(unit)) / math.log(2.0)


def units_of(caller: str, unit: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Check units, and return them as an array that broadcasts to a shape.

    Raises:
        TypeError: if the units are not numbers.
        ValueError: if the units do not broadcast, or a unit is negative or not finite.
    """
    units = real_array(caller, "unit", unit, Fixes(categories="unit = 1.0"))
    try:
        fits = np.broadcast_shapes(units.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{caller} expected `unit` of a shape that broadcasts to {shape}; got {units.shape}. "
            f"A single number applies to all columns. Fix: unit = numpy.resize(unit, {shape[-1:]})"
        )
    bad = ~(np.isfinite(units) & (units >= 0))
    if bad.any():
        raise ValueError(
            f"{caller} expected a finite `unit` of at least 0; got {units[bad].flat[0]}. Use 0 for columns that were not "
            "rounded. Fix: unit = numpy.where(numpy.isfinite(unit), numpy.abs(unit), 0.0)"
        )
    return units


def is_whole(values: np.ndarray, unit: ArrayLike) -> np.ndarray:
    """Mask of the values that are multiples of a positive unit, to the precision of float32."""
    cells = values / unit
    return np.abs(cells - np.round(cells)) <= np.minimum(MULTIPLE_TOLERANCE + 1e-7 * np.abs(cells), 0.1)


def _check_multiples(table: np.ndarray, units: np.ndarray) -> None:
    units = np.broadcast_to(units, table.shape)
    shares = np.mean((units == 0) | is_whole(table, np.where(units == 0, 1.0, units)), axis=0)
    if np.min(shares, initial=1.0) < MIN_MULTIPLES:
        column = tuple(int(i) for i in np.unravel_index(np.argmin(shares), shares.shape))
        place = f"data[:, {', '.join(map(str, column))}]" if column else "data"
        raise ValueError(
            f"dequantize expected multiples of `unit`; got {place}, in which {shares[column]:.0%} of the rows are multiples of "
            f"{units[(0, *column)]:g}. The unit is the rounding of the recorded values, before any standardization; use 0 for "
            f"columns that were not rounded. Fix: unit = {np.where(shares < MIN_MULTIPLES, 0.0, units[0]).tolist()}"
        )
