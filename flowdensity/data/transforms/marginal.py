r"""Marginal Gaussianization, which makes coordinates with edges and spikes normal through their distribution functions.

Some coordinates are nearly always 0 and sometimes far from it, or fill a box up to its walls. A smooth correction to a Gaussian
cannot approximate their density. The distribution function of such a coordinate is fitted by a mixture of logistic laws at its
quantiles, $\bar F(u) = \frac1K\sum_k \sigma((u - m_k)/s_k)$, and the map $u \to w(\operatorname{logit}\bar F(u))$ makes it
normal (Chen and Gopinath 2000, "Gaussianization"). The function $w$ approximates the map from a logistic law to a normal law,
and has a closed-form inverse:

$$w(l) = \frac{c\,l}{\sqrt h}, \qquad h = \sqrt{1 + l^2/16}, \qquad c = \frac{\sqrt{2\pi}}{4} .$$

It has the exact slope at 0, and the image of a logistic law is within $10^{-4}$ nats of a normal law. Far out, $w$ grows like
the square root of $|l|$, so the tails of a coordinate are exponential, like those of its widest logistic law.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from scipy.stats import differential_entropy

from ..._registry import savable
from ..._typing import Array, Float, Int, Scalar
from ..statistics import folds, held_out_log_densities, is_constant, resampled
from .interface import AbstractTransform, name_list

CENTER_SLOPE = float(np.sqrt(2.0 * np.pi) / 4.0)
"""Slope $c$ of the function $w$ at 0."""
ROOT_SCALE = 4.0
"""Logit at which the function $w$ changes from linear growth to growth like a square root."""
MIN_NEGENTROPY = 0.1
"""A coordinate is a candidate if its entropy is this many nats below that of a normal law with the same variance."""
MIN_HELD_OUT_GAIN = 0.2
"""Candidates are transformed if that raises the mean log density of held-out rows by this many nats per candidate."""
MIN_ROWS = 100
"""Minimum number of rows; in smaller tables no coordinate is transformed."""
MAX_ROWS = 4_000
"""Maximum number of rows used to fit the logistic laws."""
MIN_LAWS, MAX_LAWS = 8, 32
"""Bounds on the number of logistic laws of a coordinate, which is the square root of the number of rows within these bounds."""
MIN_RELATIVE_WIDTH = 1e-3
"""Minimum width of a logistic law, in standard deviations of the coordinate."""
NUM_FOLDS = 5
"""Number of folds for the held-out gain."""
NUM_BISECTIONS = 50
"""Number of bisections for the inverse, enough to reach the last digit of float64."""


@savable
class MarginalGaussianization(AbstractTransform):
    """Marginal Gaussianization of some coordinates of a vector; the others stay unchanged.

    Args:
        columns: indices of the coordinates that are transformed, shape `(active,)`.
        centers: centers of the logistic laws of each coordinate, shape `(active, laws)`.
        widths: positive scales of the logistic laws, shape `(active, laws)`.
    """

    columns: Int[Array, " active"]
    centers: Float[Array, "active laws"]
    widths: Float[Array, "active laws"]

    def __init__(self, columns: np.ndarray, centers: np.ndarray, widths: np.ndarray):
        self.columns = jnp.asarray(columns, int)
        self.centers = jnp.asarray(centers, float)
        self.widths = jnp.asarray(widths, float)

    def __check_init__(self) -> None:
        if self.centers.ndim != 2 or self.centers.shape != self.widths.shape:
            raise ValueError(
                f"MarginalGaussianization expected `centers` and `widths` with the same shape (active, laws); got "
                f"{self.centers.shape} and {self.widths.shape}"
            )
        if self.columns.shape != self.centers.shape[:1]:
            raise ValueError(
                f"MarginalGaussianization expected `columns` with shape {self.centers.shape[:1]}; got {self.columns.shape}"
            )

    def forward_and_log_det(self, x: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        mapped, log_slopes = jax.vmap(_gaussianize)(x[self.columns], self.centers, self.widths)
        return x.at[self.columns].set(mapped), jnp.sum(log_slopes)

    def inverse(self, y: Float[Array, " dim"]) -> Float[Array, " dim"]:
        values = jax.vmap(_coordinate)(y[self.columns], self.centers, self.widths)
        return y.at[self.columns].set(values)

    def summary(self, names: Sequence[str]) -> str:
        return f"marginal Gaussianization of {name_list(names, np.asarray(self.columns))}"


def _gaussianize(value: Scalar, centers: Float[Array, " laws"], widths: Float[Array, " laws"]) -> tuple[Scalar, Scalar]:
    """Image of a coordinate, and the logarithm of the slope of the map there."""
    below, above, logit = _laws_at(value, centers, widths)
    # The slope of the logit is f / F + f / (1 - F). As weighted means over the laws, neither term overflows far out, where F or
    # 1 - F is 0.
    slope = jnp.sum((jax.nn.softmax(below) * jnp.exp(above) + jax.nn.softmax(above) * jnp.exp(below)) / widths)
    height = jnp.hypot(1.0, logit / ROOT_SCALE)
    log_slope_of_w = jnp.log(0.5 * CENTER_SLOPE * (1.0 + 1.0 / jnp.square(height))) - 0.5 * jnp.log(height)
    return CENTER_SLOPE * logit / jnp.sqrt(height), jnp.log(slope) + log_slope_of_w


def _laws_at(
    value: Scalar, centers: Float[Array, " laws"], widths: Float[Array, " laws"]
) -> tuple[Float[Array, " laws"], Float[Array, " laws"], Scalar]:
    """Log probabilities of each law below and above a coordinate, and the logit of the mean probability below."""
    ratio = (value - centers) / widths
    below, above = jax.nn.log_sigmoid(ratio), jax.nn.log_sigmoid(-ratio)
    return below, above, jax.nn.logsumexp(below) - jax.nn.logsumexp(above)


def _coordinate(mapped: Scalar, centers: Float[Array, " laws"], widths: Float[Array, " laws"]) -> Scalar:
    """Find the coordinate with a given image by bisection; derivatives follow from the implicit function theorem."""
    half = 0.5 * jnp.square(mapped / (CENTER_SLOPE * ROOT_SCALE))
    height = half + jnp.hypot(1.0, half)
    logit = mapped * jnp.sqrt(height) / CENTER_SLOPE
    # Each law has this logit at one place. The mixture has it between the first and the last of these places.
    places = centers + widths * jax.lax.stop_gradient(logit)
    lower, upper = jnp.min(places), jnp.max(places)
    # With zero tolerances the search always runs all bisections.
    root = optimistix.root_find(
        lambda value, args: _laws_at(value, *args[1:])[2] - args[0],
        optimistix.Bisection(rtol=0.0, atol=0.0, flip=False),
        0.5 * (lower + upper),
        (logit, centers, widths),
        options={"lower": lower, "upper": upper},
        max_steps=NUM_BISECTIONS,
        throw=False,
    )
    return root.value


def fit_marginals(table: np.ndarray, weights: np.ndarray | None = None) -> MarginalGaussianization | None:
    """Fit the coordinates of a table by their quantiles, and choose the coordinates to transform.

    A coordinate is a candidate if its entropy is below that of a normal law by more than `MIN_NEGENTROPY`. The transform
    curves linear relations between coordinates, so the gain is measured on all of them together, under a mixture of a few
    Gaussians, which represents columns with several modes without a transform. All candidates are transformed if
    cross-validation shows a gain in the mean log density of held-out rows of more than `MIN_HELD_OUT_GAIN` nats per candidate;
    otherwise none is.

    Args:
        table: float64 array of shape `(n, dim)`.
        weights: weights of the rows; `None` means equal weights.

    Returns:
        The transform; `None` if no coordinate is transformed.
    """
    if len(table) < MIN_ROWS:
        return None
    rows = resampled(table, weights, min(MAX_ROWS, len(table)))
    columns = np.flatnonzero(_negentropy(rows) > MIN_NEGENTROPY)
    if not len(columns):
        return None
    gains = []
    for held_out in folds(rows, NUM_FOLDS):
        train = np.delete(np.arange(len(rows)), held_out)
        mapped, log_slopes = rows.copy(), np.zeros(len(rows))
        mapped[:, columns], log_slopes = _gaussianized(rows[:, columns], *_laws(rows[train][:, columns]))
        transformed = held_out_log_densities(mapped, held_out) + log_slopes[held_out]
        gains.append(np.mean(transformed - held_out_log_densities(rows, held_out)))
    if np.mean(gains) <= MIN_HELD_OUT_GAIN * len(columns):
        return None
    return MarginalGaussianization(columns, *_laws(rows[:, columns]))


def _negentropy(rows: np.ndarray) -> np.ndarray:
    """Entropy of a normal law minus that of each column, estimated from spacings (Ebrahimi et al. 1994), in nats.

    The result is 0 for a column that is constant in single precision, and for one with many ties, whose entropy estimate is not
    finite.
    """
    deviation = rows.std(axis=0)
    with np.errstate(divide="ignore"):
        entropy = differential_entropy(rows, method="ebrahimi")
    found = 0.5 * np.log(2.0 * np.pi * np.e) + np.log(np.maximum(deviation, np.finfo(float).tiny)) - entropy
    return np.where(~is_constant(rows) & np.isfinite(found), found, 0.0)


def _laws(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centers and widths of the laws of each column, shape `(columns, laws)`: quantiles and half their spacings."""
    count = int(np.clip(np.sqrt(len(rows)), MIN_LAWS, MAX_LAWS))
    centers = np.quantile(rows, (np.arange(count) + 0.5) / count, axis=0).T
    ends = np.quantile(rows, np.arange(count + 1) / count, axis=0).T
    return centers, np.maximum(0.5 * np.diff(ends, axis=1), MIN_RELATIVE_WIDTH * rows.std(axis=0)[:, None])


def _gaussianized(rows: np.ndarray, centers: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of rows and their log determinants, in float64."""
    with jax.enable_x64(True):
        mapped, log_slopes = _all(rows, centers, widths)
        return np.asarray(mapped), np.asarray(log_slopes).sum(axis=1)


_all = jax.jit(jax.vmap(jax.vmap(_gaussianize), in_axes=(0, None, None)))
