r"""Marginal Gaussianisation: coordinates with edges and spikes, taken to normal ones through their distribution functions.

A coordinate that is nearly always 0 and sometimes far from it, or that fills a box to its walls, has a density that no smooth
departure from a Gaussian comes near. With a mixture of logistic laws at its quantiles, $\bar F(u) = \frac1K\sum_k
\sigma((u - m_k)/s_k)$, the map $u \to w(\operatorname{logit}\bar F(u))$ makes it normal (Chen and Gopinath 2000,
"Gaussianization"), where $w$ is close to the map from a logistic law to a normal one and has an inverse in closed form,

$$w(l) = \frac{c\,l}{\sqrt h}, \qquad h = \sqrt{1 + l^2/16}, \qquad c = \frac{\sqrt{2\pi}}{4} .$$

It has the slope of that map at 0 and takes a logistic law to one within $10^{-4}$ nats of a normal law. Far out it grows like the
root of $|l|$: a coordinate so has the exponential tails of its widest law.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from scipy.stats import differential_entropy

from .._typing import Array, Float, Int, Scalar
from .johnson import constant
from .parts import parts
from .weights import resampled
from .whitening import LEAST, gaussian_log_densities, whitening

SLOPE = float(np.sqrt(2.0 * np.pi) / 4.0)
BREAK = 4.0
"""The slope c at 0, and where the root begins."""
GAIN = 0.1
"""A coordinate is a candidate if its entropy is so many nats below that of a normal law of its variance."""
JOINT_GAIN = 0.2
"""Candidates are mapped if rows that the maps have not seen are likelier by so many nats for each; clusters gain less by it."""
FEW, ROWS = 100, 4_000
"""At least and at most so many rows tell the shape of a coordinate."""
LAWS = (8, 32)
"""At least and at most so many logistic laws; between, the square root of the number of rows."""
NARROW = 1e-3
"""The least width of a law, in standard deviations of the coordinate."""
FOLDS = 5
BISECTIONS = 50


class MarginalGaussianisation(eqx.Module):
    """The map of a vector, coordinate by coordinate; those that are not among `columns` stay as they are.

    Args:
        columns: which coordinates it maps, shape `(mapped,)`.
        centres: of the logistic laws of each, shape `(mapped, laws)`.
        widths: their scales, positive, shape `(mapped, laws)`.
    """

    columns: Int[Array, " mapped"]
    centres: Float[Array, "mapped laws"]
    widths: Float[Array, "mapped laws"]

    def __init__(self, columns: np.ndarray, centres: np.ndarray, widths: np.ndarray):
        self.columns = jnp.asarray(columns, int)
        self.centres = jnp.asarray(centres, float)
        self.widths = jnp.asarray(widths, float)

    def __check_init__(self) -> None:
        if self.centres.ndim != 2 or self.centres.shape != self.widths.shape:
            raise ValueError(f"Centres of the shape {self.centres.shape} have no widths of {self.widths.shape}")
        if self.columns.shape != self.centres.shape[:1]:
            raise ValueError(f"{self.columns.shape} coordinates have no centres of the shape {self.centres.shape}")

    def straighten(self, values: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        """The vector mapped, and the log-determinant of the map there, in nats."""
        mapped, log_slopes = jax.vmap(_gaussianise)(values[self.columns], self.centres, self.widths)
        return values.at[self.columns].set(mapped), jnp.sum(log_slopes)

    def bend(self, mapped: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The vector that `straighten` maps to `mapped`."""
        values = jax.vmap(_coordinate)(mapped[self.columns], self.centres, self.widths)
        return mapped.at[self.columns].set(values)


def _gaussianise(value: Scalar, centres: Float[Array, " laws"], widths: Float[Array, " laws"]) -> tuple[Scalar, Scalar]:
    """A coordinate mapped, and the logarithm of the slope there."""
    below, above, logit = _laws_at(value, centres, widths)
    # f/F + f/(1 - F), each as a mean: far out, where one of the two is 0, neither overflows.
    slope = jnp.sum((jax.nn.softmax(below) * jnp.exp(above) + jax.nn.softmax(above) * jnp.exp(below)) / widths)
    height = jnp.hypot(1.0, logit / BREAK)
    bend = jnp.log(0.5 * SLOPE * (1.0 + 1.0 / jnp.square(height))) - 0.5 * jnp.log(height)
    return SLOPE * logit / jnp.sqrt(height), jnp.log(slope) + bend


