r"""Encoders: networks that turn one context of many rows into a vector.

A data set is a context with any number of rows: exchangeable observations (`DeepSet`) or the steps of a series (`Sequence`).
Rows that a data set does not have are absent: their values are NaN in the user's arrays, after those of the others, and
`present` is False for them here.
An encoder also computes fixed summaries, such as moments. The reference of a flow is fitted to these, since a trained encoder
has no fixed output before the fit ends.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_count, check_key, check_sizes
from .._display import weights_of
from .._registry import savable
from .._typing import Array, Bool, Float, Key, Scalar
from .networks import linear

SMALLEST_VARIANCE = 1e-6
"""Lower bound on the variance of a column within one data set, in units of its variance over all data sets."""
LAGS = 4
"""Number of lags of the autocorrelations in the summaries of a series, and length of the windows that `Sequence` reads."""
MAX_CORRELATED = 8
"""Number of columns, the first ones, whose correlations are summaries."""
DILATIONS = (4, 16)
"""Distances between the steps that the blocks of `Sequence` combine."""

ContextSet = Float[Array, "rows columns"]
Present = Bool[Array, " rows"]


class AbstractEncoder(eqx.Module):
    """Network from the rows of one context to a vector.

    `outward` is its last layer. A fit rescales it before the training, so that the outputs have mean 0 and standard deviation 1
    over the data.
    """

    columns: eqx.AbstractVar[int]
    size: eqx.AbstractVar[int]
    fewest: eqx.AbstractVar[int | None]
    outward: eqx.AbstractVar[eqx.nn.Linear]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(columns={self.columns}, size={self.size}, {weights_of(self)})"

    @abstractmethod
    def summaries(self, rows: ContextSet, present: Present) -> Float[Array, " summaries"]:
        """Fixed summaries of a context, which do not depend on the weights.

        Args:
            rows: standardized rows, shape `(rows, columns)`; zero where they are absent.
            present: whether the context has each row, shape `(rows,)`.
        """

    @abstractmethod
    def __call__(self, rows: ContextSet, present: Present) -> Float[Array, " size"]:
        """Output for one context, shape `(size,)`; the arguments are those of `summaries`."""


@savable
class DeepSet(AbstractEncoder):
    r"""Encoder of exchangeable rows, which does not depend on their order (Zaheer et al. 2017, arXiv 1703.06114).

    The output is $\rho\big(\frac1n\sum_i\phi(x_i), \log n\big)$ with perceptrons $\phi$ and $\rho$, where the mean is taken over
    the rows that are present. Its summaries are the moments of the rows up to the fourth, their correlations, and $\log n$.

    Args:
        key: JAX PRNG key for the initial weights.
        columns: number of values in each row.
        size: length of the output.
        width: units in each hidden layer.
        depth: number of residual layers of $\phi$ after the first.
        fewest: smallest number of rows of a data set, for `fit_posterior`, which then learns the posterior for data sets with
            any number of rows from `fewest` up to that of the model. None means that all data sets have equally many.

    Raises:
        TypeError: if `key` is not a key.
        ValueError: if a size is not an integer in its range.

    Examples:
        >>> encoder = fd.encoders.DeepSet(jax.random.key(1), columns=2)
        >>> encoder(jnp.ones((50, 2)), jnp.ones(50, bool)).shape
        (16,)
    """

    inward: eqx.nn.Linear
    middle: tuple[eqx.nn.Linear, ...]
    after: eqx.nn.Linear
    outward: eqx.nn.Linear
    columns: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    fewest: int | None = eqx.field(static=True)

    def __init__(
        self, key: Key, columns: int = 1, *, size: int = 16, width: int = 64, depth: int = 1, fewest: int | None = None
    ):
        check_key("DeepSet", key)
        columns, size, width = check_sizes("DeepSet", 1, columns=columns, size=size, width=width)
        (depth,) = check_sizes("DeepSet", 0, depth=depth)
        first, after, last, *keys = jr.split(key, 3 + depth)
        self.inward = linear(first, columns, width)
        self.middle = tuple(linear(each, width, width) for each in keys)
        self.after = linear(after, width + 1, width)
        self.outward = linear(last, width, size)
        self.columns = columns
        self.size = size
        self.fewest = None if fewest is None else check_count(type(self).__name__, "fewest", fewest, fix=1)

    def summaries(self, rows: ContextSet, present: Present) -> Float[Array, " summaries"]:
        return moments(rows, present)

    def __call__(self, rows: ContextSet, present: Present) -> Float[Array, " size"]:
        hidden = jax.nn.silu(each_row(self.inward, rows))
        for layer in self.middle:
            hidden = hidden + jax.nn.silu(each_row(layer, hidden))
        pooled = jnp.append(mean_of(hidden, present), log_count(present))
        return self.outward(jax.nn.silu(self.after(pooled)))


@savable
class Sequence(AbstractEncoder):
    r"""Encoder of the steps of a series, by causal convolutions that are averaged over time.

    The first layer reads windows of four steps. Residual blocks then combine each step with earlier ones at growing distances
    (van den Oord et al. 2016, arXiv 1609.03499). The output depends on the average over the steps that are present, on the last
    of them, and on the logarithm of their number. The summaries are those of `DeepSet` and the autocorrelations at the first
    four lags.

    Args:
        key: JAX PRNG key for the initial weights.
        columns: number of values in each step.
        size: length of the output.
        width: units in each hidden layer.
        fewest: smallest number of steps, as in `DeepSet`.

    Raises:
        TypeError: if `key` is not a key.
        ValueError: if a size is not a positive integer.

    Examples:
        >>> encoder = fd.encoders.Sequence(jax.random.key(1), columns=1)
        >>> encoder(jnp.ones((200, 1)), jnp.ones(200, bool)).shape
        (16,)
    """

    inward: eqx.nn.Linear
    blocks: tuple[eqx.nn.Linear, ...]
    after: eqx.nn.Linear
    outward: eqx.nn.Linear
    columns: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    fewest: int | None = eqx.field(static=True)

    def __init__(self, key: Key, columns: int = 1, *, size: int = 16, width: int = 32, fewest: int | None = None):
        check_key("Sequence", key)
        columns, size, width = check_sizes("Sequence", 1, columns=columns, size=size, width=width)
        first, after, last, *keys = jr.split(key, 3 + len(DILATIONS))
        self.inward = linear(first, LAGS * columns, width)
        self.blocks = tuple(linear(each, 2 * width, width) for each in keys)
        self.after = linear(after, 2 * width + 1, width)
        self.outward = linear(last, width, size)
        self.columns = columns
        self.size = size
        self.fewest = None if fewest is None else check_count(type(self).__name__, "fewest", fewest, fix=1)

    def summaries(self, rows: ContextSet, present: Present) -> Float[Array, " summaries"]:
        deviations = jnp.where(present[:, None], rows - mean_of(rows, present), 0.0)
        power = jnp.sum(jnp.square(deviations), axis=0) + SMALLEST_VARIANCE
        products = [jnp.sum(deviations * delayed(deviations, lag), axis=0) for lag in range(1, LAGS + 1)]
        return jnp.concatenate([moments(rows, present), *(product / power for product in products)])

    def __call__(self, rows: ContextSet, present: Present) -> Float[Array, " size"]:
        windows = jnp.concatenate([delayed(rows, lag) for lag in range(LAGS)], axis=1)
        hidden = jax.nn.silu(each_row(self.inward, windows))
        for layer, distance in zip(self.blocks, DILATIONS, strict=True):
            pairs = jnp.concatenate([hidden, delayed(hidden, distance)], axis=1)
            hidden = hidden + jax.nn.silu(each_row(layer, pairs))
        last = hidden[jnp.maximum(jnp.sum(present) - 1, 0)]
        pooled = jnp.concatenate([mean_of(hidden, present), last, log_count(present)[None]])
        return self.outward(jax.nn.silu(self.after(pooled)))


def each_row(layer: eqx.nn.Linear, rows: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
    """Apply a linear layer to each row, as one matrix product."""
    return rows @ layer.weight.T + jnp.asarray(layer.bias)


def delayed(rows: Float[Array, "rows columns"], lag: int) -> Float[Array, "rows columns"]:
    """Shift rows by `lag` steps, so that each step sees an earlier one; zeros stand for the steps before the first."""
    return jnp.pad(rows, ((lag, 0), (0, 0)))[: len(rows)]


def mean_of(rows: Float[Array, "rows columns"], present: Present) -> Float[Array, " columns"]:
    """Mean of the rows that are present."""
    return jnp.sum(jnp.where(present[:, None], rows, 0.0), axis=0) / jnp.maximum(jnp.sum(present), 1)


def log_count(present: Present) -> Scalar:
    """Logarithm of the number of rows that are present."""
    return jnp.log(jnp.maximum(jnp.sum(present), 1).astype(float))


def moments(rows: ContextSet, present: Present) -> Float[Array, " summaries"]:
    """Moments of the rows that are present: means, log deviations, skewness, kurtosis, correlations; and their log number.

    Skewness and kurtosis are mapped by the inverse hyperbolic sine, since those of a few rows have long tails.
    """
    mean = mean_of(rows, present)
    variance = mean_of(jnp.square(rows - mean), present) + SMALLEST_VARIANCE
    standard = (rows - mean) / jnp.sqrt(variance)
    third, fourth = (jnp.arcsinh(mean_of(standard**power, present)) for power in (3, 4))
    first, second = jnp.triu_indices(min(rows.shape[1], MAX_CORRELATED), 1)
    correlations = mean_of(standard[:, first] * standard[:, second], present)
    return jnp.concatenate([mean, 0.5 * jnp.log(variance), third, fourth, correlations, log_count(present)[None]])
