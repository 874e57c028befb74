r"""Lone outliers and codes for missing values: values that the tail of their column does not explain.

A row at $10^{12}$ in a column of unit scale, or -999 for "missing", sets the scale of the whole column. The gap before such a
value tells it from the end of a heavy tail. Let $x_1 > x_2 > \dots$ be the different values of one side of a column, measured
from the middle value of that side. If they follow a power law of *any* index $\alpha$, the spacings
$i\log(x_i/x_{i+1})$ are independent exponentials of rate $\alpha$ (Rényi 1953). The sum $S$ of the $j$ spacings that follow the
first $k$ then has the law $\mathrm{Gamma}(j, \alpha)$, and the gap $L = \log(x_k/x_{k+1})$ is at least as wide as it is with
probability

$$p = (1 + k L/S)^{-j},$$

whatever $\alpha$: the index is not assumed. The spacings of lighter tails (normal, exponential, lognormal) shrink outwards, and
so do those of a power law that are measured from the middle of its side. For these, $p$ is an upper bound.
"""

from typing import NamedTuple

import numpy as np

from .columns import Columns, Finding
from .precision import number

FALSE_ALARM = 1e-4
"""Probability with which a gap at the end of a power law is reported."""
UNUSUAL_GAP = 1e-2
"""A gap this improbable is reported too, if rounding does not explain that the rows beyond it coincide."""
MIN_TAIL_VALUES = 4
"""A side with fewer different values than this beyond its middle has no tail to compare with."""
MAX_VALUES = 3
"""Number of different values that can lie beyond a gap, such as 9997, 9998 and 9999; more are a cluster."""
MAX_ENTRIES = 20_000_000
"""Larger tables are searched in rows drawn at random."""


class Outlier(NamedTuple):
    """Values at one end of a column that its tail does not explain.

    Attributes:
        column: number of the column.
        values: the different values, in the user's units.
        rows: which rows have them, shape `(n,)`.
    """

    column: int
    values: list[float]
    rows: np.ndarray


def find_outliers(columns: Columns) -> list[Outlier]:
    """Ends of columns that their tails do not explain.

    Tails are compared on the real line: on `constraints.positive`, those of the logarithm.
    """
    rows, line = columns.rows, columns.line
    some = np.arange(len(rows))
    if line.size > MAX_ENTRIES:
        some = np.random.default_rng(0).choice(len(rows), MAX_ENTRIES // columns.count, replace=False)
    found = []
    for column in range(columns.count):
        for sign in (1.0, -1.0):
            far = sign * far_values(sign * line[some, column])
            if len(far):
                which = np.isin(line[:, column], far)
                found.append(Outlier(column, np.unique(rows[which, column]).tolist(), which))
    return found


def far_values(column: np.ndarray) -> np.ndarray:
    """Values at the upper end of a column, shape `(n,)`, that its tail does not explain: `MAX_VALUES` at most."""
    values, counts = np.unique(column[column > np.median(column)], return_counts=True)
    for beyond in range(1, MAX_VALUES + 1):
        if _is_unexplained(values, counts, beyond):
            return values[-beyond:]
    return values[:0]


def _is_unexplained(values: np.ndarray, counts: np.ndarray, beyond: int) -> bool:
    """Whether a gap before the last values of one side of a column is wider than its tail explains."""
    rest = values[:-beyond]
    middle = len(rest) // 2
    # The number of values from which the index of a tail is usually read grows like this power.
    tail = min(round(len(rest) ** (2 / 3)), len(rest) - middle - 2)
    if tail < MIN_TAIL_VALUES:
        return False
    logs = np.log(values[-beyond - tail - 1 : len(values) - beyond + 1] - rest[middle])
    # Rows of a rounded column, or of a chain that stood still, coincide everywhere: they count as one.
    rows = int(counts[-beyond:].sum() // counts[-beyond - tail : -beyond].max())
    first = max(rows, 1)
    spread = np.sum(logs[1:-1] - logs[0]) + first * (logs[-2] - logs[0])
    chance = (1.0 + first * (logs[-1] - logs[-2]) / spread) ** -tail
    return chance <= FALSE_ALARM or (
        chance <= UNUSUAL_GAP and _coincidence(values, rows - beyond, beyond, tail) <= FALSE_ALARM
    )


def _coincidence(values: np.ndarray, coincidences: int, beyond: int, tail: int) -> float:
    """Bound on the probability that rounding alone puts rows beyond a gap on the same value.

    A density that falls outwards has at most the share `unit / gap` of what lies beyond its last but one value in any cell
    beyond the gap, and each further row has to fall into the same one. A single coincidence is no evidence.
    """
    if coincidences < 2:
        return 1.0
    unit = np.diff(values[-beyond - tail : -beyond]).min()
    return float(unit / (values[-beyond] - values[-beyond - 1])) ** coincidences


def outlier_finding(columns: Columns, found: list[Outlier]) -> Finding:
    """The message about some outliers."""
    first = max(found, key=lambda outlier: int(outlier.rows.sum()))
    others = columns.rows[~first.rows, first.column]
    count = int(first.rows.sum())
    more = len({outlier.column for outlier in found}) - 1
    return Finding(
        f"values of `{columns.name}` that the tails of their columns explain",
        f"{columns.labels[first.column]}, in which {count} {'row is' if count == 1 else 'rows are'} "
        f"{' or '.join(map(number, first.values))} and all others lie between {others.min():g} and {others.max():g}"
        + (f", and {more} more {'column has' if more == 1 else 'columns have'} such values" if more else ""),
        "They set the scale of the whole column. Leave them out if they are errors or stand for missing values; if they are "
        "real, model these rows apart or learn the logarithm of the column",
        columns.keeping(_regular(columns, found[:MAX_VALUES])),
    )


def _regular(columns: Columns, found: list[Outlier]) -> str:
    """An expression for the rows without some outliers."""
    conditions = [_differs(columns.code[each.column], each.values) for each in found]
    return conditions[0] if len(conditions) == 1 else " & ".join(f"({condition})" for condition in conditions)


def _differs(label: str, values: list[float]) -> str:
    if len(values) == 1:
        return f"{label} != {number(values[0])}"
    return f"~numpy.isin({label}, [{', '.join(map(number, values))}])"
