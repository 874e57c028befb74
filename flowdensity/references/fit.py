r"""Fit reference mixtures of Gaussians by expectation-maximization, in float64.

With contexts, the states are first regressed on the contexts. The joint mixture is fitted to the whitened residuals and to the
predictions of the regression, so it sees a context only through these predictions. Its conditional distribution is then
expressed in the coordinates of the states.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from ..data.statistics import fit_mixture, resampled, times_rows, whitening
from ..data.tables import Sample
from .conditional import ConditionalMixture
from .mixture import GaussianMixture

MAX_ROWS = 20_000
"""Maximum number of rows used to fit a mixture."""
RIDGE = 1e-3
"""Ridge penalty of the regression, in units of rows; it stabilizes nearly collinear contexts."""
MIN_SINGULAR_VALUE = 1e-3
"""Principal directions of the predictions with a smaller standard deviation, in units of the states, are dropped."""


class Regression(NamedTuple):
    """Affine regression of states on contexts, with whitened residuals and predictions.

    Attributes:
        intercept: intercept of the regression, shape `(dim,)`.
        slopes: slopes of the regression, shape `(dim, context_dim)`.
        location: mean of the residuals, shape `(dim,)`.
        scale: root of the covariance of the residuals, shape `(dim, dim)`.
        whitener: inverse of `scale`.
        projection: linear map from contexts to summaries, shape `(summary, context_dim)`. The summaries are the whitened
            principal components of the predictions.
    """

    intercept: np.ndarray
    slopes: np.ndarray
    location: np.ndarray
    scale: np.ndarray
    whitener: np.ndarray
    projection: np.ndarray

    def rows(self, states: np.ndarray, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whitened residuals, shape `(n, dim)`, and summaries of the contexts, shape `(n, summary)`."""
        residuals = states - self.intercept - contexts @ self.slopes.T - self.location
        return times_rows(self.whitener, residuals), contexts @ self.projection.T


@dataclass(frozen=True)
class FittedMixture:
    """Joint mixture of Gaussians for whitened residuals and context summaries.

    Attributes:
        regression: the regression that gives the residuals and the summaries.
        weights: weights of the components, shape `(components,)`.
        means: means of the components, shape `(components, dim + summary)`.
        covariances: covariances of the components, shape `(components, dim + summary, dim + summary)`.
    """

    regression: Regression
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @property
    def dim(self) -> int:
        """Dimension of the states."""
        return len(self.regression.intercept)

    @property
    def directions(self) -> int:
        """Dimension of the summary of a context."""
        return len(self.regression.projection)

    def log_densities(self, table: Sample) -> np.ndarray:
        """Log densities of states given their contexts, in nats, shape `(rows,)`."""
        residuals, summaries = self.regression.rows(*arrays(table))
        joint = self._log_joint(np.concatenate([residuals, summaries], axis=1), 0)
        scale = np.linalg.slogdet(self.regression.scale)[1]
        return joint - self._log_joint(summaries, self.dim) - scale

    def _log_joint(self, rows: np.ndarray, first: int) -> np.ndarray:
        """Log densities of rows under the joint mixture, marginalized to the coordinates from `first` on."""
        each = [
            np.log(weight) + _log_normal(rows, mean[first:], covariance[first:, first:])
            for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True)
        ]
        return np.asarray(logsumexp(each, axis=0))

    def reference(self) -> GaussianMixture | ConditionalMixture:
        """The mixture for whitened states; with contexts, the mixture conditional on a context."""
        dim, regression = self.dim, self.regression
        means, summary_means = self.means[:, :dim], self.means[:, dim:]
        within, across, summaries = (
            self.covariances[:, :dim, :dim],
            self.covariances[:, :dim, dim:],
            self.covariances[:, dim:, dim:],
        )
        # Conditioning each Gaussian on the summary is a linear regression of the residuals within that component.
        gains = np.swapaxes(np.linalg.solve(summaries, np.swapaxes(across, 1, 2)), 1, 2)
        conditional = within - gains @ np.swapaxes(across, 1, 2)
        offsets = means - np.einsum("kij,kj->ki", gains, summary_means)
        mixture = GaussianMixture(
            self.weights,
            regression.intercept + regression.location + offsets @ regression.scale.T,
            regression.scale @ conditional @ regression.scale.T,
        )
        if not regression.slopes.shape[1]:
            return mixture
        slopes = regression.slopes + regression.scale @ gains @ regression.projection
        roots = np.linalg.cholesky(summaries)
        whiteners = [solve_triangular(root, np.eye(len(root)), lower=True) for root in roots]
        axes = np.asarray(mixture.axes, np.float64)
        return ConditionalMixture(
            mixture,
            jnp.asarray(np.swapaxes(axes, 1, 2) @ slopes, float),
            jnp.asarray(regression.projection, float),
            jnp.asarray(summary_means, float),
            jnp.asarray(np.stack(whiteners), float),
        )


