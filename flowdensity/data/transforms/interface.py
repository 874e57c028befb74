"""Transforms: invertible maps between arrays with a log determinant, composed in a chain.

Three examples: the logarithm maps positive events to the real line, Johnson's SU transform shortens the tails of single
coordinates, and an affine map whitens. `Chain` applies such maps one after another and sums their log determinants.
CONTRIBUTING.md shows how to add a transform.
"""

import abc
from collections.abc import Iterable, Sequence

import equinox as eqx
import jax.numpy as jnp

from ..._registry import savable
from ..._typing import Array, Float, Scalar

MAX_NAMED = 8
"""Maximum number of coordinates named in a summary."""


class AbstractTransform(eqx.Module):
    """An invertible map of one array without batch axes."""

    @abc.abstractmethod
    def forward_and_log_det(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Scalar]:
        """The image of `x`, and the log of the absolute determinant of the map's Jacobian at `x`, in nats."""

    @abc.abstractmethod
    def inverse(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """The array whose image is `y`."""

    @abc.abstractmethod
    def summary(self, names: Sequence[str]) -> str:
        """Describe what the map does to the data, as text for a report; empty if there is nothing to report.

        Args:
            names: one name for each coordinate; coordinates of one site share a name.
        """


@savable
class Chain(AbstractTransform):
    """Transforms applied one after another.

    Args:
        transforms: transforms in the order in which `forward_and_log_det` applies them.
    """

    transforms: tuple[AbstractTransform, ...]

    def forward_and_log_det(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Scalar]:
        total = jnp.zeros(())
        for transform in self.transforms:
            x, log_det = transform.forward_and_log_det(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        for transform in reversed(self.transforms):
            y = transform.inverse(y)
        return y

    def summary(self, names: Sequence[str]) -> str:
        return "; ".join(text for transform in self.transforms if (text := transform.summary(names)))


def name_list(names: Sequence[str], coordinates: Iterable[int]) -> str:
    """List the distinct names of some coordinates as text; beyond `MAX_NAMED` names, give the number of the others."""
    chosen = list(dict.fromkeys(names[coordinate] for coordinate in coordinates))
    more = f" and {len(chosen) - MAX_NAMED} more" if len(chosen) > MAX_NAMED else ""
    return ", ".join(chosen[:MAX_NAMED]) + more
