"""Statistics of tables of rows: weights, folds, moments, shrunk covariances and mixtures."""

import warnings

import numpy as np
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

FULL_COVARIANCE_LIMIT = 256
"""Largest dimension with a full covariance matrix; above it, the matrix would cost more than the network."""
MIN_RELATIVE_DEVIATION = 0.3
"""Lower bound on the standard deviation of a column in a fold, relative to all rows, for columns that are constant in a fold."""
COMPARED_COMPONENTS = 4
"""Number of components of the Gaussian mixture that compares transforms by their held-out rows."""
COMPARED_FLOOR = 0.01
"""Constant added to the variances of that mixture, in whitened units. A larger one would hide narrow components, and a table
with components of different widths would seem to have long tails."""
FLOAT32_EPS = float(np.finfo(np.float32).eps)
"""Machine epsilon of float32."""


# Weights and folds --------------------------------------------------------------------------------


def shares(weights: np.ndarray | None, rows: int) -> np.ndarray:
    """Weights normalized to sum 1, shape `(rows,)`; equal weights if `weights` is `None`."""
    return np.full(rows, 1.0 / rows) if weights is None else weights / weights.sum()


def mean_and_error(values: np.ndarray, share: np.ndarray, kind: np.ndarray) -> tuple[float, float]:
    """Weighted mean of one value per row, and its standard error; equal rows count as one observation.

    Args:
        values: one value per row, shape `(rows,)`.
        share: weights with sum 1, shape `(rows,)`.
        kind: index of the distinct row that each row equals, shape `(rows,)`.
    """
    mean = float(share @ values)
    if len(np.unique(kind[share > 0.0])) < 2:
        return mean, abs(mean)  # One observation has no known error, so its mean is not clearly different from zero.
    return mean, float(np.linalg.norm(np.bincount(kind, share * (values - mean))))


def resampled(table: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
    """Resample `count` rows of a table in proportion to their weights, and keep their order.

    Use it for methods that accept no weights or are slow on large tables. Every call returns the same rows. Systematic
    resampling runs over a random permutation of the rows, because tables may be periodic.
    """
    order = np.random.default_rng(0).permutation(len(table))
    ends = np.cumsum(shares(weights, len(table))[order])
    return table[np.sort(order[np.searchsorted(ends / ends[-1], (np.arange(count) + 0.5) / count)])]


def kinds(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct rows of a table of shape `(n, dim)`.

    Returns:
        The index of the first row of each kind, shape `(kinds,)`, and the kind of each row, shape `(n,)`.
    """
    _, first, kind = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, kind.ravel()


def folds(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Split a table of shape `(n, dim)` into `count` folds with about the same number of distinct rows; return row indices.

    Equal rows are in the same fold. Every call returns the same folds.
    """
    first, kind = kinds(rows)
    order = np.argsort(first)[np.random.default_rng(0).permutation(len(first))]
    return [np.flatnonzero(np.isin(kind, fold)) for fold in np.array_split(order, count)]


# Moments and covariances --------------------------------------------------------------------------


def is_constant(rows: np.ndarray) -> np.ndarray:
    """Mask of the columns of a table that are constant in single precision, shape `(dim,)`."""
    return np.asarray(rows.std(axis=0) <= FLOAT32_EPS * np.abs(rows).max(axis=0))


def moments(table: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column."""
    location = weights @ table
    return location, np.sqrt(weights @ np.square(table - location))


def whitening(
    table: np.ndarray, weights: np.ndarray | None = None, min_deviation: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, root of the covariance, and inverse of that root, for a table of shape `(n, dim)`.

    Up to 256 dimensions, the correlations are shrunk towards zero by the rule of Ledoit and Wolf (2004, J. Multivariate Analysis
    88). Above, each coordinate is scaled separately, and both roots are vectors.

    Args:
        table: rows, shape `(n, dim)`.
        weights: weights of the rows; `None` means equal weights.
        min_deviation: lower bound on the standard deviations.
    """
    weights = shares(weights, len(table))
    location, deviation = moments(table, weights)
    deviation = np.maximum(deviation, min_deviation)
    if table.shape[1] > FULL_COVARIANCE_LIMIT:
        return location, deviation, 1.0 / deviation
    values, vectors = np.linalg.eigh(_shrunk_correlation((table - location) / deviation, weights))
    scale = deviation[:, None] * (vectors * np.sqrt(values)) @ vectors.T
    return location, scale, (vectors / np.sqrt(values)) @ vectors.T / deviation


def times_rows(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Product of a matrix, or of a diagonal matrix given as a vector, with each row of a table."""
    return rows @ matrix.T if matrix.ndim == 2 else rows * matrix


def gaussian_log_densities(
    rows: np.ndarray, location: np.ndarray, scale: np.ndarray, whitener: np.ndarray
) -> np.ndarray:
    """Log densities of rows, shape `(n, dim)`, in nats, under the Gaussian given by `whitening` with full matrices."""
    white = times_rows(whitener, rows - location)
    return norm.logpdf(white).sum(axis=1) - np.linalg.slogdet(scale)[1]


def _shrunk_correlation(standard: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlation matrix of standardized rows, shape `(n, dim)`, shrunk towards the identity (Ledoit and Wolf 2004)."""
    dim = standard.shape[1]
    weighted = weights[:, None] * standard
    correlation = weighted.T @ standard
    np.fill_diagonal(
        correlation, 1.0
    )  # A column whose deviation was below its lower bound has a smaller diagonal entry.
    # The sampling noise is the variance of a weighted mean of products, summed over all pairs of columns.
    products = np.square(weighted).T @ np.square(standard)
    crossed = correlation * ((np.square(weights)[:, None] * standard).T @ standard)
    noise = np.sum(products - 2.0 * crossed + np.sum(np.square(weights)) * np.square(correlation))
    distance = np.sum(np.square(correlation - np.eye(dim)))
    # A shrinkage of at least 1e-6 keeps the matrix of exactly collinear columns invertible in float32.
    shrinkage = np.clip(noise / distance, 1e-6, 1.0) if distance > 0.0 else 1.0
    return (1.0 - shrinkage) * correlation + shrinkage * np.eye(dim)


# Mixtures -----------------------------------------------------------------------------------------


def fit_mixture(rows: np.ndarray, components: int, floor: float, starts: int = 1) -> GaussianMixture:
    """Fit a mixture of `components` Gaussians to rows, shape `(n, dim)`, with `floor` added to the variances.

    Expectation-maximization runs from `starts` initial values, and the fit with the largest likelihood is returned.
    """
    mixture = GaussianMixture(components, reg_covar=floor, random_state=0, n_init=starts)
    with warnings.catch_warnings():
        # A mixture that has not converged is still usable: like any other, it is judged by its held-out score.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(rows)


def held_out_log_densities(rows: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Log densities of the rows `held_out` of a table under a small mixture of Gaussians fitted to the others, in nats.

    Transforms of a table are compared by these: a transform is useful only if it does more than a mixture can do without it.

    Args:
        rows: table, shape `(n, dim)`, with at most 256 columns.
        held_out: indices of the held-out rows.
    """
    train = np.delete(rows, held_out, axis=0)
    location, scale, whitener = whitening(train, min_deviation=MIN_RELATIVE_DEVIATION * rows.std(axis=0))
    mixture = fit_mixture(times_rows(whitener, train - location), COMPARED_COMPONENTS, COMPARED_FLOOR)
    white = times_rows(whitener, rows[held_out] - location)
    return np.asarray(mixture.score_samples(white)) - np.linalg.slogdet(scale)[1]
