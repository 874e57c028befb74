r"""Columns that stay on one side of 0 or between 0 and 1, without a support that says so.

A positive column crowds at 0 or keeps away from it. In the first case a density on the real line puts a part of its draws
below 0, where none can be. The rows nearest to the bound tell the cases apart. Let $d_1 < \dots < d_k$ be their distances from
it and $m$ the mean of $d_k - d_i$. If rows fell off exponentially towards the bound, as they do in a tail, a fraction
$e^{-d_k/m}$ of these $k$ rows would be beyond it. None is: where $N = k e^{-d_k/m}$ rows are missing, the chance of that is
$e^{-N}$. Tails lighter than exponential, such as normal ones, have fewer rows beyond than $N$.
"""

from collections.abc import Callable

import numpy as np

from .columns import Columns, Finding

MIN_MISSING_ROWS = 7.0
"""A column has a bound if this many rows are missing beyond it: the chance of none is one in a thousand."""
MIN_NEAREST_ROWS = 10
"""Minimum number of nearest rows from which the end of a column is judged."""

BOUNDED_SUPPORTS: tuple[tuple[str, tuple[Callable[[np.ndarray], np.ndarray], ...]], ...] = (
    ("constraints.unit_interval", (lambda rows: rows, lambda rows: 1.0 - rows)),
    ("constraints.positive", (lambda rows: rows,)),
    ("constraints.less_than(0.0)", (lambda rows: -rows,)),
)
"""Supports, and the distances from their bounds. A column is on the first one whose distances are all positive and crowd at 0."""


def missing_rows(distances: np.ndarray) -> float:
    """Number of rows that a column would have beyond a bound without it, from the distances of its rows."""
    near = round(len(distances) ** (2 / 3))
    if near < MIN_NEAREST_ROWS or distances.min() <= 0.0:
        return 0.0
    nearest = np.partition(distances, near - 1)[:near]
    mean = float(np.mean(nearest.max() - nearest))
    return near * float(np.exp(-nearest.max() / mean)) if mean > 0.0 else 0.0


def bound_of(rows: np.ndarray) -> str | None:
    """The support that contains a table and at whose bounds some columns crowd; `None` if there is no such support."""
    for support, bounds in BOUNDED_SUPPORTS:
        distances = [distance(rows) for distance in bounds]
        if all(each.min() > 0.0 and max(map(missing_rows, each.T)) >= MIN_MISSING_ROWS for each in distances):
            return support
    return None


def undeclared_bounds(columns: Columns) -> Finding | None:
    """Columns on the real line that crowd at a bound and never cross it."""
    groups = {place: numbers for place, numbers in columns.supported.items() if columns.real[numbers].all()}
    found = {
        place: support
        for place, numbers in groups.items()
        if (support := bound_of(columns.rows[:, numbers])) is not None
    }
    if not found:
        return None
    first = groups[next(iter(found))]
    rows, crowded = columns.rows[:, first], [number for place in found for number in groups[place]]
    return Finding(
        "`support` for columns that end at a bound",
        f"{columns.listed(crowded)} without one, from {rows.min():.3g} to {rows.max():.3g} in the first",
        "On the real line a part of the draws lies beyond the bound, where no row is",
        _declared(columns, found),
    )


def _declared(columns: Columns, found: dict[str | int | None, str]) -> str:
    """A line of code that makes some supports part of the argument `support`."""
    if None in found:
        return f"support = {found[None]}"
    if not columns.real.all():
        return "; ".join(f"support[{place!r}] = {support}" for place, support in found.items())
    if columns.table.sites is not None:
        return f"support = {{{', '.join(f'{place!r}: {support}' for place, support in found.items())}}}"
    if len(set(found.values())) == 1 and len(found) == columns.count:
        return f"support = [{next(iter(found.values()))}] * {columns.count}"
    entries = "; ".join(f"support[{place}] = {support}" for place, support in found.items())
    return f"support = [constraints.real] * {columns.count}; {entries}"
