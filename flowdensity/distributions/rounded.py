"""Rounded values of a continuous density, as a numpyro distribution."""

import functools
import math
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample
from scipy.stats import qmc

from .._checks import check_count, check_kind, real_jax_array, reshaping
from .._numpyro import promote_with, promoted
from .._pytree import in_session, without_copies
from .._typing import Array, ArrayLike, Key
from ..data.interior import interior_point
from ..data.rounding import units_of
from ..data.supports import free_size

MAX_EVENTS = 2**16
"""Maximum number of events whose density is evaluated at once. Beyond it, the points of each cell are split into blocks."""


class _Recorded(constraints.Constraint):
    """Any finite number, as the middle of a cell. The class has an underscore by numpyro's convention."""

    is_discrete = True

    def __call__(self, x: Any) -> Any:
        # As in numpyro, numpy input gives numpy output, so that constants are checked under jit too.
        return np.isfinite(x) if isinstance(x, np.ndarray | np.number | float | int) else jnp.isfinite(x)

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.zeros_like(prototype)

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, _Recorded)

    def tree_flatten(self) -> Any:
        return (), ((), {})


@final
class Rounded(dist.Distribution):
    r"""Values of a continuous density after rounding to the nearest multiple of a unit.

    The log probability of a recorded value is that of its cell,

    $$\log P(x) = \log\int_{[-1/2, 1/2]^D} p(x + w \odot u)\,\mathrm{d}u + \sum_{i: w_i > 0}\log w_i ,$$

    where $w$ holds the units. The integral is computed with a scrambled Sobol sequence (Owen 1998, J. Complexity 14, 466), which
    is the same for every value. The result is therefore deterministic, and smooth in the parameters of `base`. The part of a cell
    outside the support of `base` does not contribute. A coordinate whose unit is 0 is not rounded, and `log_prob` is then a
    density in that coordinate. The required number of points grows with the dimension and with the size of the cells; see "Real
    columns" in the docs.

    Args:
        base: a continuous distribution, such as a `FlowDensity` that was learned from `dequantize`d rows.
        unit: unit to whose multiples the values are rounded; its shape must broadcast to the event shape.
        points: number of evaluations of `base` for each value, a power of 2; 1 uses the density in the middle of the cell.
        validate_args: as in numpyro.

    Raises:
        TypeError: if `base` is not a distribution, or `unit` is traced.
        ValueError: if `base` is discrete or on a surface, such as a simplex; if a unit is negative or has the wrong shape; if
            `points` is not a power of 2.

    Examples:
        >>> rounded = fd.Rounded(density, unit=0.1)
        >>> rounded.sample(key, (5,))
        >>> rounded.log_prob(np.round(data[:5], 1))  # log probabilities
    """

    arg_constraints = {}
    reparametrized_params = []
    pytree_data_fields = ("_base", "_cells")

    def __init__(
        self, base: dist.Distribution, unit: ArrayLike = 1.0, *, points: int = 64, validate_args: bool | None = None
    ):
        check_kind("Rounded", "base", base, dist.Distribution, "base = density")
        shape = base.event_shape
        _check_cells("Rounded", base)
        if isinstance(unit, Tracer):
            raise TypeError(
                "Rounded expected `unit` as numbers that are known before tracing; got a traced array. "
                "A numpy array also works. Fix: fd.Rounded(base, unit=1.0)"
            )
        units = np.broadcast_to(units_of("Rounded", unit, shape), shape)
        points = check_count("Rounded", "points", points, fix=64)
        if points & (points - 1):
            raise ValueError(
                f"Rounded expected `points` as a power of 2, for which a Sobol sequence is balanced; got {points}. "
                f"Fix: points={1 << points.bit_length()}"
            )
        self._base = base
        with jax.ensure_compile_time_eval():
            offsets = units * _cube(math.prod(shape), points).reshape(points, *shape)
            self._cells = jnp.asarray(units, float), jnp.asarray(offsets, float)
        super().__init__(base.batch_shape, shape, validate_args=validate_args)

    @property
    def base(self) -> dist.Distribution:
        """The distribution that is rounded."""
        return promoted(self._base, self.batch_shape)

    @property
    def unit(self) -> Array:
        """Unit of each coordinate, shape `event_shape`."""
        return self._one_cell[0]

    @property
    def offsets(self) -> Array:
        """Points of a cell relative to its middle, shape `(points, *event_shape)`."""
        return self._one_cell[1]

    @property
    def _one_cell(self) -> tuple[Array, Array]:
        # Units are constants, so the copies that a scan makes of them are equal.
        return in_session(without_copies(self._cells, np.ndim(self._cells[0]) - self.event_dim))

    @constraints.dependent_property(is_discrete=True)  # type: ignore[arg-type]
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(_Recorded(), self.event_dim) if self.event_dim else _Recorded()

    @property
    def has_rsample(self) -> bool:
        """False, since rounded samples are piecewise constant and have no useful derivative."""
        return False

    def sample(self, key: Key | None, sample_shape: tuple[int, ...] = ()) -> Array:
        value = self.base.sample(key, sample_shape)
        width = jnp.where(self.unit > 0, self.unit, 1.0)
        return jnp.where(self.unit > 0, width * jnp.round(value / width), value)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log probability in nats, with the shape `value.shape[:-event_dim]` broadcast with `batch_shape`."""
        value = real_jax_array("Rounded.log_prob", "value", value, "value = distribution.sample(key)")
        axes = value.ndim - self.event_dim
        if axes < 0 or value.shape[axes:] != self.event_shape:
            raise ValueError(
                f"Rounded.log_prob expected `value` with shape (..., {', '.join(map(str, self.event_shape))}); got "
                f"{value.shape}. Fix: {reshaping('value', value.shape, self.event_shape)}"
            )
        # The axis of points precedes all batch axes, so the batch axes must all be present.
        batch = jnp.broadcast_shapes(value.shape[:axes], self.batch_shape)
        points = len(self.offsets)
        middles = jnp.broadcast_to(value, (*batch, *self.event_shape))
        some = max(1, MAX_EVENTS // max(1, math.prod(batch)))
        if points <= some:
            log_probs = self._log_probs(middles, self.offsets)
        else:
            block = jax.checkpoint(functools.partial(self._log_probs, middles), prevent_cse=False)
            some = 2 ** int(math.log2(some))
            blocks = self.offsets.reshape(points // some, some, *self.event_shape)
            log_probs = jax.lax.map(block, blocks).reshape(points, *batch)
        volume = jnp.sum(jnp.log(jnp.where(self.unit > 0, self.unit, 1.0)))
        return logsumexp(log_probs, axis=0) - math.log(points) + volume

    def _log_probs(self, middles: Array, offsets: Array) -> Array:
        """Log densities of `base` at some points of each cell, shape `(points, *batch)`; minus infinity outside the support."""
        batch = middles.shape[: middles.ndim - self.event_dim]
        inside = middles + offsets.reshape(len(offsets), *[1] * len(batch), *self.event_shape)
        support: Any = self.base.support
        kept = jnp.broadcast_to(support(inside), (len(offsets), *batch))
        # Outside the support the density and its gradient may be NaN, and on an edge the density may be infinite.
        somewhere = jnp.where(kept.reshape(*kept.shape, *[1] * self.event_dim), inside, support.feasible_like(inside))
        return jnp.where(kept, self.base.log_prob(interior_point(support, somewhere)), -jnp.inf)


@functools.lru_cache(maxsize=32)
def _cube(dim: int, points: int) -> np.ndarray:
    """Points of a cube of side 1 around the origin. A single point is its middle."""
    return qmc.Sobol(dim, rng=0).random(points) - 0.5 if points > 1 else np.zeros((1, dim))


def _check_cells(caller: str, base: dist.Distribution) -> None:
    """Check that `base` has cells: it is continuous, has as many dimensions as coordinates, and not too many coordinates."""
    size = math.prod(base.event_shape)
    if base.is_discrete:
        raise ValueError(
            f"{caller} expected a continuous `base`; got {type(base).__name__}, which is discrete and already has "
            "probabilities. Fix: base"
        )
    free = free_size(base.support, base.event_shape)  # type: ignore[arg-type]
    if free != size:
        raise ValueError(
            f"{caller} expected a `base` with as many dimensions as coordinates; got {type(base).__name__} on "
            f"{base.support}, with {free} dimensions for {size} coordinates. {free} of the coordinates determine the others. "
            f"Fix: density, report = fd.fit_flow(key, data[..., :{free}]); base = density"
        )
    if size > qmc.Sobol.MAXDIM:
        raise ValueError(
            f"{caller} expected a `base` with at most {qmc.Sobol.MAXDIM} coordinates; got {size}. With so many "
            "coordinates, approximate the probability by the density at the cell center times the cell volume. Fix: base"
        )


promote_with(Rounded, "base")
