r"""Check for undeclared bounds: columns on one side of 0, or between 0 and 1, whose support is the real line.

The values of a positive column either accumulate at 0 or stay away from it. If they accumulate, a density on the real line puts
a part of its draws below 0, where no row can be. The rows nearest to the bound distinguish the two cases. Let
$d_1 < \dots < d_k$ be their distances from the bound and $m$ the mean of $d_k - d_i$. If the density decayed exponentially
towards the bound, as in a tail, $N = k e^{-d_k/m}$ rows would be expected beyond it. There are none, which has probability
$e^{-N}$ for such a tail. Tails lighter than exponential, such as normal tails, have fewer than $N$ rows beyond the bound.
"""

from collections.abc import Callable

import numpy as np

from .columns import Columns, Finding

MIN_MISSING_ROWS = 7.0
"""Minimum number of expected rows beyond a bound; to find none of them then has a probability of one in a thousand."""
MIN_NEAREST_ROWS = 10
"""Minimum number of rows nearest to a bound from which its presence is judged."""

BOUNDED_SUPPORTS: tuple[tuple[str, tuple[Callable[[np.ndarray], np.ndarray], ...]], ...] = (
    ("constraints.unit_interval", (lambda rows: rows, lambda rows: 1.0 - rows)),
    ("constraints.positive", (lambda rows: rows,)),
    ("constraints.less_than(0.0)", (lambda rows: -rows,)),
)
"""Candidate supports with the distances from their bounds; the first whose distances are positive and accumulate at 0 is used."""


def missing_rows(distances: np.ndarray) -> float:
    """Expected number of rows beyond a bound if the column were not bounded, from the distances of its rows."""
    near = round(len(distances) ** (2 / 3))
    if near < MIN_NEAREST_ROWS or distances.min() <= 0.0:
        return 0.0
    nearest = np.partition(distances, near - 1)[:near]
    mean = float(np.mean(nearest.max() - nearest))
    return near * float(np.exp(-nearest.max() / mean)) if mean > 0.0 else 0.0


def bound_of(rows: np.ndarray) -> str | None:
    """Find a support that contains a table and at whose bounds some columns accumulate; `None` if there is none."""
    for support, bounds in BOUNDED_SUPPORTS:
        distances = [distance(rows) for distance in bounds]
        if all(each.min() > 0.0 and max(map(missing_rows, each.T)) >= MIN_MISSING_ROWS for each in distances):
            return support
    return None


def undeclared_bounds(columns: Columns) -> Finding | None:
    """Find columns on the real line that accumulate at a bound and never cross it."""
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
    which = " in the first" if len(found) > 1 else ""
    return Finding(
        "`support` for columns that end at a bound",
        f"{columns.listed(crowded)} without one, with values from {rows.min():.3g} to {rows.max():.3g}{which}",
        "With the real line as support, some draws fall beyond the bound, where there are no data",
        _declared(columns, found),
    )


def _declared(columns: Columns, found: dict[str | int | None, str]) -> str:
    """Return the line that adds some supports to the argument `support`."""
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