def _laws_at(
    value: Scalar, centres: Float[Array, " laws"], widths: Float[Array, " laws"]
) -> tuple[Float[Array, " laws"], Float[Array, " laws"], Scalar]:
    """Log probabilities of each law below a coordinate and above it, and the logit of their mean below."""
    ratio = (value - centres) / widths
    below, above = jax.nn.log_sigmoid(ratio), jax.nn.log_sigmoid(-ratio)
    return below, above, jax.nn.logsumexp(below) - jax.nn.logsumexp(above)


def _coordinate(mapped: Scalar, centres: Float[Array, " laws"], widths: Float[Array, " laws"]) -> Scalar:
    """The coordinate of a mapped one, by bisection; its derivatives are those of the inverse function."""
    half = 0.5 * jnp.square(mapped / (SLOPE * BREAK))
    height = half + jnp.hypot(1.0, half)
    logit = mapped * jnp.sqrt(height) / SLOPE
    # Where each law has this logit: that of their mean has it between the first of these places and the last.
    places = centres + widths * jax.lax.stop_gradient(logit)
    lower, upper = jnp.min(places), jnp.max(places)
    # The root is sought to the last digit: it always ends with the number of bisections.
    root = optimistix.root_find(
        lambda value, args: _laws_at(value, *args[1:])[2] - args[0],
        optimistix.Bisection(rtol=0.0, atol=0.0, flip=False),
        0.5 * (lower + upper),
        (logit, centres, widths),
        options={"lower": lower, "upper": upper},
        max_steps=BISECTIONS,
        throw=False,
    )
    return root.value


def fit_marginals(
    table: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Fit the coordinates of a table, shape `(n, dim)`, by their quantiles, and choose those that are mapped.

    A coordinate is a candidate if its entropy is below that of a normal law by more than `GAIN`. What counts is the Gaussian
    fitted to all coordinates together, since the map breaks the lines between them: all candidates are mapped if the rows of
    five parts, under what the others say of them, gain `JOINT_GAIN` nats each for every candidate, and none if not.

    Returns:
        The arguments of `MarginalGaussianisation`; None if no coordinate is mapped.
    """
    if len(table) < FEW:
        return None
    rows = resampled(table, weights, min(ROWS, len(table)))
    columns = np.flatnonzero(_negentropy(rows) > GAIN)
    if not len(columns):
        return None
    gains = []
    for held in parts(rows, FOLDS):
        kept = np.delete(np.arange(len(rows)), held)
        mapped, log_slopes = rows.copy(), np.zeros(len(rows))
        mapped[:, columns], log_slopes = _straight(rows[:, columns], *_laws(rows[kept][:, columns]))
        gains.append(_score(mapped, kept, held) + np.mean(log_slopes[held]) - _score(rows, kept, held))
    return (columns, *_laws(rows[:, columns])) if np.mean(gains) > JOINT_GAIN * len(columns) else None


def _negentropy(rows: np.ndarray) -> np.ndarray:
    """By how much the entropy of each column is below that of a normal law, from its spacings (Ebrahimi et al. 1994); of what
    does not vary in single precision, and of ties, nothing."""
    deviation = rows.std(axis=0)
    with np.errstate(divide="ignore"):
        entropy = differential_entropy(rows, method="ebrahimi")
    found = 0.5 * np.log(2.0 * np.pi * np.e) + np.log(np.maximum(deviation, np.finfo(float).tiny)) - entropy
    return np.where(~constant(rows) & np.isfinite(found), found, 0.0)


def _laws(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres and widths of the laws of each column, shape `(columns, laws)`: at its quantiles, as wide as these are apart."""
    count = int(np.clip(np.sqrt(len(rows)), *LAWS))
    centres = np.quantile(rows, (np.arange(count) + 0.5) / count, axis=0).T
    ends = np.quantile(rows, np.arange(count + 1) / count, axis=0).T
    return centres, np.maximum(0.5 * np.diff(ends, axis=1), NARROW * rows.std(axis=0)[:, None])


def _straight(rows: np.ndarray, centres: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows mapped, and the log-determinants, in float64."""
    with jax.enable_x64(True):
        mapped, log_slopes = _all(rows, centres, widths)
        return np.asarray(mapped), np.asarray(log_slopes).sum(axis=1)


_all = jax.jit(jax.vmap(jax.vmap(_gaussianise), in_axes=(0, None, None)))


def _score(rows: np.ndarray, kept: np.ndarray, held: np.ndarray) -> float:
    """Mean log density of the rows that are held out under the shrunk Gaussian of the others, nats."""
    fitted = whitening(rows[kept], least=LEAST * rows.std(axis=0))
    return float(np.mean(gaussian_log_densities(rows[held], *fitted)))
