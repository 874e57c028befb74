r"""Johnson's SU transform, which makes coordinates with long tails nearly normal.

The transform is $z = \gamma + \delta\operatorname{arsinh}((u - \xi)/\lambda)$ with positive $\lambda$ and $\delta$ (Johnson
1949, Biometrika 36). It is linear near $\xi$ and logarithmic far out, so Gaussian tails in $z$ correspond to lognormal tails in
$u$.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from ..._registry import savable
from ..._typing import Array, Bool, Float, Scalar
from ..statistics import FLOAT32_EPS, is_constant, resampled
from .interface import AbstractTransform, name_list

MIN_GAIN = 0.05
"""A coordinate is transformed if that raises the mean log density of a row by more than this many nats."""
MIN_ROWS = 20
"""Minimum number of rows; in smaller tables no coordinate is transformed."""
MAX_ROWS = 4_000
"""Maximum number of rows used to fit the parameters."""
PARAMETER_BOUNDS = ((-10.0, 10.0), (np.log(0.05), np.log(20.0)), (-10.0, 10.0), (np.log(0.25), np.log(20.0)))
"""Bounds of xi, log lambda, gamma and log delta, with lengths in interquartile ranges, so that ties cannot cause a sharp peak."""


@savable
class JohnsonSU(AbstractTransform):
    """Johnson's SU transform of the `active` coordinates of a vector; the others stay unchanged.

    Args:
        parameters: xi, lambda, gamma and delta of each coordinate, shape `(4, dim)`.
        active: mask of the coordinates that are transformed, shape `(dim,)`.
    """

    parameters: Float[Array, "4 dim"]
    active: Bool[Array, " dim"]

    def __init__(self, parameters: np.ndarray, active: np.ndarray):
        self.parameters = jnp.asarray(parameters, float)
        self.active = jnp.asarray(active)

    def __check_init__(self) -> None:
        if self.parameters.shape != (4, *self.active.shape):
            raise ValueError(
                f"JohnsonSU expected `parameters` with shape {(4, *self.active.shape)}; got {self.parameters.shape}"
            )

    def forward_and_log_det(self, x: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        xi, width, gamma, delta = self.parameters
        ratio = (x - xi) / width
        log_slope = jnp.log(delta / width) - 0.5 * jnp.log1p(jnp.square(ratio))
        y = jnp.where(self.active, gamma + delta * jnp.arcsinh(ratio), x)
        return y, jnp.sum(jnp.where(self.active, log_slope, 0.0))

    def inverse(self, y: Float[Array, " dim"]) -> Float[Array, " dim"]:
        xi, width, gamma, delta = self.parameters
        # An inactive coordinate must not overflow in the unused branch of `where`: its derivative would be NaN.
        ratio = jnp.where(self.active, (y - gamma) / delta, 0.0)
        return jnp.where(self.active, xi + width * jnp.sinh(ratio), y)

    def summary(self, names: Sequence[str]) -> str:
        return f"Johnson SU transform of {name_list(names, np.flatnonzero(self.active))}"


def fit_johnson(table: np.ndarray, weights: np.ndarray | None = None) -> JohnsonSU | None:
    """Fit each coordinate of a table by maximum likelihood, and choose the coordinates to transform.

    The gain of a transform is the increase of the mean log density of the rows under a Gaussian fitted to all coordinates
    together. A coordinate is transformed if its gain exceeds `MIN_GAIN` nats plus twice the expected gain of two additional
    parameters on normal rows (Akaike 1974). In tables with clusters the transform can reduce the log density, because it curves
    the lines between the clusters.

    Args:
        table: float64 array of shape `(n, dim)`.
        weights: weights of the rows; `None` means equal weights.

    Returns:
        The transform; `None` if no coordinate is transformed.
    """
    if len(table) < MIN_ROWS:
        return None
    rows = resampled(table, weights, min(MAX_ROWS, len(table)))
    dim, least = rows.shape[1], MIN_GAIN + 2.0 / len(rows)
    parameters, mapped, gains = (np.stack(parts, axis=-1) for parts in zip(*map(_fit, rows.T), strict=True))
    # Joint correlation of the coordinates before and after the transform: the correlation of any choice is a submatrix of it.
    # It is shrunk by the size of its sampling noise.
    share = max(1e-6, dim / len(rows))
    both = np.concatenate([rows, mapped], axis=1)
    both = (both - both.mean(axis=0)) / np.where(gains > -np.inf, both.reshape(-1, 2, dim).std(axis=0), 1.0).ravel()
    correlation = both.T @ both / len(rows) + share * np.eye(2 * dim)

    def likelihood(active: np.ndarray) -> float:
        chosen = np.arange(dim) + dim * active
        _, log_det = np.linalg.slogdet(correlation[np.ix_(chosen, chosen)])
        return float(gains[active].sum()) - 0.5 * float(log_det)

    active, count = gains > least, -1
    likely = likelihood(active)
    while active.any() and active.sum() != count:
        count = active.sum()
        for coordinate in np.flatnonzero(active)[np.argsort(gains[active])]:
            others = active & (np.arange(dim) != coordinate)
            without = likelihood(others)
            if likely - without < least:
                active, likely = others, without
    if not active.any():
        return None
    return JohnsonSU(np.where(active, parameters, np.array([[0.0], [1.0], [0.0], [1.0]])), active)


def _fit(column: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit the parameters of a coordinate; return them, the transformed values, and the gain over a normal law in nats per row."""
    low, middle, high = np.percentile(column, [25.0, 50.0, 75.0])
    # The unit has a lower bound, so that rows that differ after the transform also differ in single precision before it.
    unit = max(high - low or column.std(), 1e-3 * column.std(), 2e3 * FLOAT32_EPS * np.abs(column).max())
    if is_constant(column):
        return np.array([0.0, 1.0, 0.0, 1.0]), column, -np.inf
    standard = (column - middle) / unit

    def at(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        xi, log_width, gamma, log_delta = parameters
        ratio = (standard - xi) / np.exp(log_width)
        mapped = gamma + np.exp(log_delta) * np.arcsinh(ratio)
        return mapped, norm.logpdf(mapped) + log_delta - log_width - 0.5 * np.log1p(np.square(ratio))

    def loss(parameters: np.ndarray) -> float:
        return -float(np.mean(at(parameters)[1]))

    best = minimize(loss, np.array([0.0, 0.0, 0.0, 0.0]), method="L-BFGS-B", bounds=PARAMETER_BOUNDS)
    xi, log_width, gamma, log_delta = best.x
    fitted = np.array([middle + unit * xi, unit * np.exp(log_width), gamma, np.exp(log_delta)])
    gain = -best.fun - norm.logpdf(standard, standard.mean(), standard.std()).mean()
    return fitted, at(best.x)[0], float(gain)
