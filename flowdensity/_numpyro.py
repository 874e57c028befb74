"""The parts of numpyro that its documentation does not promise, and the wrappers that it puts around distributions.

This is the only module that depends on them. It was checked with numpyro 0.22.0: after a release of numpyro, read this file
against it, then run tests/distributions.
"""

import copy
from abc import ABCMeta
from typing import Any, TypeVar

import numpyro.distributions as dist
from numpyro.distributions.batch_util import promote_batch_shape

# The handlers around a site, the outermost first.
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
    """Metaclass of abstract distributions: numpyro's own, which alone ignores `abstractmethod`."""


# Wrappers ----------------------------------------------------------------------------------------


def layers(fn: Any, *, masked: bool = True) -> list[Any]:
    """A distribution and all that it wraps: expansions, axes declared as those of an event and, if `masked`, masks.

    Returns:
        The distributions, the outermost first; the last one is no wrapper.
    """
    kinds = (dist.ExpandedDistribution, dist.Independent, *[dist.MaskedDistribution] * masked)
    found = [fn]
    while isinstance(found[-1], kinds):
        found.append(found[-1].base_dist)
    return found


def unwrapped(fn: Any, *, masked: bool = True) -> Any:
    """The distribution inside all wrappers, as in `layers`."""
    return layers(fn, masked=masked)[-1]


def rewrapped(fn: Any, inner: dist.Distribution) -> dist.Distribution:
    """`inner` inside the wrappers that `fn` has."""
    for wrapper in reversed(layers(fn)[:-1]):
        if isinstance(wrapper, dist.ExpandedDistribution):
            inner = inner.expand(wrapper.batch_shape)
        elif isinstance(wrapper, dist.Independent):
            inner = inner.to_event(wrapper.reinterpreted_batch_ndims)
        else:
            inner = dist.MaskedDistribution(inner, wrapper._mask)
    return inner


def innermost(fn: Any) -> Any:
    """The distribution that another one follows from: inside its wrappers, transformations and truncations."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


# Batch shapes ------------------------------------------------------------------------------------


def promoted(inner: Inner, batch_shape: tuple[int, ...]) -> Inner:
    """An inner distribution with the batch shape of the outer one, to which numpyro's `scan` may have added axes.

    A `scan` stacks the arrays of a distribution over its steps and then calls `promote_batch_shape`, which knows numpyro's own
    wrappers alone.
    """
    return inner if inner.batch_shape == batch_shape else promote_batch_shape(inner)


def promote_with(kind: type[dist.Distribution], name: str) -> None:
    """Let distributions of a kind take the batch shape of the distribution in an attribute after a `scan`."""

    def promote(outer: Any) -> Any:
        again = copy.copy(outer)
        again._batch_shape = promote_batch_shape(getattr(outer, name)).batch_shape
        return again

    promote_batch_shape.register(kind)(promote)


# Validation --------------------------------------------------------------------------------------


def own_validation(fn: dist.Distribution) -> bool | None:
    """The `validate_args` that a distribution was made with; None if it follows numpyro's default."""
    return vars(fn).get("_validate_args")
