"""Tables that have no density: rows that are tied in a column, and columns that follow from others."""

import math
import warnings
from typing import NamedTuple

import numpy as np

from .rounding import MOSTLY, is_whole
from .scaling import FULL_COVARIANCE_LIMIT, unconstrain
from .tables import Table

TIED, LEAST = 0.02, 5
"""A column has ties if one of its values is in more than this share of the rows, and in more rows than this."""
LOOKED_AT = 1000
"""Rows that are looked at for ties."""
FLAT = 1e-7
"""A direction in which standardised columns have so little variance is none: float32 does not see it."""


def warn_where_singular(caller: str, table: Table) -> None:
    """Warn where a density learned from a table would grow without bound.

    Args:
        caller: public function whose name the warning carries.
        table: checked events.
    """
    rows = table.rows.reshape(len(table.rows), -1)
    found = ties(rows)
    if found:
        most = max(found, key=lambda each: each.share)
        place = _place(table, most.column)
        fix = "leave it out, or model the rows that have this value apart"
        if most.unit is not None:
            fix = f"{place} = fd.dequantise(key, {place}, unit={most.unit:g})"
        others = f"; {len(found) - 1} more columns have ties" if len(found) > 1 else ""
        warnings.warn(
            f"{caller} expected columns of `data` with few ties; got {place}, in which {most.share:.1%} of the rows are "
            f"{most.value:g}{others}. A density learned from them grows without bound there. Fix: {fix}",
            stacklevel=2,
        )
    free = unconstrain(table.rows, table.support).reshape(len(rows), -1)
    column = dependent(free)
    if column is not None:
        place = _place(table, column) if free.shape == rows.shape else f"coordinate {column} on the real line"
        warnings.warn(
            f"{caller} expected columns of `data` none of which follows from the others; got some that add up to a constant, "
            f"{place} among them. A density learned from them grows without bound there. Fix: leave it out, and compute it "
            "from the others",
            stacklevel=2,
        )


class Ties(NamedTuple):
    """A column in which rows are tied.

    Attributes:
        column: its number.
        value: the one with most rows.
        share: of the rows that have it.
        unit: what the column is rounded to; None if its values are no multiples of anything.
    """

    column: int
    value: float
    share: float
    unit: float | None


def ties(table: np.ndarray) -> list[Ties]:
    """The columns in which one value is in so many rows that a density would grow there without bound.

    Args:
        table: rows, shape `(n, columns)`.
    """
    # Some rows from the whole of the table will do, as it may be sorted.
    some = np.sort(table[:: -(-len(table) // LOOKED_AT)], axis=0)
    # A value in more rows than these is found again so many rows farther on in a sorted column.
    apart = max(LEAST, math.ceil(TIED * len(some)))
    tied = np.any(some[apart:] == some[:-apart], axis=0)
    return [_described(int(column), some[:, column]) for column in np.flatnonzero(tied)]


def _described(column: int, rows: np.ndarray) -> Ties:
    values, counts = np.unique(rows, return_counts=True)
    most = int(np.argmax(counts))
    unit = None
    # Where hardly any value but one is found twice, that one is not the work of rounding.
    if 2 < len(values) <= MOSTLY * len(rows):
        # The widest gap between neighbours of which nearly all others are multiples, to as many digits as float32 has.
        gaps = sorted({float(f"{gap:.6g}") for gap in np.diff(values)}, reverse=True)
        others = rows[rows != values[most]]
        unit = next((gap for gap in gaps if np.mean(is_whole(others, gap)) >= MOSTLY), None)
    return Ties(column, float(values[most]), float(counts[most] / len(rows)), unit)


def dependent(table: np.ndarray) -> int | None:
    """A column that is a linear combination of others, the one with most part in it; None if there is none.

    Args:
        table: rows on the real line, shape `(n, columns)`.
    """
    rows, columns = table.shape
    if rows <= columns or columns > FULL_COVARIANCE_LIMIT:
        return None
    values, vectors = np.linalg.eigh(np.atleast_2d(np.corrcoef(table, rowvar=False)))
    return int(np.argmax(np.abs(vectors[:, 0]))) if values[0] < FLAT else None


def _place(table: Table, column: int) -> str:
    """What the user calls a column."""
    if table.sites is not None:
        return f"data[{table.sites.site_of(column)!r}]"
    shape = table.rows.shape[1:]
    return f"data[:, {', '.join(str(i) for i in np.unravel_index(column, shape))}]" if shape else "data"
