"""Rounded values of a continuous density, as a numpyro distribution."""

import copy
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import validate_sample
from scipy.stats import qmc

from .._checks import check_count, check_kind, real_jax_array
from .._typing import Array, ArrayLike, Key
from ..data.rounding import is_whole, units_of


class _Multiples(constraints.Constraint):
    """Multiples of a unit; any number where it is 0. By numpyro's custom the class has the underscore."""

    is_discrete = True

    def __init__(self, unit: Array):
        self.unit = unit

    def __call__(self, x: Any) -> Array:
        return jnp.isfinite(x) & ((self.unit == 0) | is_whole(x, jnp.where(self.unit > 0, self.unit, 1.0)))

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.zeros_like(prototype)

    def eq(self, other: object, static: bool = False) -> Any:
        if not isinstance(other, _Multiples) or jnp.shape(self.unit) != jnp.shape(other.unit):
            return False
        same = jnp.all(self.unit == other.unit)
        return bool(same) if static else same

    def tree_flatten(self) -> Any:
        return (self.unit,), (("unit",), {})


class Rounded(dist.Distribution):
    r"""What is recorded of a continuous density whose values are rounded to the nearest multiple of a unit.

    The log probability of a recorded value is that of its cell,

    $$\log P(x) = \log\int_{[-1/2, 1/2]^D} p(x + w \odot u)\,\mathrm{d}u + \sum_i\log w_i ,$$

    over a scrambled Sobol sequence (Owen 1998, ACM TOMACS 8), the same for every value: it is deterministic, and smooth in what
    `base` depends on. What of a cell is beyond the support of `base` counts for nothing. Where the unit of a coordinate is 0 it
    is not rounded, and what comes is a density in it.

    Args:
        base: a continuous distribution, such as a `FlowDensity` that was learned from `dequantise`d rows.
        unit: what values are rounded to, in their own units; of a shape that broadcasts to the event shape.
        points: evaluations of `base` for each value, a power of 2; 1 takes the density in the middle for that of the whole cell.
        validate_args: as in numpyro.

    Raises:
        TypeError: if `base` is no distribution, or `unit` are no numbers.
        ValueError: if `base` is discrete, a unit negative or of another shape, or `points` no power of 2.
    """

    arg_constraints = {}
    reparametrized_params = []
    pytree_data_fields = ("base", "unit", "offsets")

    def __init__(
        self, base: dist.Distribution, unit: ArrayLike = 1.0, *, points: int = 16, validate_args: bool | None = None
    ):
        check_kind("Rounded", "base", base, dist.Distribution, "fd.Rounded(density, unit=0.1)")
        if base.is_discrete:
            raise ValueError(
                f"Rounded expected a continuous `base`; got {type(base).__name__}, which is discrete. Fix: use it as it is"
            )
        points = check_count("Rounded", "points", points, fix=16)
        if points & (points - 1):
            raise ValueError(
                f"Rounded expected `points` as a power of 2, for which a Sobol sequence is balanced; got {points}. "
                f"Fix: points={1 << points.bit_length()}"
            )
        shape = base.event_shape
        units = np.broadcast_to(units_of("Rounded", unit, shape), shape)
        middle = np.full((1, *shape), 0.5)
        cube = qmc.Sobol(math.prod(shape), rng=0).random(points).reshape(points, *shape) if points > 1 else middle
        self.base = base
        self.unit = jnp.asarray(units, float)
        self.offsets = jnp.asarray(units * (cube - 0.5), float)
        super().__init__(base.batch_shape, shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)  # type: ignore[arg-type]
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        multiples = _Multiples(self.unit)
        return constraints.independent(multiples, self.event_dim) if self.event_dim else multiples

    def sample(self, key: Key | None, sample_shape: tuple[int, ...] = ()) -> Array:
        value = self.base.sample(key, sample_shape)
        width = jnp.where(self.unit > 0, self.unit, 1.0)
        return jnp.where(self.unit > 0, width * jnp.round(value / width), value)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log probability in nats, shape `value.shape[:-event_dim]` broadcast with `batch_shape`."""
        value = real_jax_array("Rounded.log_prob", "value", value, "numpy.asarray(value, float)")
        points = len(self.offsets)
        axes = value.ndim - self.event_dim
        inside = value + self.offsets.reshape(points, *[1] * axes, *self.event_shape)
        support: Any = self.base.support
        kept = jnp.asarray(support(inside))
        # Beyond the support a density may be nan, and so would be its gradient.
        somewhere = jnp.where(kept.reshape(*kept.shape, *[1] * self.event_dim), inside, support.feasible_like(inside))
        log_probs = jnp.where(kept, self.base.log_prob(somewhere), -jnp.inf)
        volume = jnp.sum(jnp.log(jnp.where(self.unit > 0, self.unit, 1.0)))
        return logsumexp(log_probs, axis=0) - math.log(points) + volume


@promote_batch_shape.register(Rounded)  # type: ignore[arg-type]
def _promote_batch_shape(density: Any) -> Any:
    """What numpyro's `scan` makes of it: cells have no batch axes."""
    promoted = copy.copy(density)
    promoted.base = promote_batch_shape(density.base)
    promoted._batch_shape = promoted.base.batch_shape
    axes = len(promoted.batch_shape) - len(density.batch_shape)
    promoted.unit, promoted.offsets = (leaf[(0,) * axes] for leaf in (density.unit, density.offsets))
    return promoted
