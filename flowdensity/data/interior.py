"""Interiors of supports, which keep events off the edges, where the inverses of bijections are infinite.

In finite precision a number strictly inside a support may round to its edge. There the inverse is infinite: the logit of 1, or
the logarithm of 0, of the difference of equal numbers in an ordered vector, or of a zero determinant. `interior_point` moves an
event on an edge to the nearest point with a finite inverse. It leaves all other events unchanged, also outside the support.
`interior_bijection` is numpyro's bijection restricted to these points: each of its parts is inverted at the nearest point of its
own interior. On the real line both are the identity.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import (
    CatTransform,
    ComposeTransform,
    CorrCholeskyTransform,
    IndependentTransform,
    StickBreakingTransform,
    Transform,
)
from numpyro.distributions.util import matrix_to_tril_vec

from .._typing import Array, ArrayLike
from .sites import join, split
from .supports import JointTransform, joint


@functools.singledispatch
def interior_point(constraint: constraints.Constraint, value: ArrayLike) -> Array:
    """Move a value on an edge of a constraint to the nearest point at which the bijection's inverse is finite.

    A value is on an edge if a value inside rounds to it in the dtype of `value`. The derivative along a moved coordinate is zero.

    Args:
        constraint: numpyro constraint; if it has no edge, or no implementation is registered, `value` is returned unchanged.
        value: events, shape `(*batch, *event_shape)`.
    """
    return jnp.asarray(value)


def off_edges(constraint: constraints.Constraint, value: ArrayLike) -> Array:
    """Compute `interior_point` of a constant; the result is a constant under `jit` too, so that numpyro can validate it."""
    with jax.ensure_compile_time_eval():
        return interior_point(constraint, jnp.asarray(value, float))


def bijection(constraint: constraints.Constraint) -> Transform:
    """numpyro's bijection for a constraint, with an inverse that is accurate near an edge and infinite on it."""
    return _by_parts(constraint, lambda each: _precise(biject_to(each)))


def interior_bijection(constraint: constraints.Constraint) -> Transform:
    """numpyro's bijection for a constraint, restricted to interior points; its inverse is also finite on the edges."""
    return _by_parts(constraint, lambda each: _Interior(_interior_steps(biject_to(each)), each))


# Points -------------------------------------------------------------------------------------------


def _smallest(value: Array) -> Array:
    """Smallest positive number at which XLA does not flush differences of neighboring numbers to zero.

    The gradient of a logarithm at this number is finite, and stays finite when it is multiplied by up to `1 / eps`.
    """
    info = jnp.finfo(value.dtype)
    return jnp.asarray(info.tiny / info.eps, value.dtype)


def _above(bound: ArrayLike, value: Array, width: ArrayLike = 1.0) -> Array:
    """Smallest number above a bound whose distance from the bound, relative to a width, does not underflow."""
    bound, width = (lax.stop_gradient(jnp.asarray(each, value.dtype)) for each in (bound, width))
    step = jnp.maximum(width * _smallest(value), jnp.finfo(value.dtype).tiny)
    return jnp.maximum(jnp.nextafter(bound, jnp.full_like(bound, jnp.inf)), bound + step)


def _off_lower(value: Array, edge: ArrayLike, width: ArrayLike = 1.0) -> Array:
    """Move values from a lower edge to the first usable number above it."""
    least = _above(edge, value, width)
    return jnp.where((value >= edge) & (value < least), least, value)


def _off_upper(value: Array, edge: ArrayLike, width: ArrayLike = 1.0, rounding: ArrayLike = 0.0) -> Array:
    """Move values from an upper edge, or beyond it within a rounding error, to the last usable number below it."""
    most = -_above(-jnp.asarray(edge), value, width)
    return jnp.where((value <= edge + rounding) & (value > most), most, value)


@interior_point.register(constraints.greater_than)
def _greater_than(constraint: Any, value: ArrayLike) -> Array:
    return _off_lower(jnp.asarray(value), constraint.lower_bound)


@interior_point.register(constraints.less_than)
def _less_than(constraint: Any, value: ArrayLike) -> Array:
    return _off_upper(jnp.asarray(value), constraint.upper_bound)


@interior_point.register(constraints.interval)
def _interval(constraint: Any, value: ArrayLike) -> Array:
    value = jnp.asarray(value)
    low, high = (jnp.asarray(bound, value.dtype) for bound in (constraint.lower_bound, constraint.upper_bound))
    # The bijection computes low + fraction * width. Rounding can push that sum past the upper edge by at most this much.
    rounding = jnp.finfo(value.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))
    return _off_upper(_off_lower(value, low, high - low), high, high - low, rounding)


