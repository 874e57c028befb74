r"""Radial Gaussianisation: tails that are long in all directions together, straightened along the radius.

Where some rows are a hundred times as far out as others, in whatever direction - returns on days of high volatility, patches of
a photograph with high contrast - no map of each coordinate alone makes them normal: given one coordinate, the others are as
wide as it is far out. With the centre $m$ and the scatter matrix $\Sigma$ that suit all of them, the map (Lyu and Simoncelli
2009, Neural Computation 21)

$$u \to m + \sqrt{\frac{\log(1 + s)}{s}}\,(u - m), \qquad s = \frac1k (u - m)^\top\Sigma^{-1}(u - m),$$

leaves directions as they are and takes the radius $r$ in $\Sigma$ to the root of $k\log(1 + r^2/k)$: about the centre it changes
nothing, and normal tails are far out those of Student's $t$ law with $k$ degrees of freedom, but for a power of the logarithm.
It is smooth everywhere, and its inverse and its log-determinant are in closed form.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar

from .._typing import Array, Float, Scalar
from .johnson import constant
from .weights import resampled
from .whitening import times_rows, whitening

FEW, ROWS = 100, 20_000
"""At least and at most so many rows tell the centre, the scatter and the degrees of freedom."""
TURNS = 10
MOST_DEGREES = 1e4
"""With so many the map is next to the identity."""
DEVIATIONS, OVERFLOW = 6.0, 80.0
"""So many deviations beyond the radius of normal rows, the exponent of the inverse is at most the latter."""
SPREADS = (2.0 * math.log(1e-4), 2.0 * math.log(1e3))
"""Least and greatest square of the radius from which on the map bends, by that of the middle row; logarithms."""
CENTRE, NARROW = 0.01, 1e-4
"""If so many rows are no farther from the centre than so little, by the radius of the middle row, they are a spike."""
NEAR = 0.01
LOG1P = [(-1.0) ** n / (n + 1) for n in reversed(range(8))]
EXPM1 = [1.0 / math.factorial(n + 1) for n in reversed(range(8))]
"""Up to `NEAR` a series takes the place of a quotient, of whose derivatives single precision would leave nothing."""


class RadialGaussianisation(eqx.Module):
    """The map of a vector along its radius.

    Args:
        centre: what stays where it is, shape `(dim,)`.
        whitener: a root of the inverse of the scatter matrix, shape `(dim, dim)`.
        degrees: of freedom, positive; the fewer, the heavier are the tails.
    """

    centre: Float[Array, " dim"]
    whitener: Float[Array, "dim dim"]
    degrees: Scalar

    def __init__(self, centre: np.ndarray, whitener: np.ndarray, degrees: float):
        self.centre = jnp.asarray(centre, float)
        self.whitener = jnp.asarray(whitener, float)
        self.degrees = jnp.asarray(degrees, float)

    def __check_init__(self) -> None:
        if self.whitener.shape != 2 * self.centre.shape:
            raise ValueError(f"A centre of the shape {self.centre.shape} has no whitener of {self.whitener.shape}")

    def straighten(self, values: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        """The vector mapped, and the log-determinant of the map there, in nats."""
        ratio = self._ratio(values)
        log_pull = 0.5 * jnp.log(_over(jnp.log1p, LOG1P, ratio))
        mapped = self.centre + jnp.exp(log_pull) * (values - self.centre)
        return mapped, (values.size - 2) * log_pull - jnp.log1p(ratio)

    def bend(self, mapped: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The vector that `straighten` maps to `mapped`."""
        push = jnp.sqrt(_over(jnp.expm1, EXPM1, self._ratio(mapped)))
        return self.centre + push * (mapped - self.centre)

    def _ratio(self, values: Float[Array, " dim"]) -> Scalar:
        """The square of the radius over the degrees of freedom."""
        return jnp.sum(jnp.square(self.whitener @ (values - self.centre))) / self.degrees


def _over(function: Callable[[Scalar], Scalar], series: Sequence[float], x: Scalar) -> Scalar:
    """A function that is 0 at 0, over its argument, which is not negative: with its derivatives down to there."""
    away, near = jnp.maximum(x, NEAR), jnp.minimum(x, NEAR)
    # By numbers of no precision of their own: what is compiled for an array of them in one is not for those of another.
    polynomial = reduce(lambda value, coefficient: value * near + coefficient, series, jnp.zeros_like(near))
    return jnp.where(x > NEAR, function(away) / away, polynomial)


def fit_radial(table: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Fit the map to a table of shape `(n, dim)`.

    In turns: the scatter is that of the rows with the weights `log(1 + s) / s`, under which that of the mapped ones is 1 (Maronna
    1976, Annals of Statistics 4); its size and the degrees of freedom are those that make the mapped rows likeliest as normal
    ones.

    Returns:
        The arguments of `RadialGaussianisation`; None if there are too few rows, if some are all at the centre, or if a column
        is constant in those that are looked at.
    """
    rows = resampled(table, weights, min(ROWS, len(table)))
    if len(table) < FEW or np.any(constant(rows)):
        return None
    centre, whitener, squares = _white(rows, np.ones(len(rows)))
    for _ in range(TURNS):
        spread, _ = _likeliest(squares, rows.shape[1])
        centre, whitener, squares = _white(rows, _pull(squares / spread))
    near, middle = np.quantile(squares, [CENTRE, 0.5])
    if near <= NARROW**2 * middle:
        return None
    spread, degrees = _likeliest(squares, rows.shape[1])
    return centre, whitener * np.sqrt(degrees / spread), degrees


def _white(rows: np.ndarray, pulls: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre and whitener of weighted rows, and the squares of their radii once white."""
    centre, _, whitener = whitening(rows, pulls)
    return centre, whitener, np.square(times_rows(whitener, rows - centre)).sum(axis=1)


def _pull(ratio: np.ndarray) -> np.ndarray:
    """By how much the map draws squared radii inwards."""
    ratio = np.maximum(ratio, np.finfo(float).tiny)
    return np.log1p(ratio) / ratio


def _likeliest(squares: np.ndarray, dim: int) -> tuple[float, float]:
    """The square of the radius from which on the map bends, and the degrees of freedom, that make squared radii likeliest."""
    unit = np.median(squares) + np.finfo(float).tiny
    fewest = (np.sqrt(dim) + DEVIATIONS) ** 2 / OVERFLOW

    def degrees(spread: float) -> float:
        return float(np.clip(dim / np.mean(np.log1p(squares / spread)), fewest, MOST_DEGREES))

    def loss(log_spread: float) -> float:
        spread = unit * np.exp(log_spread)
        ratio, best = squares / spread, degrees(spread)
        score = (0.5 * dim - 1.0) * np.log(_pull(ratio)) - (0.5 * best + 1.0) * np.log1p(ratio)
        return -float(np.mean(score) + 0.5 * dim * (np.log(best) - log_spread))

    found: Any = minimize_scalar(loss, bounds=SPREADS, method="bounded")
    spread = unit * np.exp(found.x)
    return spread, degrees(spread)