def fit_reference(
    table: Sample, components: int, floor: float, starts: int = 1, directions: int | None = None
) -> FittedMixture:
    """Fit a mixture to whitened rows, of which at most 20,000 are used.

    Args:
        table: whitened states and their contexts.
        components: number of Gaussians.
        floor: constant added to the variances of the components, as a fraction of the variance of the residuals.
        starts: number of initial values for expectation-maximization; the best fit is returned.
        directions: maximum dimension of the summary of the contexts; None means no maximum.
    """
    states, contexts = arrays(table)
    weights = None if table.weights is None else np.asarray(table.weights, np.float64)
    rows = resampled(np.concatenate([states, contexts], axis=1), weights, min(MAX_ROWS, len(states)))
    states, contexts = np.split(rows, [states.shape[1]], axis=1)
    regression = _regress(states, contexts, directions) if contexts.shape[1] else _no_regression(states.shape[1])
    mixture: Any = fit_mixture(np.concatenate(regression.rows(states, contexts), axis=1), components, floor, starts)
    return FittedMixture(regression, mixture.weights_, mixture.means_, mixture.covariances_)


def arrays(table: Sample) -> tuple[np.ndarray, np.ndarray]:
    """States and contexts of a table, in float64."""
    return np.asarray(table.states, np.float64), np.asarray(table.contexts, np.float64)


def _regress(states: np.ndarray, contexts: np.ndarray, most: int | None) -> Regression:
    """Ridge regression of states on contexts.

    A summary has at most `most` principal directions of the predictions; None keeps those above `MIN_SINGULAR_VALUE`.
    """
    intercept, center = states.mean(axis=0), contexts.mean(axis=0)
    moved = contexts - center
    penalty = RIDGE * np.eye(contexts.shape[1])
    slopes = np.linalg.solve(moved.T @ moved + penalty, moved.T @ (states - intercept)).T
    predictions = moved @ slopes.T
    location, scale, whitener = whitening(states - intercept - predictions)
    _, sizes, directions = np.linalg.svd(predictions / np.sqrt(len(states)), full_matrices=False)
    several = int(np.count_nonzero(sizes > MIN_SINGULAR_VALUE)) if most is None else most
    projection = (directions[:several] / sizes[:several, None]) @ slopes
    return Regression(intercept - slopes @ center, slopes, location, scale, whitener, projection)


def _no_regression(dim: int) -> Regression:
    return Regression(np.zeros(dim), np.zeros((dim, 0)), np.zeros(dim), np.eye(dim), np.eye(dim), np.zeros((0, 0)))


def _log_normal(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    root = np.linalg.cholesky(covariance)
    white = solve_triangular(root, (rows - mean).T, lower=True)
    constant = 0.5 * len(mean) * np.log(2.0 * np.pi) + np.sum(np.log(np.diagonal(root)))
    return -0.5 * np.sum(np.square(white), axis=0) - constant