@interior_point.register(type(constraints.simplex))
def _simplex(constraint: Any, value: ArrayLike) -> Array:
    value = jnp.asarray(value)
    return _floored(value, _smallest(value))


@interior_point.register(type(constraints.l1_ball))
def _l1_ball(constraint: Any, value: ArrayLike) -> Array:
    value = jnp.asarray(value)
    # The rounding error of the sum is at most half of this, and values on the edge are moved by twice this.
    rounding = (value.shape[-1] + 2) * jnp.finfo(value.dtype).eps
    size = lax.stop_gradient(jnp.sum(jnp.abs(value), axis=-1, keepdims=True))
    at_edge = (size > 1.0 - rounding) & (size < 1.0 + rounding)
    return jnp.where(at_edge, value * ((1.0 - 2.0 * rounding) / jnp.maximum(size, 0.5)), value)


@interior_point.register(type(constraints.ordered_vector))
def _ordered_vector(constraint: Any, value: ArrayLike) -> Array:
    value = jnp.asarray(value)

    def after(least: Array, each: Array) -> tuple[Array, Array]:
        return _above(jnp.maximum(least, each), value), least

    start = jnp.full(value.shape[:-1], -jnp.inf, value.dtype)
    _, least = lax.scan(after, start, jnp.moveaxis(lax.stop_gradient(value), -1, 0))
    least = jnp.moveaxis(least, 0, -1)
    in_order = jnp.all(value[..., 1:] >= value[..., :-1], axis=-1, keepdims=True)
    return jnp.where(in_order & (value < least), least, value)


@interior_point.register(type(constraints.positive_ordered_vector))
def _positive_ordered_vector(constraint: Any, value: ArrayLike) -> Array:
    return interior_point(constraints.ordered_vector, interior_point(constraints.positive, value))


@interior_point.register(type(constraints.lower_cholesky))
def _lower_cholesky(constraint: Any, value: ArrayLike) -> Array:
    value = jnp.asarray(value)
    return _with_diagonal(value, _smallest(value))


@interior_point.register(type(constraints.scaled_unit_lower_cholesky))
@interior_point.register(type(constraints.corr_cholesky))
def _by_squares(constraint: Any, value: ArrayLike) -> Array:
    value = jnp.asarray(value)
    # The bijections sum squares of the diagonal, or divide by its entries twice.
    return _with_diagonal(value, jnp.sqrt(_smallest(value)))


@interior_point.register(type(constraints.positive_definite))
@interior_point.register(type(constraints.positive_semidefinite))
@interior_point.register(type(constraints.corr_matrix))
def _positive_definite(constraint: Any, value: ArrayLike) -> Array:
    value = jnp.asarray(value)
    value = _with_diagonal(value, _smallest(value))
    rounding = value.shape[-1] * jnp.finfo(value.dtype).eps
    factor = jnp.linalg.cholesky(lax.stop_gradient(value))
    # Share of each variance that earlier coordinates do not explain; NaN if the matrix has no Cholesky factor.
    left = jnp.square(_diagonal(factor)) / _diagonal(value)
    definite = jnp.all(left > rounding, axis=-1)[..., None, None]
    nearer = value + 4.0 * rounding * (jnp.eye(value.shape[-1]) * value - value)
    return jnp.where(definite, value, nearer)


def _diagonal(matrix: Array) -> Array:
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def _with_diagonal(matrix: Array, least: Array) -> Array:
    return jnp.where(jnp.eye(matrix.shape[-1], dtype=bool), _floored(matrix, least), matrix)


def _floored(value: Array, least: Array) -> Array:
    return jnp.where((value >= 0.0) & (value < least), least, value)


@interior_point.register(constraints.independent)
def _independent(constraint: Any, value: ArrayLike) -> Array:
    return interior_point(constraint.base_constraint, value)


@interior_point.register(constraints.cat)
def _cat(constraint: Any, value: ArrayLike) -> Array:
    pieces = zip(constraint.cseq, constraint._slices(jnp.asarray(value)), strict=True)
    return jnp.concatenate([interior_point(part, piece) for part, piece in pieces], axis=constraint.dim)


@interior_point.register(joint)
def _joint(constraint: Any, value: ArrayLike) -> Array:
    pieces = zip(constraint.parts, split(value, constraint.shapes), strict=True)
    return join([interior_point(part, piece) for part, piece in pieces], constraint.shapes)


