"""Check for columns whose offset is so large that different rows become equal in JAX's default dtype."""

import jax.numpy as jnp
import numpy as np

from .columns import Columns, Finding
from .precision import subtracted
from .singular import ties

MIN_DIFFERENT = 0.5
"""Minimum share of a column's different values that must stay different in JAX's default dtype."""
MAX_ROWS = 2000
"""Maximum number of rows, drawn at random, in which different values are counted."""


def lost_digits(columns: Columns) -> Finding | None:
    """Find columns that lose their digits in JAX's default dtype: they have ties, and less than half of their different values.

    An example is a column of dates around 2,460,000 days that differ by hours. The check is applied to the values and to their
    images on the real line.
    """
    dtype = np.dtype(jnp.result_type(float))
    found: dict[int, int] = {}
    for table in (columns.rows, columns.line):
        some = _some(table)
        read = some.astype(dtype).astype(np.float64)
        for column in {each.column for each in ties(read)} - set(found):
            before, after = (len(np.unique(rows[:, column])) for rows in (some, read))
            if after < MIN_DIFFERENT * before:
                found[column] = after
    if not found:
        return None
    first = min(found)
    which = "the first has" if len(found) > 1 else "which has"
    return Finding(
        f"columns of `{columns.name}` whose rows differ in {dtype}",
        f"{columns.listed(sorted(found))}, {which} {found[first]} different {dtype} values in "
        f"{min(len(columns.rows), MAX_ROWS)} rows",
        "A large offset uses up the digits: subtract it, also from the support if there is one",
        "; ".join(subtracted(columns.labels[each], columns.rows[:, each]) for each in sorted(found)),
    )


def _some(table: np.ndarray) -> np.ndarray:
    if len(table) <= MAX_ROWS:
        return table
    return table[np.random.default_rng(0).choice(len(table), MAX_ROWS, replace=False)]
