"""Means and shrunk covariances of tables, and their roots: what makes rows white."""

import numpy as np
from scipy.stats import norm

from .weights import shares

FULL_COVARIANCE_LIMIT = 256
"""Above this dimension each coordinate is scaled by itself: a full matrix would cost more than the network."""
LEAST = 0.3
"""Least deviation of a column in a part of the rows, as a fraction of that in all: what varies in others is not constant."""


def whitening(
    table: np.ndarray, weights: np.ndarray | None = None, least: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, root of the covariance and its inverse for a table of shape `(n, dim)`, with deviations of at `least` so much.

    The covariance is shrunk towards its own diagonal scale by Ledoit and Wolf's rule (2004, J. Multivariate
    Analysis 88), up to 256 dimensions; above, each coordinate has its own scale and both roots are vectors.
    """
    weights = shares(weights, len(table))
    location, deviation = moments(table, weights)
    deviation = np.maximum(deviation, least)
    if table.shape[1] > FULL_COVARIANCE_LIMIT:
        return location, deviation, 1.0 / deviation
    values, vectors = np.linalg.eigh(_shrunk_correlation((table - location) / deviation, weights))
    scale = deviation[:, None] * (vectors * np.sqrt(values)) @ vectors.T
    return location, scale, (vectors / np.sqrt(values)) @ vectors.T / deviation


def times_rows(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Product of a matrix, or the vector of a diagonal one, with each row of a table."""
    return rows @ matrix.T if matrix.ndim == 2 else rows * matrix


def gaussian_log_densities(
    rows: np.ndarray, location: np.ndarray, scale: np.ndarray, whitener: np.ndarray
) -> np.ndarray:
    """Log densities of rows, shape `(n, dim)`, under the Gaussian of a `whitening` with full matrices, nats."""
    white = times_rows(whitener, rows - location)
    return norm.logpdf(white).sum(axis=1) - np.linalg.slogdet(scale)[1]


def moments(table: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column."""
    location = weights @ table
    return location, np.sqrt(weights @ np.square(table - location))


def _shrunk_correlation(standard: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ledoit and Wolf's estimate for standardised rows, of shape `(n, dim)`, shrunk towards the identity."""
    dim = standard.shape[1]
    weighted = weights[:, None] * standard
    correlation = weighted.T @ standard
    np.fill_diagonal(correlation, 1.0)  # also where a column is less wide than it is taken to be
    # The variance of a weighted mean of products, summed over all pairs of columns.
    products = np.square(weighted).T @ np.square(standard)
    crossed = correlation * ((np.square(weights)[:, None] * standard).T @ standard)
    noise = np.sum(products - 2.0 * crossed + np.sum(np.square(weights)) * np.square(correlation))
    distance = np.sum(np.square(correlation - np.eye(dim)))
    # 1e-6 keeps exactly collinear columns invertible in float32.
    shrinkage = np.clip(noise / distance, 1e-6, 1.0) if distance > 0.0 else 1.0
    return (1.0 - shrinkage) * correlation + shrinkage * np.eye(dim)