# Bijections ---------------------------------------------------------------------------------------


def _by_parts(constraint: Any, leaf: Callable[[constraints.Constraint], Transform]) -> Transform:
    """Compose the bijection of a constraint from the bijections of its parts."""
    if isinstance(constraint, joint):
        return JointTransform([_by_parts(part, leaf) for part in constraint.parts], constraint.shapes)
    if isinstance(constraint, constraints.independent):
        return IndependentTransform(_by_parts(constraint.base_constraint, leaf), constraint.reinterpreted_batch_ndims)
    if isinstance(constraint, constraints.cat):
        return CatTransform([_by_parts(part, leaf) for part in constraint.cseq], constraint.dim, constraint.lengths)
    return leaf(constraint)


class _Interior(Transform):
    """A bijection between the real line and the interior points of a constraint."""

    def __init__(self, transform: Transform, constraint: constraints.Constraint):
        self.transform = transform
        self.constraint = constraint

    @property
    def domain(self) -> constraints.Constraint:
        return self.transform.domain

    @property
    def codomain(self) -> constraints.Constraint:
        return self.constraint

    def __call__(self, x: ArrayLike) -> Array:
        value = jnp.asarray(self.transform(x))
        # Clip at half of the largest number, because an ordered vector needs room for larger numbers above each entry.
        largest = 0.5 * jnp.finfo(value.dtype).max
        return interior_point(self.constraint, jnp.clip(value, -largest, largest))

    def _inverse(self, y: ArrayLike) -> Array:
        return jnp.asarray(self.transform._inverse(interior_point(self.constraint, y)))

    def log_abs_det_jacobian(self, x: ArrayLike, y: ArrayLike, intermediates: Any = None) -> Array:
        return jnp.asarray(self.transform.log_abs_det_jacobian(x, interior_point(self.constraint, y)))

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.forward_shape(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.inverse_shape(shape)


def _interior_steps(transform: Transform) -> Transform:
    """A bijection whose steps, except for the last, map onto interior points."""
    if not isinstance(transform, ComposeTransform):
        return _precise(transform)
    *first, last = transform.parts
    return ComposeTransform([*map(_interior_step, first), _interior_steps(last)])


def _interior_step(transform: Transform) -> Transform:
    try:
        constraint = transform.codomain
    except NotImplementedError:  # numpyro raises this for an affine map whose domain it does not track.
        return _interior_steps(transform)
    return _Interior(_interior_steps(transform), constraint)


def _precise(transform: Transform) -> Transform:
    """Replace the parts of a bijection for which this module has a more accurate inverse."""
    if isinstance(transform, ComposeTransform):
        return ComposeTransform([_precise(part) for part in transform.parts])
    return {StickBreakingTransform: _StickBreaking, CorrCholeskyTransform: _CorrCholesky}.get(
        type(transform), lambda: transform
    )()


class _StickBreaking(StickBreakingTransform):
    """numpyro's stick-breaking transform, with an inverse that is accurate near a vertex.

    The remaining stick is summed from its end, because 1 minus the used part rounds to 0 near a vertex.
    """

    def _inverse(self, y: Any) -> Array:
        x = jnp.log(y[..., :-1]) - jnp.log(_left(y)[..., :-1])
        return x + jnp.log(x.shape[-1] - jnp.arange(x.shape[-1]))


class _CorrCholesky(CorrCholeskyTransform):
    """numpyro's Cholesky transform of correlations, with the remaining squared norm of a row summed from its end."""

    def _inverse(self, y: Any) -> Array:
        left = matrix_to_tril_vec(_left(jnp.square(y)), diagonal=-1)
        # tanh(result) is y over the root of the squared norm that the preceding entries of the row leave. So sinh(result) is y
        # over the root of what remains after y too, which is `left`.
        return jnp.arcsinh(matrix_to_tril_vec(y, diagonal=-1) / jnp.sqrt(left))

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Array:
        left = jnp.sum(jnp.log(matrix_to_tril_vec(_left(jnp.square(y)), diagonal=-2)), axis=-1)
        return 0.5 * left - 2.0 * jnp.sum(x + jax.nn.softplus(-2.0 * x) - jnp.log(2.0), axis=-1)


def _left(parts: Array) -> Array:
    """Sum the entries after each entry along the last axis."""
    sums = jnp.flip(jnp.cumsum(jnp.flip(parts, axis=-1), axis=-1), axis=-1)
    return jnp.concatenate([sums[..., 1:], jnp.zeros_like(sums[..., :1])], axis=-1)
