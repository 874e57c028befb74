"""Undocumented parts of numpyro, and the wrappers that numpyro puts around distributions.

Only this module depends on the undocumented parts. It was checked with numpyro 0.22.0. After a release of numpyro, compare this
file with the release, and then run tests/distributions.
"""

import copy
from abc import ABCMeta
from typing import Any, TypeVar

import numpyro.distributions as dist
from numpyro.distributions.batch_util import promote_batch_shape

# The handlers around a site, with the outermost first.
from numpyro.primitives import _PYRO_STACK as HANDLERS

__all__ = [
    "HANDLERS",
    "AbstractDistributionMeta",
    "innermost",
    "layers",
    "own_validation",
    "promote_with",
    "promoted",
    "rewrapped",
    "unwrapped",
]

Inner = TypeVar("Inner", bound=dist.Distribution)


class AbstractDistributionMeta(ABCMeta, type(dist.Distribution)):
    """Metaclass of abstract distributions, since numpyro's own metaclass ignores `abstractmethod`."""


# Wrappers ----------------------------------------------------------------------------------------


def layers(fn: Any, *, masked: bool = True) -> list[Any]:
    """List a distribution and everything that it wraps: expansions, axes declared as event axes and, if `masked`, masks.

    Returns:
        The distributions, with the outermost first. The last one is not a wrapper.
    """
    kinds = (dist.ExpandedDistribution, dist.Independent, *[dist.MaskedDistribution] * masked)
    found = [fn]
    while isinstance(found[-1], kinds):
        found.append(found[-1].base_dist)
    return found


def unwrapped(fn: Any, *, masked: bool = True) -> Any:
    """Return the distribution inside all wrappers, as in `layers`."""
    return layers(fn, masked=masked)[-1]


def rewrapped(fn: Any, inner: dist.Distribution) -> dist.Distribution:
    """Put `inner` inside the wrappers of `fn`."""
    for wrapper in reversed(layers(fn)[:-1]):
        if isinstance(wrapper, dist.ExpandedDistribution):
            inner = inner.expand(wrapper.batch_shape)
        elif isinstance(wrapper, dist.Independent):
            inner = inner.to_event(wrapper.reinterpreted_batch_ndims)
        else:
            inner = dist.MaskedDistribution(inner, wrapper._mask)
    return inner


def innermost(fn: Any) -> Any:
    """Return the distribution inside all wrappers, transformations and truncations."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


# Batch shapes ------------------------------------------------------------------------------------


def promoted(inner: Inner, batch_shape: tuple[int, ...]) -> Inner:
    """Return an inner distribution with the batch shape of the outer one, to which numpyro's `scan` may have added axes.

    A `scan` stacks the arrays of a distribution over its steps and then calls `promote_batch_shape`, which only handles
    numpyro's own wrappers.
    """
    return inner if inner.batch_shape == batch_shape else promote_batch_shape(inner)


def promote_with(kind: type[dist.Distribution], name: str) -> None:
    """Make distributions of a kind take their batch shape from the distribution in the attribute `name` after a `scan`."""

    def promote(outer: Any) -> Any:
        again = copy.copy(outer)
        again._batch_shape = promote_batch_shape(getattr(outer, name)).batch_shape
        return again

    promote_batch_shape.register(kind)(promote)


# Validation --------------------------------------------------------------------------------------


def own_validation(fn: dist.Distribution) -> bool | None:
    """The `validate_args` that a distribution was created with; None if it follows numpyro's default."""
    return vars(fn).get("_validate_args")
