"""Check for tables that have no density because rows are repeated, or tied in a column."""

import math
from typing import NamedTuple

import numpy as np

from .columns import Columns, Finding
from .precision import number
from .rounding import MIN_MULTIPLES, is_whole
from .sites import split
from .supports import free_size

MAX_TIED_SHARE = 0.02
"""Maximum share of the rows with the same value in a column without ties."""
MAX_TIED_ROWS = 5
"""Number of rows up to which equal values in a column never count as ties."""
MAX_SEARCHED_ROWS = 2000
"""Maximum number of rows, drawn at random, that are searched for ties."""
MAX_REPEATED_SHARE = 0.1
"""Maximum share of rows that are copies of other rows in a table without repeated rows."""
MAX_LISTED_UNITS = 12
"""Maximum number of columns whose units are listed in a message."""


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
    most = max(found, key=lambda each: (each.unit is not None, each.share))
    others = [each.column for each in found if each is not most]
    more = f", and also ties in {columns.listed(others)}" if others else ""
    return Finding(
        "columns of `data` with few ties",
        f"{columns.labels[most.column]}, in which {most.share:.1%} of the rows are {most.value:g}{more}",
        "A density learned from them grows without bound there. If a column was rounded, apply fd.dequantize to the recorded "
        "values, before you combine the column with others. Model a special value, such as 0 for 'none', separately",
        _cure(columns, found, most),
    )


class Ties(NamedTuple):
    """A column in which rows are tied.

    Attributes:
        column: index of the column.
        value: the most frequent value.
        share: share of the rows with this value.
        unit: unit to which the column is rounded; `None` if it does not look rounded.
    """

    column: int
    value: float
    share: float
    unit: float | None


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
    unit = None
    # Ties come from rounding only if other values repeat too.
    if 2 < len(distinct) <= MIN_MULTIPLES * len(others):
        # The unit is the widest gap between neighboring values that divides nearly all values but the most frequent one, within
        # the precision of float32.
        gaps = sorted({float(f"{gap:.6g}") for gap in np.diff(values)}, reverse=True)
        unit = next((gap for gap in gaps if np.mean(is_whole(others, gap)) >= MIN_MULTIPLES), None)
    return Ties(column, float(values[most]), float(counts[most] / len(rows)), unit)


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
    """Return the line that dequantizes the rounded columns or, if none looks rounded, drops the tied rows."""
    table = columns.table
    units = np.zeros(columns.count)
    for each in found:
        units[each.column] = each.unit or 0.0
    if most.unit is None or free_size(table.support, table.rows.shape[1:]) != units.size:
        return columns.keeping(f"{columns.code[most.column]} != {number(most.value)}")
    name, shape = "data", table.rows.shape[1:]
    if table.sites is not None:
        site = table.sites.site_of(most.column)
        name = f"data[{site!r}]"
        units = dict(zip(table.sites.names, split(units, table.sites.shapes), strict=True))[site]
        shape = units.shape
    if np.all(units == units.flat[0]):
        unit = f"{units.flat[0]:g}"
    elif units.ndim == 1 and len(units) <= MAX_LISTED_UNITS:
        unit = f"[{', '.join(f'{each:g}' for each in units)}]"
    else:
        unit = f"units, of shape {shape}, with {most.unit:g} for this column"
    return f"{name} = fd.dequantize(key, {name}, unit={unit})"
