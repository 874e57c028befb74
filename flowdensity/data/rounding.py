"""Dequantization of rounded columns, such as counts, gray levels, and lengths to a millimeter."""

import math
from collections.abc import Mapping
from typing import Any

import jax.random as jr
import numpy as np

from .._arrays import Fixes, is_a
from .._checks import check_count, check_key, check_number, real_array
from .._typing import ArrayLike, Key
from .container_lines import array_lines
from .containers import Handed, read
from .precision import column_labels
from .sites import Sites, join, split
from .value_checks import check_finite

MIN_MULTIPLES = 0.8
"""Minimum share of the rows that differ by multiples of the unit; the others may have been recorded more finely."""
MULTIPLE_TOLERANCE = 1e-3
"""Maximum distance from a multiple, in units, at which a value counts as a multiple."""


def dequantize(key: Key, data: Any, unit: ArrayLike | Mapping[Any, ArrayLike] = 1.0) -> Any:
    r"""Spread rounded values uniformly over their cells: $x + w(u - \tfrac12)$ with the unit $w$ and $u$ uniform on [0, 1).

    A density learned from tied rows grows there without bound, so dequantize them first. The expected log density of the
    result, plus $\sum_i\log w_i$ over the rounded columns, is a lower bound on the log probability of the rounded values
    (Theis et al. 2016, arXiv 1511.01844). `Rounded` computes that probability itself.

    Args:
        key: JAX PRNG key.
        data: values that nearly all differ by multiples of the unit: an array of shape `(n, *event_shape)`, or any other
            container that `fit_flow` accepts. Cells are centered on the values. If values were rounded down, such as an age
            in years, the result is half a unit too low.
        unit: unit to which the values are rounded, of a shape that broadcasts to the shape of `data`, so that each column can
            have its own unit. 0 leaves a column unchanged. If columns have names, it can be a dict of units by name; columns
            that it leaves out are unchanged.

    Returns:
        The data with float64 values. A pandas `DataFrame` or `Series` keeps its labels, and a dict its keys. Other containers
        of named columns, such as an arviz posterior, become a dict of arrays with one event in each row.

    Raises:
        TypeError: if `key` is not a PRNG key, or `data` or `unit` do not consist of numbers.
        ValueError: if a value is not finite; if a unit is negative, not finite, of the wrong shape or for an unknown column; or
            if many values do not differ by multiples of their unit.

    Examples:
        >>> lengths = np.round(data, 1)
        >>> spread = fd.dequantize(key, lengths, unit=0.1)
        >>> spread.shape
        (200, 2)
        >>> named = {"length": lengths[:, 0], "weight": data[:, 1]}
        >>> list(fd.dequantize(key, named, unit={"length": 0.1}))
        ['length', 'weight']
    """
    check_key("dequantize", key)
    if is_a(data, "xarray", "DataArray"):  # an array of any dimensions, which need not be draws
        handed = Handed("data", data, None, {}, array_lines("data", data))
    else:
        handed = read("dequantize", "data", data)
    if handed.columns is None:
        table = np.atleast_1d(real_array("dequantize", "data", handed.array))
        check_finite("dequantize", handed, None, table, ())
        return _like(data, _spread(key, table, unit, handed, None))
    table, sites = _joined(handed)
    spread = _spread(key, table, unit, handed, sites)
    if is_a(data, "pandas", "DataFrame"):
        return type(data)(spread, index=data.index, columns=data.columns)
    pieces = zip(handed.keys.items(), split(spread, sites.shapes), strict=True)
    return {own: _like(handed.columns[name], piece) for (name, own), piece in pieces}


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


def units_of(caller: str, unit: ArrayLike, shape: tuple[int, ...], name: str = "unit") -> np.ndarray:
    """Check units, and return them as an array that broadcasts to a shape; `name` is the user's expression for them.

    Raises:
        TypeError: if the units are not numbers.
        ValueError: if the units do not broadcast, or a unit is negative or not finite.
    """
    units = real_array(caller, name, unit, Fixes(categories=f"{name} = 1.0"))
    try:
        fits = np.broadcast_shapes(units.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{caller} expected `{name}` of a shape that broadcasts to {shape}; got {units.shape}. "
            f"A single number applies to all columns. Fix: {name} = numpy.resize({name}, {shape[-1:]})"
        )
    bad = ~(np.isfinite(units) & (units >= 0))
    if bad.any():
        raise ValueError(
            f"{caller} expected a finite `{name}` of at least 0; got {units[bad].flat[0]}. Use 0 for columns that were not "
            f"rounded. Fix: {name} = numpy.where(numpy.isfinite({name}), numpy.abs({name}), 0.0)"
        )
    return units


