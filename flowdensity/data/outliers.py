r"""Check for isolated outliers and codes for missing values: values that the tail of their column does not explain.

A row at $10^{12}$ in a column of unit scale, or -999 for "missing", sets the scale of the whole column. The gap before such a
value distinguishes it from the end of a heavy tail. Let $x_1 > x_2 > \dots$ be the different values on one side of a column,
measured from the middle value of that side. If they follow a power law with *any* index $\alpha$, the spacings
$i\log(x_i/x_{i+1})$ are independent exponentials with rate $\alpha$ (Rényi 1953). The sum $S$ of the $j$ spacings after the
first $k$ then has the distribution $\mathrm{Gamma}(j, \alpha)$, and the probability of a gap at least as wide as the observed
$L = \log(x_k/x_{k+1})$ is

$$p = (1 + k L/S)^{-j}$$

for every $\alpha$, so the index need not be known. The spacings of lighter tails (normal, exponential, lognormal) shrink
outwards. So do those of a power law about a lower origin, measured from the middle of its side. In both cases $p$ is an upper
bound.
"""

from typing import NamedTuple

import numpy as np

from .columns import Columns, Finding
from .precision import number

FALSE_ALARM = 1e-4
"""Maximum probability of a reported gap under a power law."""
UNUSUAL_GAP = 1e-2
"""Maximum probability of a gap that is reported only if rows beyond it are also equal and rounding does not explain this."""
MIN_TAIL_VALUES = 4
"""Minimum number of different values in a tail for comparison with a gap."""
MAX_VALUES = 3
"""Maximum number of different values beyond a gap, such as the codes 9997, 9998 and 9999; more would be a cluster."""
MAX_ENTRIES = 20_000_000
"""Maximum number of entries to search; in a larger table, only rows drawn at random are searched."""


class Outlier(NamedTuple):
    """Values at one end of a column that its tail does not explain.

    Attributes:
        column: index of the column.
        values: the different values, in the user's units.
        rows: mask of the rows that have them, shape `(n,)`.
    """

    column: int
    values: list[float]
    rows: np.ndarray


def find_outliers(columns: Columns) -> list[Outlier]:
    """Find values at the ends of columns that the tails do not explain.

    The tails are those of the values on the real line, for example of the logarithm for `constraints.positive`.
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
    """Find at most `MAX_VALUES` values at the upper end of a column, shape `(n,)`, that its tail does not explain."""
    values, counts = np.unique(column[column > np.median(column)], return_counts=True)
    for beyond in range(1, MAX_VALUES + 1):
        if _is_unexplained(values, counts, beyond):
            return values[-beyond:]
    return values[:0]


def _is_unexplained(values: np.ndarray, counts: np.ndarray, beyond: int) -> bool:
    """Return whether the gap before the last values on one side of a column is wider than the tail explains."""
    rest = values[:-beyond]
    middle = len(rest) // 2
    # Estimators of a tail index commonly use a number of values that grows with this power.
    tail = min(round(len(rest) ** (2 / 3)), len(rest) - middle - 2)
    if tail < MIN_TAIL_VALUES:
        return False
    logs = np.log(values[-beyond - tail - 1 : len(values) - beyond + 1] - rest[middle])
    # In a rounded column, or in a chain with rejected proposals, rows are equal everywhere. Dividing by the largest count in the
    # tail corrects for this.
    rows = int(counts[-beyond:].sum() // counts[-beyond - tail : -beyond].max())
    first = max(rows, 1)
    spread = np.sum(logs[1:-1] - logs[0]) + first * (logs[-2] - logs[0])
    chance = (1.0 + first * (logs[-1] - logs[-2]) / spread) ** -tail
    return chance <= FALSE_ALARM or (
        chance <= UNUSUAL_GAP and _coincidence(values, rows - beyond, beyond, tail) <= FALSE_ALARM
    )


def _coincidence(values: np.ndarray, coincidences: int, beyond: int, tail: int) -> float:
    """Upper bound on the probability that rows beyond a gap are equal by rounding alone.

    If the density decreases outwards, a rounding cell beyond the gap has at most the fraction `unit / gap` of the probability
    beyond the last value before the gap, and each further row must fall into the same cell. A single coincidence is no evidence.
    """
    if coincidences < 2:
        return 1.0
    unit = np.diff(values[-beyond - tail : -beyond]).min()
    return float(unit / (values[-beyond] - values[-beyond - 1])) ** coincidences


def outlier_finding(columns: Columns, found: list[Outlier]) -> Finding:
    """Return the finding about outliers."""
    first = max(found, key=lambda outlier: int(outlier.rows.sum()))
    others = columns.rows[~first.rows, first.column]
    count = int(first.rows.sum())
    more = len({outlier.column for outlier in found}) - 1
    return Finding(
        f"values of `{columns.name}` within the tails of their columns",
        f"{columns.labels[first.column]}, in which {count} {'row is' if count == 1 else 'rows are'} "
        f"{' or '.join(map(number, first.values))} and all others lie between {others.min():g} and {others.max():g}"
        + (f", and {more} more {'column has' if more == 1 else 'columns have'} such values" if more else ""),
        "They set the scale of the whole column. Leave them out if they are errors or stand for missing values; if they are "
        "real, model these rows separately or learn the logarithm of the column",
        columns.keeping(_regular(columns, found[:MAX_VALUES])),
    )


def _regular(columns: Columns, found: list[Outlier]) -> str:
    """Return the expression for the mask of the rows without outliers."""
    conditions = [_differs(columns.code[each.column], each.values) for each in found]
    return conditions[0] if len(conditions) == 1 else " & ".join(f"({condition})" for condition in conditions)


def _differs(label: str, values: list[float]) -> str:
    if len(values) == 1:
        return f"{label} != {number(values[0])}"
    return f"~numpy.isin({label}, [{', '.join(map(number, values))}])"
