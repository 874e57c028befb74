"""Supports: the map from events on a support of numpyro's to vectors on the real line."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from ..._registry import savable
from ..._typing import Array, Float, Scalar
from ..interior import bijection, interior_bijection
from .interface import AbstractTransform


@savable
class FromSupport(AbstractTransform):
    """Flattened unconstrained coordinates of an event, by numpyro's bijection for its support.

    An event that has been rounded to an edge of the support is mapped as the nearest point inside, and so is an image that
    rounds to an edge: see `interior_bijection`.

    Args:
        support: numpyro constraint of one event.
        event_shape: shape of one event.
    """

    support: constraints.Constraint
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def forward_and_log_det(self, x: Float[Array, "*event"]) -> tuple[Float[Array, " dim"], Scalar]:
        transform = interior_bijection(self.support)
        unconstrained = transform._inverse(x)
        log_det = transform.log_abs_det_jacobian(unconstrained, x)
        return jnp.ravel(unconstrained), -jnp.sum(log_det)

    def inverse(self, y: Float[Array, " dim"]) -> Float[Array, "*event"]:
        transform = interior_bijection(self.support)
        return jnp.asarray(transform(jnp.reshape(y, transform.inverse_shape(self.event_shape))))

    def summary(self, names: Sequence[str]) -> str:
        return ""  # the support is the user's own argument


def unconstrain(events: np.ndarray, support: constraints.Constraint) -> np.ndarray:
    """Unconstrained events, always in float64. Events on an edge of the support are not finite."""
    with jax.enable_x64(True):
        return np.asarray(bijection(support)._inverse(jnp.asarray(events)), np.float64)
