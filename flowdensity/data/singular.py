"""Check for tables that have no density because rows are repeated, or tied in a column."""

import math
from typing import NamedTuple

import numpy as np

from .columns import Columns, Finding
from .precision import column_labels, number
from .rounding import MIN_MULTIPLES, share_of_multiples
from .sites import split

MAX_DISTINCT_SHARE = 0.8
"""Maximum number of distinct values of a rounded column, as a share of the rows."""
MAX_TIED_SHARE = 0.02
"""Maximum share of the rows with the same value in a column without ties."""
MAX_TIED_ROWS = 5
"""Number of rows up to which equal values in a column never count as ties."""
MAX_SEARCHED_ROWS = 2000
"""Maximum number of rows, drawn at random, that are searched for ties."""
MAX_REPEATED_SHARE = 0.1
"""Maximum share of rows that are copies of other rows in a table without repeated rows."""
MAX_LISTED_UNITS = 12
"""Maximum number of columns whose units are listed one by one in a message."""
MAX_CATEGORIES = 3
"""Maximum number of different values of a column that is taken for a category."""


def coincidences(columns: Columns, contexts: Columns) -> Finding | None:
    """Find rows that are repeated, or that are tied in a column.

    Args:
        columns: columns of the events.
        contexts: columns of their contexts. The same event with two contexts makes two different rows.
    """
    rows = columns.rows
    found, whole = ties(rows), np.concatenate([rows, contexts.rows], axis=1)
    distinct = len({row.tobytes() for row in whole})
    # Rounding alone can make rows equal. Then `dequantize` is the fix for the repeated rows and for the ties.
    if distinct < (1.0 - MAX_REPEATED_SHARE) * len(rows) and not any(each.unit for each in found):
        return Finding(
            "distinct rows in `data`",
            f"{distinct} distinct rows among {len(rows)}",
            "Each copy counts as a separate row, so the table seems larger than it is",
            _counted(columns, contexts),
        )
    if not found:
        return None
    most = max(found, key=lambda each: (columns.separate[each.column] and each.is_rounded, each.share))
    others = [each.column for each in found if each is not most]
    more = f", and also ties in {columns.listed(others)}" if others else ""
    advice = "Model a special value, such as 0 for 'none', separately"
    if most.is_category:
        advice = "If the column is a category, learn one density for each of its values, or pass it as `context`"
    return Finding(
        "columns of `data` with few ties",
        f"{columns.labels[most.column]}, in which {most.share:.1%} of the rows are {most.value:g}{more}",
        "A density learned from them grows without bound there. If a column was rounded, apply fd.dequantize to the recorded "
        f"values, before you combine the column with others. {advice}",
        _cure(columns, found, most),
    )


class Ties(NamedTuple):
    """A column in which rows are tied.

    Attributes:
        column: index of the column.
        value: the most frequent value.
        share: share of the rows with this value.
        unit: unit to which the column is rounded; None if there is none, as for the logarithm of a rounded column.
        is_rounded: whether so many values repeat that the column looks rounded.
        is_category: whether the column has so few values that it may be a category.
    """

    column: int
    value: float
    share: float
    unit: float | None
    is_rounded: bool
    is_category: bool


def ties(table: np.ndarray) -> list[Ties]:
    """Find columns with a value so frequent that a learned density would grow there without bound.

    Args:
        table: rows, shape `(n, columns)`.
    """
    some = table
    if len(table) > MAX_SEARCHED_ROWS:
        some = table[np.random.default_rng(0).choice(len(table), MAX_SEARCHED_ROWS, replace=False)]
    some = np.sort(some, axis=0)
    # After sorting, a value that occurs in more than `apart` rows equals the entry `apart` rows below it.
    apart = max(MAX_TIED_ROWS, math.ceil(MAX_TIED_SHARE * len(some)))
    tied = np.any(some[apart:] == some[:-apart], axis=0)
    return [_described(int(column), some[:, column]) for column in np.flatnonzero(tied)]


def _described(column: int, rows: np.ndarray) -> Ties:
    values, counts = np.unique(rows, return_counts=True)
    most = int(np.argmax(counts))
    others = rows[rows != values[most]]
    distinct = np.delete(values, most)
    # Ties come from rounding only if other values repeat too.
    is_rounded = 2 < len(distinct) <= MAX_DISTINCT_SHARE * len(others)
    unit = _unit_of(values, rows, others) if is_rounded else None
    is_category = len(values) <= MAX_CATEGORIES and bool(np.min(counts) > 1)
    return Ties(column, float(values[most]), float(counts[most] / len(rows)), unit, is_rounded, is_category)


def _unit_of(values: np.ndarray, rows: np.ndarray, others: np.ndarray) -> float | None:
    """Return the widest gap between neighboring values that divides nearly all differences; None if there is none.

    Args:
        values: different values, in ascending order.
        rows: all rows, which `dequantize` would check.
        others: rows without those that have the most frequent value.
    """
    # Gaps are compared within the precision of float32.
    gaps = sorted({float(f"{gap:.6g}") for gap in np.diff(values)}, reverse=True)
    return next(
        (gap for gap in gaps if min(share_of_multiples(each, gap) for each in (rows, others)) >= MIN_MULTIPLES), None
    )


