"""Encodings: maps from contexts with many rows to the vectors that a conditional network reads."""

import dataclasses
from math import prod
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from .._blocks import over_rows
from .._registry import savable
from .._typing import Array, Bool, Context, ContextRows, Float, Hidden, Int, Scalar, State
from ..data.sites import Shapes, Sites, split
from ..data.statistics import FLOAT32_EPS, FULL_COVARIANCE_LIMIT
from ..data.tables import Table
from .encoders import AbstractEncoder
from .networks import AbstractNetwork

Encoder: TypeAlias = AbstractEncoder | eqx.Module
"""An encoder of rows, or any module from one context to a vector."""
MAX_STANDARDIZED = 1_000
"""Maximum number of contexts on which the output of an encoder is standardized before the training."""
MIN_DEVIATION = 1e-6
"""Summaries with a smaller standard deviation are constant, and are not divided by it."""


@savable
class Encoding(eqx.Module):
    """Map from a context in the user's units to the input of a conditional network: fixed summaries and outputs of encoders.

    It takes the place of the `Scaling` of contexts. In a flat context, the rows that a site does not have are NaN.

    Args:
        encoders: encoder of each site; None for a site whose standardized values are used as they are.
        location: mean of each entry of a flat context, shape `(size,)`. All rows of an encoded site have the same.
        deviation: standard deviation of each entry, shape `(size,)`.
        summary_location: mean of the summaries, shape `(summaries,)`.
        summary_deviation: standard deviation of the summaries, shape `(summaries,)`.
        event_shape: shape of one context.
        sites: names and shapes of the values in one context; None if they have no names.
        reach: radius of the encoded contexts. A context beyond it is pulled back to it along its ray.
        fewest: smallest number of rows of each site in the training data; 0 for a site without rows; shape `(sites,)`.
        most: largest number of rows of each site in the training data, shape `(sites,)`.
    """

    encoders: tuple[Encoder | None, ...]
    location: Float[Array, " size"]
    deviation: Float[Array, " size"]
    summary_location: Float[Array, " summaries"]
    summary_deviation: Float[Array, " summaries"]
    reach: Scalar
    fewest: Int[Array, " sites"]
    most: Int[Array, " sites"]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    sites: Sites | None = eqx.field(static=True)

    has_absent_rows: ClassVar[bool] = True
    """Whether rows of a context may be absent, and are then NaN."""

    @property
    def support(self) -> constraints.Constraint:
        """numpyro constraint of the values."""
        return constraints.real

    @property
    def shapes(self) -> Shapes:
        """Shape of the values of each site."""
        return (self.event_shape,) if self.sites is None else self.sites.shapes

    @property
    def summary_dim(self) -> int:
        """Number of summaries."""
        return self.summary_location.shape[-1]

    @property
    def dim(self) -> int:
        """Length of the input of the network."""
        context = jax.ShapeDtypeStruct(self.event_shape, jnp.result_type(float))
        return jax.eval_shape(lambda c: self.whiten(c)[0], context).shape[0]

    def standardized(self, context: Float[Array, "*context"]) -> Float[Array, " size"]:
        """Flat context with standardized entries; the entries of absent rows stay NaN."""
        return (context.reshape(-1) - self.location) / self.deviation

    def summaries(self, standardized: Float[Array, " size"]) -> Float[Array, " summaries"]:
        """Standardized summaries of a standardized context."""
        pieces = zip(self.encoders, split(standardized, self.shapes), strict=True)
        found = jnp.concatenate([_summaries(encoder, values) for encoder, values in pieces])
        return (found - self.summary_location) / self.summary_deviation

    def whiten(self, context: Float[Array, "*context"]) -> tuple[Context, Scalar]:
        """Summaries and outputs of the encoders, shape `(dim,)`, and 0 for the log determinant, which a context does not have."""
        encoded = self.encoded(context)
        # The identity within the reach, where the network has learned.
        return jnp.minimum(1.0, self.reach / radius_of(encoded)) * encoded, jnp.zeros((), encoded.dtype)

    def encoded(self, context: Float[Array, "*context"]) -> Context:
        """`whiten` without the pull towards the reach, shape `(dim,)`."""
        flat = self.standardized(context)
        return jnp.concatenate([self.summaries(flat), encode(self.encoders, self.shapes, flat)])

    def with_rows(self, name: str, rows: int) -> "Encoding":
        """The same encoding for contexts with another number of rows at one site, which all have the same mean and deviation."""
        assert self.sites is not None, "a site has a name"
        index = self.sites.names.index(name)
        shapes = list(self.sites.shapes)
        shapes[index] = (rows, *shapes[index][1:])

        def resized(entries: Array) -> Array:
            pieces = split(entries, self.shapes)
            pieces[index] = jnp.broadcast_to(pieces[index][:1], shapes[index])
            return jnp.concatenate([piece.reshape(-1) for piece in pieces])

        sites = Sites(self.sites.names, tuple(shapes))
        changed = {"location": resized(self.location), "deviation": resized(self.deviation), "sites": sites}
        return dataclasses.replace(self, event_shape=(sum(map(prod, shapes)),), **changed)

    def counts(self, contexts: np.ndarray) -> list[np.ndarray]:
        """Number of rows that each of some flat contexts has at each site, as `counts_of`."""
        return counts_of(self.encoders, self.shapes, contexts)