def is_whole(values: np.ndarray, unit: ArrayLike, origin: ArrayLike = 0.0) -> np.ndarray:
    """Mask of the values that differ from an origin by multiples of a positive unit, to the precision of float32."""
    cells = (values - origin) / unit
    tolerance = np.minimum(MULTIPLE_TOLERANCE + 1e-7 * np.abs(values / unit), 0.1)
    return np.abs(cells - np.round(cells)) <= tolerance


def share_of_multiples(table: np.ndarray, unit: ArrayLike) -> np.ndarray:
    """Share of the rows that differ by multiples of a unit, for each column of a table with at least one row.

    The differences are those from 0 or, for columns that were shifted after they were rounded, from the median row. With a unit
    of 0 any value counts as a multiple.
    """
    free = np.equal(unit, 0)
    width = np.where(free, 1.0, unit)
    middle = np.quantile(table, 0.5, axis=0, method="lower")
    return np.maximum(*(np.mean(free | is_whole(table, width, origin), axis=0) for origin in (0.0, middle)))


def _spread(key: Key, table: np.ndarray, unit: Any, handed: Handed, sites: Sites | None) -> np.ndarray:
    units = _units(unit, handed, sites) if isinstance(unit, Mapping) else units_of("dequantize", unit, table.shape)
    _check_multiples(table, np.broadcast_to(units, table.shape), handed, sites)
    return table + units * (np.asarray(jr.uniform(key, table.shape), np.float64) - 0.5)


def _like(values: Any, spread: np.ndarray) -> Any:
    """Return an array with the labels of the values that it replaces."""
    if is_a(values, "pandas", "Series"):
        return type(values)(spread, index=values.index, name=values.name)
    return values.copy(data=spread) if is_a(values, "xarray", "DataArray") else spread


def _joined(handed: Handed) -> tuple[np.ndarray, Sites]:
    """Check named columns, and concatenate them into a matrix with one event in each row."""
    arrays = {}
    for name, values in (handed.columns or {}).items():
        array = real_array("dequantize", handed.label(name), values, handed.fixes(name, ()))
        arrays[name] = np.atleast_1d(array)
        check_finite("dequantize", handed, name, arrays[name], ())
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"dequantize expected the same number of rows for each column of `data`; got {counts}. "
            f"Fix: data = {{name: numpy.asarray(data[name])[: {min(counts.values())}] for name in data}}"
        )
    sites = Sites(tuple(arrays), tuple(array.shape[1:] for array in arrays.values()))
    return join(list(arrays.values()), sites.shapes), sites


def _units(unit: Mapping[Any, Any], handed: Handed, sites: Sites | None) -> np.ndarray:
    """Concatenate units by name into a vector, with 0 for columns without one."""
    if sites is None:
        raise ValueError(
            f"dequantize expected `unit` as a number or an array, since `data` has no names; got a dict with {list(unit)}. "
            "Fix: unit = list(unit.values())"
        )
    # As in `read`, the labels of a DataFrame may be numbers, so compare them as strings.
    named = {str(name): (name, each) for name, each in unit.items()}
    unknown = [name for name, _ in named.values() if str(name) not in sites.names]
    if unknown:
        raise ValueError(
            f"dequantize expected `unit` with names of columns of `data`, which are {list(handed.keys.values())}; got {unknown}. "
            f"Fix: unit = {{name: unit[name] for name in unit if name not in {unknown}}}"
        )
    parts = []
    for name, shape in zip(*sites, strict=True):
        own, each = named.get(name, (name, 0.0))
        parts.append(np.broadcast_to(units_of("dequantize", each, shape, f"unit[{own!r}]"), shape).ravel())
    return np.concatenate(parts)


def _check_multiples(table: np.ndarray, units: np.ndarray, handed: Handed, sites: Sites | None) -> None:
    if not len(table):
        return
    shares = share_of_multiples(table, units)
    if np.min(shares, initial=1.0) < MIN_MULTIPLES:
        column = int(np.argmin(shares))
        parts = [(None, table.shape[1:])] if sites is None else list(zip(*sites, strict=True))
        place = [label for site, shape in parts for label in column_labels(handed.label(site), shape)][column]
        left: Any = np.where(shares < MIN_MULTIPLES, 0.0, units[0])
        if sites is None:
            code = left.tolist()
        else:
            split_units = zip(handed.keys.values(), split(left, sites.shapes), strict=True)
            code = {own: each.tolist() for own, each in split_units}
        raise ValueError(
            f"dequantize expected values that differ by multiples of `unit`; got {place}, in which {shares.flat[column]:.0%} of "
            f"the rows differ by multiples of {units[0].flat[column]:g}. The unit is the rounding of the values as they are "
            f"passed; use 0 for columns that were not rounded. Fix: unit = {code}"
        )