def _counted(columns: Columns, contexts: Columns) -> str:
    """Return the line that keeps each distinct row once, with its multiplicity as its weight."""
    parts = columns.code_of_sites + (contexts.code_of_sites if contexts.count else [])
    table = f"numpy.column_stack([numpy.reshape(each, (len(each), -1)) for each in ({', '.join(parts)},)])"
    weighted = any(each.name == "weights" for each in columns.arguments)
    return (
        f"first, kind = numpy.unique({table}, axis=0, return_index=True, return_inverse=True)[1:]; "
        f"weights = numpy.bincount(kind.ravel(){', weights' if weighted else ''})[kind.ravel()]; "
        "keep = numpy.isin(numpy.arange(len(weights)), first); "
        + "; ".join(each.lines.take for each in columns.arguments)
        + ("" if weighted else "; weights = weights[keep]")
    )


def _cure(columns: Columns, found: list[Ties], most: Ties) -> str:
    """Return the line that dequantizes the rounded columns. If none looks rounded, it drops a category or the tied rows."""
    # Noise would move the values of other columns off their support, for example off a simplex.
    rounded = [each for each in found if each.is_rounded and columns.separate[each.column]]
    if rounded:
        return "; ".join(_dequantizing(columns, rounded))
    if most.is_category and columns.count > 1 and (line := _dropping(columns, most.column)):
        return line
    return columns.keeping(f"{columns.code[most.column]} != {number(most.value)}")


def _dropping(columns: Columns, column: int) -> str | None:
    """Return the line that drops a column; None if the column is a coordinate of a value with several axes."""
    sites, shape = columns.table.sites, columns.table.rows.shape[1:]
    if sites is None:
        return columns.handed.without(None, column) if len(shape) == 1 else None
    site = sites.site_of(column)
    return columns.handed.without(site) if not dict(zip(*sites, strict=True))[site] else None


def _dequantizing(columns: Columns, rounded: list[Ties]) -> list[str]:
    """Return the statements that dequantize columns with a unit, and those that spread columns with uneven cells."""
    name, sites = columns.name, columns.table.sites
    units, uneven = np.zeros(columns.count), [each.column for each in rounded if each.unit is None]
    for each in rounded:
        units[each.column] = each.unit or 0.0
    parts = [(name, columns.table.rows.shape[1:])]
    if sites is not None:
        parts = [
            (f"{name}[{own!r}]", shape) for own, shape in zip(columns.handed.keys.values(), sites.shapes, strict=True)
        ]
    labels = [label for part, shape in parts for label in column_labels(part, shape)]
    statements = []
    # With a unit of 0 nothing moves, but the result is a copy whose columns can be replaced, whatever the container.
    if units.any() or labels != [name]:
        setting, unit = _unit_code(columns, units)
        statements += [*setting, f"{name} = fd.dequantize(key, {name}, unit={unit})"]
    for count, label in enumerate((labels[column] for column in uneven), start=1):
        # A cell reaches to the midpoints between a value and its neighbors, so the numbers of the values are dequantized. The
        # first and the last cell are as wide outwards as inwards.
        cell = f"fd.dequantize(jax.random.fold_in(key, {count}), cell)"
        statements.append(f"value, cell = numpy.unique({label}, return_inverse=True)")
        ends = "numpy.r_[2 * value[0] - value[1], value, 2 * value[-1] - value[-2]]"
        statements.append(f"{label} = numpy.interp({cell}, numpy.arange(-1, len(value) + 1), {ends})")
    return statements


def _unit_code(columns: Columns, units: np.ndarray) -> tuple[list[str], str]:
    """Return the code for the units of the columns, and statements that precede it."""
    sites, shape = columns.table.sites, columns.table.rows.shape[1:]
    if np.all(units == units[0]):
        return [], f"{units[0]:g}"
    if sites is not None:
        named = zip(columns.handed.keys.values(), split(units, sites.shapes), strict=True)
        code = {own: _code_of(each) for own, each in named if each.any()}
        return [], f"{{{', '.join(f'{own!r}: {each}' for own, each in code.items())}}}"
    if len(shape) == 1 and len(units) <= MAX_LISTED_UNITS:
        return [], _code_of(units)
    statements = [f"unit = numpy.zeros({shape})"]
    for unit in np.unique(units[units > 0]):
        statements.append(f"unit.flat[{np.flatnonzero(units == unit).tolist()}] = {unit:g}")
    return statements, "unit"


def _code_of(units: np.ndarray) -> str:
    """Return the code for an array of units."""
    if np.all(units == units.flat[0]):
        return f"{units.flat[0]:g}"
    if units.ndim == 1:
        return f"[{', '.join(f'{each:g}' for each in units)}]"
    return str(units.tolist())
