r"""Warning for tables whose rows are probably not events: a transposed table, or draws in chains.

An array does not say what its axes are. If it has far fewer rows than coordinates, as a transposed table has, a density could
not be learned from its rows anyway, so the warning is justified in either case.
"""

import numpy as np

from .._warnings import warn
from .containers import Handed
from .sites import Sites

COORDINATES_PER_ROW = 4
r"""Minimum number of coordinates per row at which the warning is raised.

A transposed table with fewer coordinates per row is not noticed, but such a table is hardly enough to learn from in either
orientation. In the right orientation it has 4 rows per column. If the true covariance is the identity, the eigenvalues of the
sample covariance then range from 0.25 to 2.25, $(1 \mp 4^{-1/2})^2$ (Marchenko and Pastur 1967), so even the reference is off
by a factor of two.
"""
MAX_NAMED_SHAPES = 8
"""Maximum number of columns whose shapes are listed in a message."""


def warn_if_transposed(caller: str, handed: Handed, rows: np.ndarray, sites: Sites | None) -> None:
    """Warn if there are so few rows that they may be columns or chains.

    Args:
        caller: public function named in the warning.
        handed: the argument. There is no warning if named dimensions identify its draws.
        rows: the rows that were read from it, shape `(n, *event_shape)`.
        sites: names and shapes of the values in one event; None if they have no names.
    """
    coordinates = rows[0].size
    if handed.lines.turned is None or coordinates < COORDINATES_PER_ROW * len(rows):
        return
    shapes = None if sites is None else {n: (len(rows), *shape) for n, shape in zip(*sites, strict=True)}
    got = (
        f"{len(shapes)} columns"
        if shapes is not None and len(shapes) > MAX_NAMED_SHAPES
        else f"shape {shapes or rows.shape}"
    )
    warn(
        f"{caller} expected `{handed.name}` with one event in each row; got {got}, {len(rows)} events of "
        f"{coordinates} coordinates, too few to learn from. The table may be transposed, or its rows may be chains. In the "
        f"second case, numpy.concatenate turns the draws into rows. Fix: {handed.lines.turned}"
    )