def with_absent_rows(values: Any, rows: int, ndim: int) -> Any:
    """Values of a site, shape `(*batch, *shape)`, padded with rows of NaN to at least `rows` rows.

    Args:
        values: the values, whose rows are the first axis of `shape`.
        rows: minimum number of rows.
        ndim: length of `shape`.
    """
    pad = [(0, 0)] * np.ndim(values)
    pad[-ndim] = (0, max(0, rows - np.shape(values)[-ndim]))
    # numpy compiles nothing for a number of rows that is new.
    pads = jnp if isinstance(values, jax.Array) else np
    return pads.pad(pads.asarray(values, float), pad, constant_values=np.nan)


@savable
class EncodedNetwork(AbstractNetwork):
    """Conditional network with its encoders, for training them together.

    Its context consists of the summaries and the standardized values, of which the encoders make the rest of the input.

    Args:
        network: network whose context has the summaries and the outputs of the encoders.
        encoders: encoder of each site; None for a site without one.
        shapes: shape of the values of each site.
        summary_dim: number of summaries.
    """

    network: AbstractNetwork
    encoders: tuple[Encoder | None, ...]
    shapes: Shapes = eqx.field(static=True)
    summary_dim: int = eqx.field(static=True)

    def __init__(
        self, network: AbstractNetwork, encoders: tuple[Encoder | None, ...], shapes: Shapes, summary_dim: int
    ):
        self.network = network
        self.encoders = encoders
        self.shapes = shapes
        self.summary_dim = summary_dim

    @property
    def dim(self) -> int:
        """Dimension of the state."""
        return self.network.dim

    @property
    def context_dim(self) -> int:
        """Number of summaries and standardized values."""
        return self.summary_dim + sum(map(prod, self.shapes))

    @property
    def reference_dim(self) -> int:
        return self.summary_dim

    def __call__(self, angle: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
        outputs = encode(self.encoders, self.shapes, context[self.summary_dim :])
        return self.network(angle, state, jnp.concatenate([context[: self.summary_dim], outputs]))


def new_encoding(table: Table, encoders: tuple[Encoder | None, ...]) -> tuple[Encoding, np.ndarray]:
    """Standardize contexts and the outputs of untrained encoders.

    Args:
        table: contexts in the user's units, shape `(n, *context_shape)`; NaN where a row is absent.
        encoders: encoder of each site, or None.

    Returns:
        The encoding, and the contexts of an `EncodedNetwork`: summaries and standardized values, shape `(n, summaries + size)`.
    """
    rows = table.rows.reshape(len(table.rows), -1)
    shapes = (table.rows.shape[1:],) if table.sites is None else table.sites.shapes
    location, deviation = _statistics(rows, encoders, shapes)
    counts = counts_of(encoders, shapes, rows)
    encoding = Encoding(
        encoders,
        jnp.asarray(location, float),
        jnp.asarray(deviation, float),
        jnp.zeros(0),
        jnp.ones(0),
        jnp.asarray(jnp.inf),
        jnp.asarray([each.min() for each in counts]),
        jnp.asarray([each.max() for each in counts]),
        table.rows.shape[1:],
        table.sites,
    )
    standard = jnp.asarray((rows - location) / deviation, float)
    plain = eqx.tree_at(lambda e: (e.summary_location, e.summary_deviation), encoding, (jnp.zeros(()), jnp.ones(())))
    raw = np.asarray(_all_summaries(plain, standard), np.float64)
    center, spread = raw.mean(axis=0), raw.std(axis=0)
    spread = np.where(spread > MIN_DEVIATION, spread, 1.0)
    few = standard[:: -(-len(standard) // MAX_STANDARDIZED)]
    encoding = eqx.tree_at(
        lambda e: (e.encoders, e.summary_location, e.summary_deviation),
        encoding,
        (
            _standardized_outputs(encoders, shapes, few),
            jnp.asarray(center, float),
            jnp.asarray(spread, float),
        ),
        is_leaf=lambda leaf: leaf is None,
    )
    return encoding, np.concatenate([(raw - center) / spread, np.asarray(standard, np.float64)], axis=1)


def encode(encoders: tuple[Encoder | None, ...], shapes: Shapes, standardized: Float[Array, " size"]) -> Context:
    """Outputs of the encoders for a standardized context, one after another."""
    outputs = [
        _output(encoder, values)
        for encoder, values in zip(encoders, split(standardized, shapes), strict=True)
        if encoder is not None
    ]
    return jnp.concatenate(outputs)


def rows_of(values: Float[Array, "rows *columns"]) -> tuple[Float[Array, "rows columns"], Bool[Array, " rows"]]:
    """Rows of a site as vectors, zero where they are absent, and whether each is present."""
    rows = values.reshape(len(values), -1)
    present = ~jnp.all(jnp.isnan(rows), axis=1)
    return jnp.where(present[:, None], rows, 0.0), present


def counts_of(encoders: tuple[Encoder | None, ...], shapes: Shapes, contexts: np.ndarray) -> list[np.ndarray]:
    """Number of rows that each of some flat contexts, shape `(n, size)`, has at each site; 0 for a site without rows."""
    return [
        np.sum(~np.isnan(values.reshape(*values.shape[:2], -1)).all(axis=2), axis=1)
        if isinstance(encoder, AbstractEncoder)
        else np.zeros(len(contexts), int)
        for encoder, values in zip(encoders, split(contexts, shapes), strict=True)
    ]


def _summaries(encoder: Encoder | None, values: Array) -> Array:
    if isinstance(encoder, AbstractEncoder):
        return encoder.summaries(*rows_of(values))
    # The summaries are regressed on, so there must not be too many.
    return values.reshape(-1) if encoder is None or values.size <= FULL_COVARIANCE_LIMIT else jnp.zeros(0)


def _output(encoder: Encoder, values: Array) -> Array:
    return encoder(*rows_of(values)) if isinstance(encoder, AbstractEncoder) else encoder(values)  # type: ignore[operator]


@eqx.filter_jit
def _all_summaries(encoding: Encoding, standardized: Float[Array, "n size"]) -> Array:
    return over_rows(encoding.summaries, standardized)


@eqx.filter_jit
def _all_outputs(encoder: Encoder, values: Array) -> Array:
    return over_rows(lambda each: _output(encoder, each), values)


def _statistics(
    rows: np.ndarray, encoders: tuple[Encoder | None, ...], shapes: Shapes
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each entry of flat contexts; the rows of a site that has an encoder of rows share them."""
    locations, deviations = [], []
    for encoder, values, shape in zip(encoders, split(rows, shapes), shapes, strict=True):
        axes = (0, 1) if isinstance(encoder, AbstractEncoder) else (0,)
        center, spread = np.nanmean(values, axis=axes), np.nanstd(values, axis=axes)
        locations.append(np.broadcast_to(center, shape).reshape(-1))
        varies = spread > FLOAT32_EPS * np.abs(center)
        deviations.append(np.broadcast_to(np.where(varies, spread, 1.0), shape).reshape(-1))
    return np.concatenate(locations), np.concatenate(deviations)


def _standardized_outputs(
    encoders: tuple[Encoder | None, ...], shapes: Shapes, standardized: Float[Array, "n size"]
) -> tuple[Encoder | None, ...]:
    """Rescale the last layer of each encoder so that its outputs have mean 0 and standard deviation 1."""
    found = []
    for encoder, values in zip(encoders, split(standardized, shapes), strict=True):
        if isinstance(encoder, AbstractEncoder):
            outputs = np.asarray(_all_outputs(encoder, values))
            center, spread = outputs.mean(axis=0), outputs.std(axis=0)
            spread = np.where(spread > MIN_DEVIATION, spread, 1.0)
            layer = encoder.outward
            weight, bias = layer.weight / spread[:, None], (layer.bias - center) / spread
            encoder = eqx.tree_at(lambda e: (e.outward.weight, e.outward.bias), encoder, (weight, bias))
        found.append(encoder)
    return tuple(found)


@eqx.filter_jit
def encoded_contexts(encoding: Encoding, contexts: Float[Array, "n inputs"]) -> ContextRows:
    """Encoded contexts for the contexts of an `EncodedNetwork`: summaries and standardized values."""

    def one(context: Context) -> Context:
        outputs = encode(encoding.encoders, encoding.shapes, context[encoding.summary_dim :])
        return jnp.concatenate([context[: encoding.summary_dim], outputs])

    return over_rows(one, contexts)


@eqx.filter_jit
def encoded_rows(encoding: Encoding, contexts: Float[Array, "n size"]) -> ContextRows:
    """Encoded contexts for flat contexts in the user's units, without the pull towards the reach."""
    return over_rows(lambda context: encoding.encoded(context), contexts)


def radius_of(encoded: Context) -> Scalar:
    """Norm of an encoded context, with a gradient of zero at the origin."""
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(encoded)), jnp.finfo(encoded.dtype).tiny))
