"""Columns whose offset takes the digits that tell their rows apart."""

import jax.numpy as jnp
import numpy as np

from .columns import Columns, Finding
from .precision import subtracted
from .singular import ties

MIN_DIFFERENT = 0.5
"""A column loses its digits if less than this share of its different values stay different."""
MAX_ROWS = 2000
"""Maximum number of rows, drawn at random, in which different values are counted."""


def lost_digits(columns: Columns) -> Finding | None:
    """Columns that have ties once JAX's default dtype reads them, and less than half of their different values.

    Dates around 2,460,000 days that differ by hours are an example. Both the values and their images on the real line count.
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
    return Finding(
        f"columns of `{columns.name}` whose rows differ in {dtype}",
        f"{columns.listed(sorted(found))}, with {found[first]} different {dtype} numbers in {min(len(columns.rows), MAX_ROWS)} "
        "rows of the first",
        "An offset takes the digits. A support, if there is one, moves with it",
        "; ".join(subtracted(columns.labels[each], columns.rows[:, each]) for each in sorted(found)),
    )


def _some(table: np.ndarray) -> np.ndarray:
    if len(table) <= MAX_ROWS:
        return table
    return table[np.random.default_rng(0).choice(len(table), MAX_ROWS, replace=False)]
