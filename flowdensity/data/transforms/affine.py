"""Affine maps: centering and whitening, or scaling of each coordinate."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ..._registry import savable
from ..._typing import Array, Float, Scalar
from .interface import AbstractTransform


@savable
class Affine(AbstractTransform):
    r"""The map $x \mapsto S^{-1}(x - \mu)$, so that $N(0, I)$ corresponds to $N(\mu, S S^\top)$.

    Args:
        location: $\mu$, shape `(dim,)`.
        scale: $S$ with a positive determinant, shape `(dim, dim)`, or the diagonal of a diagonal $S$, shape `(dim,)`.
    """

    location: Float[Array, " dim"]
    scale: Float[Array, "dim dim"] | Float[Array, " dim"]
    whitener: Float[Array, "dim dim"] | Float[Array, " dim"]
    log_scale: Scalar

    def __init__(self, location: np.ndarray | Array, scale: np.ndarray | Array):
        # The inverse is computed once, in float64 unless it is traced. Inside a sampler a matrix product is many times faster
        # than a triangular solve, and a shrunk covariance is well conditioned.
        xp = np if isinstance(scale, np.ndarray) else jnp
        whitener = xp.linalg.inv(scale) if scale.ndim == 2 else 1.0 / scale
        log_scale = xp.linalg.slogdet(scale)[1] if scale.ndim == 2 else xp.sum(xp.log(scale))
        self.location = jnp.asarray(location, float)
        self.scale = jnp.asarray(scale, float)
        self.whitener = jnp.asarray(whitener, float)
        self.log_scale = jnp.asarray(log_scale, float)

    def forward_and_log_det(self, x: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        return _times(self.whitener, x - self.location), -self.log_scale

    def inverse(self, y: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.location + _times(self.scale, y)

    def summary(self, names: Sequence[str]) -> str:
        return ""  # Every table is whitened, so there is nothing to report.


def _times(matrix: Array, vector: Array) -> Array:
    """Product of a matrix, or of a diagonal matrix given as a vector, with a vector."""
    return matrix @ vector if matrix.ndim == 2 else matrix * vector
