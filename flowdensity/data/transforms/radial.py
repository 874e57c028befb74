r"""Radial Gaussianization, which makes rows with long tails in all directions normal by a map of their radius.

In some tables a few rows are a hundred times as far out as others, in any direction: returns on days of high volatility, or
patches of a photograph with high contrast. Maps of single coordinates cannot make such rows normal, because the spread of each
coordinate grows with the size of the others. Let $m$ be the center and $\Sigma$ the scatter matrix of all rows. The map (Lyu
and Simoncelli 2009, Neural Computation 21)

$$u \to m + \sqrt{\frac{\log(1 + s)}{s}}\,(u - m), \qquad s = \frac1k (u - m)^\top\Sigma^{-1}(u - m),$$

keeps directions and maps the radius $r$, measured with $\Sigma$, to the square root of $k\log(1 + r^2/k)$. Near the center it
is the identity. Far out, normal tails correspond to those of Student's $t$ law with $k$ degrees of freedom, up to a power of
the logarithm. The map is smooth everywhere, and its inverse and its log determinant have closed forms.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar

from ..._registry import savable
from ..._typing import Array, Float, Scalar
from ..statistics import is_constant, resampled, times_rows, whitening
from .interface import AbstractTransform

MIN_ROWS = 100
"""Minimum number of rows; smaller tables are not transformed."""
MAX_ROWS = 20_000
"""Maximum number of rows used to fit the center, the scatter matrix and the degrees of freedom."""
NUM_ITERATIONS = 10
"""Number of alternating updates of the scatter matrix and the degrees of freedom."""
MAX_DEGREES = 1e4
"""Maximum degrees of freedom, at which the map is nearly the identity."""
SAFE_DEVIATIONS = 6.0
"""The inverse must not overflow up to this many standard deviations beyond the typical radius of normal rows."""
MAX_EXPONENT = 80.0
"""Maximum exponent of the inverse at the safe radius; float32 overflows at 88."""
LOG_SPREAD_BOUNDS = (2.0 * math.log(1e-4), 2.0 * math.log(1e3))
"""Bounds on the log of the squared radius where the map departs from the identity, relative to the median squared radius."""
SPIKE_SHARE = 0.01
"""A table is not transformed if at least this share of its rows forms a spike at the center."""
SPIKE_RADIUS = 1e-4
"""Radius of a spike at the center, relative to the median radius."""
SERIES_END = 0.01
"""Argument below which a power series replaces a quotient, whose derivatives would lose digits in single precision."""
LOG1P_SERIES = [(-1.0) ** n / (n + 1) for n in reversed(range(8))]
"""Coefficients of log(1 + x) / x, highest power first."""
EXPM1_SERIES = [1.0 / math.factorial(n + 1) for n in reversed(range(8))]
"""Coefficients of (exp(x) - 1) / x, highest power first."""


@savable
class RadialGaussianization(AbstractTransform):
    """Radial Gaussianization of a vector.

    Args:
        center: the fixed point of the map, shape `(dim,)`.
        whitener: a root of the inverse of the scatter matrix, shape `(dim, dim)`.
        degrees: degrees of freedom, positive; fewer correspond to heavier tails.
    """

    center: Float[Array, " dim"]
    whitener: Float[Array, "dim dim"]
    degrees: Scalar

    def __init__(self, center: np.ndarray, whitener: np.ndarray, degrees: float):
        self.center = jnp.asarray(center, float)
        self.whitener = jnp.asarray(whitener, float)
        self.degrees = jnp.asarray(degrees, float)

    def __check_init__(self) -> None:
        if self.whitener.shape != 2 * self.center.shape:
            raise ValueError(
                f"RadialGaussianization expected `whitener` with shape {2 * self.center.shape}; got {self.whitener.shape}"
            )

    def forward_and_log_det(self, x: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        ratio = self._ratio(x)
        log_factor = 0.5 * jnp.log(_over(jnp.log1p, LOG1P_SERIES, ratio))
        y = self.center + jnp.exp(log_factor) * (x - self.center)
        return y, (x.size - 2) * log_factor - jnp.log1p(ratio)

    def inverse(self, y: Float[Array, " dim"]) -> Float[Array, " dim"]:
        factor = jnp.sqrt(_over(jnp.expm1, EXPM1_SERIES, self._ratio(y)))
        return self.center + factor * (y - self.center)

    def summary(self, names: Sequence[str]) -> str:
        return f"radial Gaussianization with {float(self.degrees):.2g} degrees of freedom"

    def _ratio(self, x: Float[Array, " dim"]) -> Scalar:
        """Squared radius divided by the degrees of freedom."""
        return jnp.sum(jnp.square(self.whitener @ (x - self.center))) / self.degrees


def _over(function: Callable[[Scalar], Scalar], series: Sequence[float], x: Scalar) -> Scalar:
    """Compute `function(x) / x` for `x >= 0` and a function with `function(0) = 0`, with accurate derivatives down to 0."""
    away, near = jnp.maximum(x, SERIES_END), jnp.minimum(x, SERIES_END)
    # Use weakly typed coefficients, so that the polynomial follows the dtype of `x`.
    polynomial = reduce(lambda value, coefficient: value * near + coefficient, series, jnp.zeros_like(near))
    return jnp.where(x > SERIES_END, function(away) / away, polynomial)


def fit_radial(table: np.ndarray, weights: np.ndarray | None = None) -> RadialGaussianization | None:
    """Fit radial Gaussianization to a table.

    Two updates alternate. The first computes the center and the scatter matrix of the rows with weights `log(1 + s) / s`, for
    which the transformed rows have scatter 1; these are M-estimates (Maronna 1976, Annals of Statistics 4). The second chooses
    the size of the scatter matrix and the degrees of freedom that maximize the likelihood of the transformed rows under a normal
    law.

    Args:
        table: float64 array of shape `(n, dim)`.
        weights: weights of the rows; `None` means equal weights.

    Returns:
        The transform; `None` if there are too few rows, if some form a spike at the center, or if a column is constant.
    """
    rows = resampled(table, weights, min(MAX_ROWS, len(table)))
    if len(table) < MIN_ROWS or np.any(is_constant(rows)):
        return None
    center, whitener, squares = _white(rows, np.ones(len(rows)))
    for _ in range(NUM_ITERATIONS):
        spread, _ = _likeliest(squares, rows.shape[1])
        center, whitener, squares = _white(rows, _shrinkage(squares / spread))
    near, middle = np.quantile(squares, [SPIKE_SHARE, 0.5])
    if near <= SPIKE_RADIUS**2 * middle:
        return None
    spread, degrees = _likeliest(squares, rows.shape[1])
    return RadialGaussianization(center, whitener * np.sqrt(degrees / spread), degrees)


def _white(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Center and whitener of weighted rows, and the squared radii of the whitened rows."""
    center, _, whitener = whitening(rows, weights)
    return center, whitener, np.square(times_rows(whitener, rows - center)).sum(axis=1)


