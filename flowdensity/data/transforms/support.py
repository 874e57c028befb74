"""Transform from events on a numpyro support to vectors on the real line."""

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
    """Map an event to flattened unconstrained coordinates, with numpyro's bijection for its support.

    An event on an edge of the support is replaced by the nearest point inside, in both directions of the map: see
    `interior_bijection`.

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
        return ""  # The user passed the support, so there is nothing to report.


def unconstrain(events: np.ndarray, support: constraints.Constraint) -> np.ndarray:
    """Map events to unconstrained space, always in float64; events on an edge of the support become infinite."""
    with jax.enable_x64(True):
        return np.asarray(bijection(support)._inverse(jnp.asarray(events)), np.float64)
