r"""Whether rows are events: a table may come transposed, and draws may come in chains.

An array does not tell what its axes are. But where it has far fewer rows than coordinates, as a transposed table has, nothing
could be learned from its rows anyway, so a warning is right in either case.
"""

import numpy as np

from .._warnings import warn
from .containers import Handed
from .sites import Sites

COORDINATES_PER_ROW = 4
r"""Minimum number of coordinates per row at which a table may be transposed.

A transposed table with fewer rows per column is not noticed, but can hardly be learned in either orientation. If the true
covariance is the identity, the eigenvalues of that of 4 rows per column range from 0.25 to 2.25, $(1 \mp 4^{-1/2})^2$
(Marchenko and Pastur 1967), so even the reference is off by a factor of two.
"""
MAX_NAMED_SHAPES = 8
"""A message lists the shapes of at most this many columns."""


def warn_if_transposed(caller: str, handed: Handed, rows: np.ndarray, sites: Sites | None) -> None:
    """Warn if there are so few rows that they may be columns, or chains.

    Args:
        caller: public function whose name the warning carries.
        handed: the argument; where its draws are told apart by name, their number is as it is meant to be.
        rows: what was read of it, shape `(n, *event_shape)`.
        sites: names and shapes of what one event is made of; None where it has no names.
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
        f"{coordinates} coordinates, too few to learn from. Rows may be what columns should be or, in draws by chain, chains: "
        f"then numpy.concatenate makes rows of the draws. Fix: {handed.lines.turned}"
    )
