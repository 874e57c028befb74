"""Check for columns that are functions of others, so that the rows lie on a surface and the density grows without bound.

The check finds three kinds of functions: linear combinations, monotone functions of one other column (`log_tau` and `tau`), and
quadratic polynomials of other columns and of the logarithms of positive columns (`theta = mu + tau * z` and its parts).
"""

import math

import numpy as np
from scipy.stats import rankdata

from .columns import Columns, Finding
from .statistics import FULL_COVARIANCE_LIMIT
from .supports import joint

FLAT_VARIANCE = 1e-7
"""Share of the variance below which a direction is flat; float32 resolves differences of this size."""
MAX_ROWS = 2000
"""Maximum number of rows, drawn at random, in which functions of columns are searched."""
MIN_ROWS = 20
"""Minimum number of rows; fewer rows can have the same order in two columns by chance."""
MAX_FEATURES = 300
"""Maximum number of columns, logarithms and products for which polynomials are fitted."""
RIDGE = 1e-11
"""Ridge penalty of the least squares fits, relative to the variances of the features, far below `FLAT_VARIANCE`."""
MIN_RATIO = 2.0
"""Minimum ratio of the values in a column whose logarithm is a feature; below it, the logarithm is a quadratic polynomial."""


def relations(columns: Columns) -> Finding | None:
    """Find columns that are functions of others."""
    column = dependent(columns)
    if column is not None:
        return Finding(
            f"linearly independent columns in `{columns.name}`",
            f"linearly dependent columns, including {columns.labels[column]}",
            "A density learned from them grows without bound",
            _dropped(columns, [column]),
        )
    found = functions(columns)
    if not found:
        return None
    return Finding(
        f"columns of `{columns.name}` that are not functions of others",
        f"{columns.listed(found)}, which {'follows' if len(found) == 1 else 'follow'} from others",
        "The rows lie on a surface, and a density learned from them grows without bound. Compute these columns from the others",
        _dropped(columns, found),
    )


def dependent(columns: Columns) -> int | None:
    """Find a column that is a linear combination of others, in the user's units or on the real line; `None` if there is none."""
    rows = columns.rows
    if rows.shape[1] > FULL_COVARIANCE_LIMIT or len(rows) < 2 * rows.shape[1]:
        return None
    # Columns on a simplex and similar supports sum to a constant by definition, so these are only checked on the real line.
    for each in (columns.free, rows) if columns.free.shape == rows.shape else (columns.free,):
        values, vectors = np.linalg.eigh(np.atleast_2d(np.corrcoef(each, rowvar=False)))
        if values[0] < FLAT_VARIANCE:
            return int(np.argmax(np.abs(vectors[:, 0])))
    return None


def functions(columns: Columns) -> list[int]:
    """Find columns that are smooth functions of others, in the site with the most such columns."""
    candidates = np.flatnonzero(columns.separate)
    if len(candidates) > FULL_COVARIANCE_LIMIT or len(candidates) < 2:
        return []
    rows = columns.rows[:, candidates]
    if len(rows) > MAX_ROWS:
        rows = rows[np.random.default_rng(0).choice(len(rows), MAX_ROWS, replace=False)]
    varying = np.ptp(rows, axis=0) > 0.0
    candidates, rows = candidates[varying], rows[:, varying]
    found = candidates[monotone(rows) | polynomial(rows)]
    groups = [[column for column in group if column in found] for group in columns.supported.values()]
    # If sites are tied, choose the last one, because computed columns usually come after the columns they are computed from.
    return [int(column) for column in max(reversed(groups), key=len)]


def monotone(rows: np.ndarray) -> np.ndarray:
    """Mask of the columns whose rows have the same order as in another column, or the reverse order."""
    if len(rows) < MIN_ROWS:
        return np.zeros(rows.shape[1], bool)
    ranks = np.abs(np.corrcoef(rankdata(rows, axis=0), rowvar=False)) - 2.0 * np.eye(rows.shape[1])
    return np.asarray(ranks.max(axis=0) > 1.0 - 1e-12)


def polynomial(rows: np.ndarray) -> np.ndarray:
    """Mask of the columns that are, or whose logarithms are, quadratic polynomials of other columns and their logarithms."""
    found = np.zeros(rows.shape[1], bool)
    features, owners = _features(rows)
    if features.shape[1] > min(MAX_FEATURES, 0.8 * len(rows) - MIN_ROWS):
        return found
    # A flat direction is necessary but not sufficient, because products of narrow columns are nearly collinear too.
    gram = features.T @ features / len(features)
    if np.linalg.eigvalsh(gram)[0] > FLAT_VARIANCE:
        return found
    for target in range(rows.shape[1] + sum(_is_wide(column) for column in rows.T)):
        others = np.all(owners != owners[:, [target]], axis=0)
        left = features[:, target] - features[:, others] @ _coefficients(
            gram[np.ix_(others, others)], gram[others, target]
        )
        found[owners[0, target]] |= _is_nothing(left, features[:, target])
    return found


def _features(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the features and the two columns from which each is computed.

    The features are standardized columns, then their logarithms, then products of two columns.
    """
    standard = _standardized(rows)
    wide = np.flatnonzero([_is_wide(column) for column in rows.T])
    first, second = np.triu_indices(rows.shape[1])
    products = standard[:, first] * standard[:, second]
    # Drop constant products, such as the square of a standardized column with two equally frequent values.
    first, second, products = (each[..., products.std(axis=0) > FLAT_VARIANCE] for each in (first, second, products))
    single = np.concatenate([np.arange(rows.shape[1]), wide])
    features = [standard, _standardized(np.log(rows[:, wide])), _standardized(products)]
    return np.concatenate(features, axis=1), np.stack([np.append(single, first), np.append(single, second)])


def _standardized(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


def _is_wide(column: np.ndarray) -> bool:
    return bool(column.min() > 0.0 and column.max() >= MIN_RATIO * column.min())


def _coefficients(gram: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Least squares coefficients, with a ridge penalty for collinear features."""
    return np.linalg.solve(gram + RIDGE * np.eye(len(gram)), moments)


def _is_nothing(left: np.ndarray, target: np.ndarray) -> bool:
    """Return whether the residuals are negligible in at least 90 % of the rows, so that a few large rows do not decide."""
    return bool(np.quantile(np.abs(left), 0.9) < math.sqrt(FLAT_VARIANCE) * np.ptp(np.quantile(target, [0.25, 0.75])))


def _dropped(columns: Columns, found: list[int]) -> str:
    """Return the line that drops some columns of one site and their supports."""
    sites, name = columns.table.sites, columns.name
    if sites is None:
        if columns.table.rows.ndim != 2:
            return "leave them out"
        line = f"{name} = numpy.delete({name}, {found}, axis=1)"
        if not isinstance(columns.table.support, joint):
            return line
        return (
            f"{line}; support = [support[column] for column in {[i for i in range(columns.count) if i not in found]}]"
        )
    site = sites.site_of(found[0])
    if len(found) < len(columns.supported[site]):
        return columns.handed.without(site, [column - int(columns.supported[site][0]) for column in found])
    line = columns.handed.without(site)
    return line if columns.real[found].all() else f"{line}; support.pop({site!r})"
