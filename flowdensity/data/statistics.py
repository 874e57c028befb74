"""Statistics of tables of rows: weights, folds, moments, shrunk covariances and mixtures."""

import warnings

import numpy as np
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

FULL_COVARIANCE_LIMIT = 256
"""Largest dimension with a full covariance. Above it a full matrix would cost more than the network."""
MIN_RELATIVE_DEVIATION = 0.3
"""Smallest standard deviation of a column in a fold, relative to that in all rows: a column may be constant in one fold only."""
FLOAT32_EPS = float(np.finfo(np.float32).eps)
"""Relative precision of float32."""


# Weights and folds --------------------------------------------------------------------------------


def shares(weights: np.ndarray | None, rows: int) -> np.ndarray:
    """Weights normalized to sum 1, shape `(rows,)`; equal weights if `weights` is `None`."""
    return np.full(rows, 1.0 / rows) if weights is None else weights / weights.sum()


def mean_and_error(values: np.ndarray, share: np.ndarray, kind: np.ndarray) -> tuple[float, float]:
    """Weighted mean of one value for each row, and its standard error. Equal rows count as one observation.

    Args:
        values: shape `(rows,)`.
        share: weights of sum 1, shape `(rows,)`.
        kind: number of the distinct row that each row equals, shape `(rows,)`.
    """
    mean = float(share @ values)
    return mean, float(np.linalg.norm(np.bincount(kind, share * (values - mean))))


def resampled(table: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
    """Resample `count` rows of a table, in their order, each about as often as its weight says.

    This is for methods that accept no weights or are slow. Every call takes the same rows. Systematic resampling runs over a
    random order of the rows, because tables may alternate.
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
    """Indices of the rows in each of `count` folds of a table, shape `(n, dim)`, with about as many distinct rows each.

    Equal rows are in one fold. Every call makes the same folds.
    """
    first, kind = kinds(rows)
    order = np.argsort(first)[np.random.default_rng(0).permutation(len(first))]
    return [np.flatnonzero(np.isin(kind, fold)) for fold in np.array_split(order, count)]


# Moments and covariances --------------------------------------------------------------------------


def is_constant(rows: np.ndarray) -> np.ndarray:
    """Which columns of a table are constant in single precision, shape `(dim,)`."""
    return np.asarray(rows.std(axis=0) <= FLOAT32_EPS * np.abs(rows).max(axis=0))


def moments(table: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column."""
    location = weights @ table
    return location, np.sqrt(weights @ np.square(table - location))


def whitening(
    table: np.ndarray, weights: np.ndarray | None = None, min_deviation: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, root of the covariance and its inverse for a table of shape `(n, dim)`.

    The correlations are shrunk towards zero by the rule of Ledoit and Wolf (2004, J. Multivariate Analysis 88), up to 256
    dimensions. Above, each coordinate is scaled by itself and both roots are vectors.

    Args:
        table: rows.
        weights: of the rows; `None` weighs all alike.
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
    """Log densities of rows, shape `(n, dim)`, under the Gaussian of a `whitening` with full matrices, in nats."""
    white = times_rows(whitener, rows - location)
    return norm.logpdf(white).sum(axis=1) - np.linalg.slogdet(scale)[1]


def _shrunk_correlation(standard: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ledoit and Wolf's estimate for standardized rows, of shape `(n, dim)`, shrunk towards the identity."""
    dim = standard.shape[1]
    weighted = weights[:, None] * standard
    correlation = weighted.T @ standard
    np.fill_diagonal(correlation, 1.0)  # also for a column whose deviation is below its lower bound
    # The variance of a weighted mean of products, summed over all pairs of columns.
    products = np.square(weighted).T @ np.square(standard)
    crossed = correlation * ((np.square(weights)[:, None] * standard).T @ standard)
    noise = np.sum(products - 2.0 * crossed + np.sum(np.square(weights)) * np.square(correlation))
    distance = np.sum(np.square(correlation - np.eye(dim)))
    # 1e-6 keeps exactly collinear columns invertible in float32.
    shrinkage = np.clip(noise / distance, 1e-6, 1.0) if distance > 0.0 else 1.0
    return (1.0 - shrinkage) * correlation + shrinkage * np.eye(dim)


# Mixtures -----------------------------------------------------------------------------------------


def fit_mixture(rows: np.ndarray, components: int, floor: float, starts: int = 1) -> GaussianMixture:
    """Fit a mixture of `components` Gaussians to rows, shape `(n, dim)`, with `floor` added to its variances.

    Expectation and maximization runs from `starts` initial values, and the fit with the largest likelihood is returned.
    """
    mixture = GaussianMixture(components, reg_covar=floor, random_state=0, n_init=starts)
    with warnings.catch_warnings():
        # A mixture that has not converged is judged by its held-out score like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(rows)
