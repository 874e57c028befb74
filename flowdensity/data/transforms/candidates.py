"""Candidate transforms of a table, and the choice between them.

There are two alternatives: transforms of single coordinates, tried in order, and a transform of the radius. To add a transform,
append it to `COORDINATEWISE` if it acts on single coordinates, or to `RADIAL` if it acts on all coordinates together. No other
change is needed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..statistics import (
    FULL_COVARIANCE_LIMIT,
    folds,
    gaussian_log_densities,
    held_out_log_densities,
    resampled,
    whitening,
)
from .interface import AbstractTransform
from .johnson import fit_johnson
from .marginal import fit_marginals
from .radial import fit_radial

Fit: TypeAlias = Callable[[np.ndarray, np.ndarray | None], AbstractTransform | None]
"""A function that fits a transform to a float64 table of shape `(n, dim)` and its weights, which may be `None`. It returns
`None` if the transform does not suit the table."""

COORDINATEWISE: tuple[Fit, ...] = (fit_johnson, fit_marginals)
"""Transforms of single coordinates; each is fitted to the table after the transforms before it."""
RADIAL: tuple[Fit, ...] = (fit_radial,)
"""Transforms of the radius, which replace those of `COORDINATEWISE` if `is_radial` returns True."""

MIN_RADIAL_GAIN = 0.05
"""Minimum gain of a transform of the radius in mean log density, in nats per coordinate."""
NUM_FOLDS = 5
"""Number of folds for the held-out scores."""
MAX_COMPARED_ROWS = 4_000
"""Maximum number of rows used to compare transforms of single coordinates with a transform of the radius."""
MIN_STANDARD_ERRORS = 3.0
"""Minimum gain of a transform of the radius on held-out rows, in standard errors."""


class TransformedTable(NamedTuple):
    """A table and the transforms that have been applied to it.

    Attributes:
        rows: transformed rows, shape `(n, dim)`, float64.
        log_dets: sum of the log determinants at each row, shape `(n,)`.
        transforms: the transforms, in the order in which they were applied.
    """

    rows: np.ndarray
    log_dets: np.ndarray
    transforms: tuple[AbstractTransform, ...] = ()

    def apply(self, candidates: Sequence[Fit], weights: np.ndarray | None) -> Self:
        """Fit the candidates one after another, and apply each that suits the rows."""
        table = self
        for candidate in candidates:
            table = table._apply_one(candidate, weights)
        return table

    def _apply_one(self, fit: Fit, weights: np.ndarray | None) -> Self:
        with jax.enable_x64(True):
            transform = fit(self.rows, weights)
            if transform is None:
                return self
            rows, log_dets = jax.vmap(transform.forward_and_log_det)(jnp.asarray(self.rows))
        # The table is transformed in float64 here, but the model transforms events in JAX's default dtype.
        transform = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), transform)
        return self._replace(
            rows=np.asarray(rows),
            log_dets=self.log_dets + np.asarray(log_dets),
            transforms=(*self.transforms, transform),
        )

    def score(self) -> float:
        """Mean log density of the table under a Gaussian fitted to the transformed rows, in nats."""
        return float(np.mean(gaussian_log_densities(self.rows, *whitening(self.rows)) + self.log_dets))

    def held_out_scores(self) -> np.ndarray:
        """Log density of each row under a mixture of Gaussians fitted to the transformed rows of the other folds, in nats."""
        scores = np.zeros(len(self.rows))
        for held_out in folds(self.rows, NUM_FOLDS):
            scores[held_out] = held_out_log_densities(self.rows, held_out) + self.log_dets[held_out]
        return scores


def choose_transforms(table: np.ndarray, weights: np.ndarray | None = None) -> TransformedTable:
    """Choose and apply the transforms that suit a table; none above `FULL_COVARIANCE_LIMIT` dimensions.

    Args:
        table: float64 array of shape `(n, dim)`.
        weights: weights of the rows; `None` means equal weights.
    """
    plain = untransformed(table)
    if table.shape[1] > FULL_COVARIANCE_LIMIT:
        return plain
    radial = is_radial(resampled(table, weights, min(MAX_COMPARED_ROWS, len(table))))
    return plain.apply(RADIAL if radial else COORDINATEWISE, weights)


def is_radial(table: np.ndarray) -> bool:
    """Return whether a transform of the radius suits a table, shape `(n, dim)`, better than transforms of single coordinates.

    Two comparisons must agree: one in-sample under a single Gaussian, and one on held-out rows under a mixture of Gaussians. The
    second excludes tables with clusters or narrow necks: some of their rows are also far out in many coordinates, but no map of
    the radius makes them normal.
    """
    plain = untransformed(table)
    radial = plain.apply(RADIAL, None)
    min_gain = MIN_RADIAL_GAIN * table.shape[1]
    # Most tables return here, which saves the fits of the transforms of single coordinates.
    if not radial.transforms or radial.score() - plain.score() <= min_gain:
        return False
    coordinatewise = plain.apply(COORDINATEWISE, None)
    if radial.score() - coordinatewise.score() <= min_gain:
        return False
    gains = radial.held_out_scores() - coordinatewise.held_out_scores()
    return bool(gains.mean() > MIN_STANDARD_ERRORS * gains.std() / np.sqrt(len(gains)))


def untransformed(table: np.ndarray) -> TransformedTable:
    """Wrap a table to which no transform has been applied."""
    return TransformedTable(table, np.zeros(len(table)))
