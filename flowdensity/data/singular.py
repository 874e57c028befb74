"""Tables that have no density, because rows repeat or are tied in a column."""

import math
from typing import NamedTuple

import numpy as np

from .columns import Columns, Finding
from .precision import number
from .rounding import MIN_MULTIPLES, is_whole
from .sites import split
from .supports import free_size

MAX_TIED_SHARE = 0.02
"""A column has ties if one of its values is in more than this share of the rows."""
MAX_TIED_ROWS = 5
"""A column has ties only if one of its values is in more rows than this."""
MAX_SEARCHED_ROWS = 2000
"""Maximum number of rows, drawn at random, that are searched for ties."""
MAX_REPEATED_SHARE = 0.1
"""A table has repeated rows if more than this share of them are copies of other rows."""
MAX_LISTED_UNITS = 12
"""A message lists the units of at most this many columns."""


def coincidences(columns: Columns, contexts: Columns) -> Finding | None:
    """Find rows that are repeated, or that are tied in a column.

    Args:
        columns: of the events.
        contexts: of their contexts. An event that occurs with two contexts makes two different rows.
    """
    rows = columns.rows
    found, whole = ties(rows), np.concatenate([rows, contexts.rows], axis=1)
    distinct = len({row.tobytes() for row in whole})
    # Rounding alone can make rows equal, and dequantization resolves both.
    if distinct < (1.0 - MAX_REPEATED_SHARE) * len(rows) and not any(each.unit for each in found):
        return Finding(
            "rows of `data` that are not repeated",
            f"{distinct} different ones among {len(rows)}",
            "Each counts as a row of its own, and the table as larger than it is",
            _counted(columns, contexts),
        )
    if not found:
        return None
    most = max(found, key=lambda each: (each.unit is not None, each.share))
    others = f", and {len(found) - 1} other columns have ties" if len(found) > 1 else ""
    return Finding(
        "columns of `data` with few ties",
        f"{columns.labels[most.column]}, in which {most.share:.1%} of the rows are {most.value:g}{others}",
        "A density learned from them grows without bound there. fd.dequantize spreads a column that was rounded, as it was "
        "recorded and before it is combined with others; a value with a meaning of its own, such as none, is for a model of "
        "its own",
        _cure(columns, found, most),
    )


class Ties(NamedTuple):
    """A column in which rows are tied.

    Attributes:
        column: its number.
        value: the one with most rows.
        share: of the rows that have it.
        unit: what the column is rounded to; `None` if it does not look rounded.
    """

    column: int
    value: float
    share: float
    unit: float | None


def ties(table: np.ndarray) -> list[Ties]:
    """Find columns in which one value is so frequent that a learned density would grow there without bound.

    Args:
        table: rows, shape `(n, columns)`.
    """
    some = table
    if len(table) > MAX_SEARCHED_ROWS:
        some = table[np.random.default_rng(0).choice(len(table), MAX_SEARCHED_ROWS, replace=False)]
    some = np.sort(some, axis=0)
    # In a sorted column, a value in more than `apart` rows occurs again `apart` rows later.
    apart = max(MAX_TIED_ROWS, math.ceil(MAX_TIED_SHARE * len(some)))
    tied = np.any(some[apart:] == some[:-apart], axis=0)
    return [_described(int(column), some[:, column]) for column in np.flatnonzero(tied)]


def _described(column: int, rows: np.ndarray) -> Ties:
    values, counts = np.unique(rows, return_counts=True)
    most = int(np.argmax(counts))
    others = rows[rows != values[most]]
    distinct = np.delete(values, most)
    unit = None
    # If hardly any other value occurs twice, the tied value does not come from rounding.
    if 2 < len(distinct) <= MIN_MULTIPLES * len(others):
        # The widest gap between neighbors of which nearly all other values are multiples, to the digits of float32.
        gaps = sorted({float(f"{gap:.6g}") for gap in np.diff(values)}, reverse=True)
        unit = next((gap for gap in gaps if np.mean(is_whole(others, gap)) >= MIN_MULTIPLES), None)
    return Ties(column, float(values[most]), float(counts[most] / len(rows)), unit)


def _counted(columns: Columns, contexts: Columns) -> str:
    """A line of code that keeps each row once, with its multiplicity as its weight."""
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
    """A line of code that dequantizes the rounded columns or, if none looks rounded, drops the tied rows."""
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