def _shrinkage(ratio: np.ndarray) -> np.ndarray:
    """Factor by which the map multiplies squared radii, `log(1 + s) / s`."""
    ratio = np.maximum(ratio, np.finfo(float).tiny)
    return np.log1p(ratio) / ratio


def _likeliest(squares: np.ndarray, dim: int) -> tuple[float, float]:
    """Squared radius where the map departs from the identity, and the degrees of freedom, by maximum likelihood."""
    unit = np.median(squares) + np.finfo(float).tiny
    min_degrees = (np.sqrt(dim) + SAFE_DEVIATIONS) ** 2 / MAX_EXPONENT

    def degrees(spread: float) -> float:
        return float(np.clip(dim / np.mean(np.log1p(squares / spread)), min_degrees, MAX_DEGREES))

    def loss(log_spread: float) -> float:
        spread = unit * np.exp(log_spread)
        ratio, best = squares / spread, degrees(spread)
        score = (0.5 * dim - 1.0) * np.log(_shrinkage(ratio)) - (0.5 * best + 1.0) * np.log1p(ratio)
        return -float(np.mean(score) + 0.5 * dim * (np.log(best) - log_spread))

    found: Any = minimize_scalar(loss, bounds=LOG_SPREAD_BOUNDS, method="bounded")
    spread = unit * np.exp(found.x)
    return spread, degrees(spread)
