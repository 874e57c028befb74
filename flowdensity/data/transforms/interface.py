"""Transforms: invertible maps between arrays, with a log determinant, composed in a chain.

Three instances of the idea: the logarithm takes positive events to the real line, Johnson's SU map shortens the tails of single
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
"""Largest number of coordinates that a summary names."""


class AbstractTransform(eqx.Module):
    """An invertible map of one array; no batch axes."""

    @abc.abstractmethod
    def forward_and_log_det(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Scalar]:
        """The image of `x`, and the log of the absolute determinant of the map's Jacobian at `x`, in nats."""

    @abc.abstractmethod
    def inverse(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """The array whose image is `y`."""

    @abc.abstractmethod
    def summary(self, names: Sequence[str]) -> str:
        """Describe what the map does to the data, as text for a report; empty where there is nothing to report.

        Args:
            names: one name for each coordinate; coordinates of one site share a name.
        """


@savable
class Chain(AbstractTransform):
    """Transforms applied one after another.

    Args:
        transforms: in the order in which `forward_and_log_det` applies them.
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
    """The names of some coordinates, each once, as text; of more than `MAX_NAMED` the first, and how many are left out."""
    chosen = list(dict.fromkeys(names[coordinate] for coordinate in coordinates))
    more = f" and {len(chosen) - MAX_NAMED} more" if len(chosen) > MAX_NAMED else ""
    return ", ".join(chosen[:MAX_NAMED]) + more
