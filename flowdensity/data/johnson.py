r"""Johnson's SU map: coordinates with long tails on either side, taken to what is close to normal.

$z = \gamma + \delta\operatorname{arsinh}((u - \xi)/\lambda)$ with positive $\lambda$ and $\delta$ (Johnson 1949, Biometrika 36)
is linear about $\xi$ and logarithmic far out: Gaussian tails in $z$ are tails in $u$ like those of a lognormal law.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from .._typing import Array, Bool, Float, Scalar
from .weights import resampled

GAIN = 0.05
"""A coordinate is bent if its rows are likelier by so many nats each than under a normal law."""
EPS32 = float(np.finfo(np.float32).eps)
FEW, ROWS = 20, 4_000
"""At least and at most so many rows tell the shape of a coordinate."""
BOUNDS = ((-10.0, 10.0), (np.log(0.05), np.log(20.0)), (-10.0, 10.0), (np.log(0.25), np.log(20.0)))
"""Of xi and log lambda in units of the interquartile range, gamma and log delta: the first row of many ties is no peak."""


class JohnsonSU(eqx.Module):
    """The map of a vector, coordinate by coordinate; those that are not `bent` stay as they are.

    Args:
        shapes: xi, lambda, gamma and delta of each coordinate, shape `(4, dim)`.
        bent: which coordinates it bends, shape `(dim,)`.
    """

    shapes: Float[Array, "4 dim"]
    bent: Bool[Array, " dim"]

    def __init__(self, shapes: np.ndarray, bent: np.ndarray):
        self.shapes = jnp.asarray(shapes, float)
        self.bent = jnp.asarray(bent)

    def __check_init__(self) -> None:
        if self.shapes.shape != (4, *self.bent.shape):
            raise ValueError(f"{self.bent.shape} coordinates have no shapes of the shape {self.shapes.shape}")

    def straighten(self, values: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        """The vector mapped, and the log-determinant of the map there, in nats."""
        xi, width, gamma, delta = self.shapes
        ratio = (values - xi) / width
        log_slope = jnp.log(delta / width) - 0.5 * jnp.log1p(jnp.square(ratio))
        mapped = jnp.where(self.bent, gamma + delta * jnp.arcsinh(ratio), values)
        return mapped, jnp.sum(jnp.where(self.bent, log_slope, 0.0))

    def bend(self, mapped: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The vector that `straighten` maps to `mapped`."""
        xi, width, gamma, delta = self.shapes
        # What stays as it is must not overflow on the way: its derivative would be no number.
        ratio = jnp.where(self.bent, (mapped - gamma) / delta, 0.0)
        return jnp.where(self.bent, xi + width * jnp.sinh(ratio), mapped)


def fit_johnson(table: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Fit the coordinates of a table, shape `(n, dim)`, by maximum likelihood, and choose those that are bent.

    A coordinate is bent if the rows are likelier by more than `GAIN` nats each under the Gaussian that is fitted to all
    coordinates together, and by twice what two more parameters gain on the average of rows that are normal (Akaike 1974). For
    clusters a bend has a price: lines between them are no longer straight.

    Returns:
        The arguments of `JohnsonSU`; None if no coordinate is bent.
    """
    if len(table) < FEW:
        return None
    rows = resampled(table, weights, min(ROWS, len(table)))
    dim, least = rows.shape[1], GAIN + 2.0 / len(rows)
    shapes, mapped, gains = (np.stack(parts, axis=-1) for parts in zip(*map(_fit, rows.T), strict=True))
    # Of all coordinates as they are and then as they would be: any choice among them is a part of it. It is shrunk by as much
    # as noise adds to it.
    share = max(1e-6, dim / len(rows))
    both = np.concatenate([rows, mapped], axis=1)
    both = (both - both.mean(axis=0)) / np.where(gains > -np.inf, both.reshape(-1, 2, dim).std(axis=0), 1.0).ravel()
    correlation = both.T @ both / len(rows) + share * np.eye(2 * dim)

    def likelihood(bent: np.ndarray) -> float:
        chosen = np.arange(dim) + dim * bent
        _, log_det = np.linalg.slogdet(correlation[np.ix_(chosen, chosen)])
        return float(gains[bent].sum()) - 0.5 * float(log_det)

    bent, left = gains > least, -1
    likely = likelihood(bent)
    while bent.any() and bent.sum() != left:
        left = bent.sum()
        for coordinate in np.flatnonzero(bent)[np.argsort(gains[bent])]:
            without = bent & (np.arange(dim) != coordinate)
            left_out = likelihood(without)
            if likely - left_out < least:
                bent, likely = without, left_out
    if not bent.any():
        return None
    return np.where(bent, shapes, np.array([[0.0], [1.0], [0.0], [1.0]])), bent


def constant(rows: np.ndarray) -> np.ndarray:
    """Which columns of a table do not vary in single precision."""
    return np.asarray(rows.std(axis=0) <= EPS32 * np.abs(rows).max(axis=0))


def _fit(column: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Shape of a coordinate, its values mapped, and by how many nats a row it is likelier than under a normal law."""
    low, middle, high = np.percentile(column, [25.0, 50.0, 75.0])
    # Where most rows are alike to single precision it is wider than they are: what is bent must be told apart there.
    unit = max(high - low or column.std(), 1e-3 * column.std(), 2e3 * EPS32 * np.abs(column).max())
    if constant(column):
        return np.array([0.0, 1.0, 0.0, 1.0]), column, -np.inf
    standard = (column - middle) / unit

    def at(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        xi, log_width, gamma, log_delta = parameters
        ratio = (standard - xi) / np.exp(log_width)
        mapped = gamma + np.exp(log_delta) * np.arcsinh(ratio)
        return mapped, norm.logpdf(mapped) + log_delta - log_width - 0.5 * np.log1p(np.square(ratio))

    def loss(parameters: np.ndarray) -> float:
        return -float(np.mean(at(parameters)[1]))

    best = minimize(loss, np.array([0.0, 0.0, 0.0, 0.0]), method="L-BFGS-B", bounds=BOUNDS)
    xi, log_width, gamma, log_delta = best.x
    shape = np.array([middle + unit * xi, unit * np.exp(log_width), gamma, np.exp(log_delta)])
    gain = -best.fun - norm.logpdf(standard, standard.mean(), standard.std()).mean()
    return shape, at(best.x)[0], float(gain)
