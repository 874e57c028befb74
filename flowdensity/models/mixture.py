"""Mixtures of Gaussians on the circle: the start of a flow on few rows, with velocity and divergence in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, ArrayLike, Float, Scalar, State
from .networks import squash


class GaussianMixture(eqx.Module):
    r"""The velocity on the circle whose data are a mixture of Gaussians $N(m_k, C_k)$, and its divergence.

    With $S_k = \sin^2\phi\,C_k + \cos^2\phi\,I$, the probability $\pi_k(\phi, y)$ of a component and the score $g_k$ of its law
    at an angle,

    $$
    f = \sum_k \pi_k f_k, \qquad f_k = \sin\phi\cos\phi\,(C_k - I)\,S_k^{-1}(y - \sin\phi\,m_k) + \cos\phi\,m_k, \qquad
    g_k = -S_k^{-1}(y - \sin\phi\,m_k) .
    $$

    Everything is computed along the components' own axes, where these matrices are diagonal.

    Args:
        weights: of the components, of sum 1, shape `(components,)`.
        means: whitened, shape `(components, dim)`.
        covariances: positive definite, shape `(components, dim, dim)`.
    """

    log_weights: Float[Array, " components"]
    axes: Float[Array, "components dim dim"]
    centres: Float[Array, "components dim"]
    variances: Float[Array, "components dim"]

    def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike):
        # In float64, whatever JAX's own precision.
        variances, axes = np.linalg.eigh(np.asarray(covariances, np.float64))
        self.log_weights = jnp.asarray(np.log(np.asarray(weights, np.float64)), float)
        self.axes = jnp.asarray(axes, float)
        self.centres = jnp.asarray(np.einsum("kij,ki->kj", axes, means), float)
        self.variances = jnp.asarray(variances, float)

    def __call__(self, angle: Scalar, state: State) -> tuple[State, Scalar]:
        """Velocity, shape `(dim,)`, and its divergence at a whitened state."""
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        variances = jnp.square(sine) * self.variances + jnp.square(cosine)
        centred = jnp.einsum("kij,i->kj", self.axes, state) - sine * self.centres
        scores = -centred / variances
        shares = jax.nn.softmax(self.log_weights + 0.5 * jnp.sum(centred * scores - jnp.log(variances), axis=1))
        slopes = sine * cosine * (self.variances - 1.0) / variances
        velocities = slopes * centred + cosine * self.centres
        velocity, score = jnp.einsum("k,kij,nkj->ni", shares, self.axes, jnp.stack([velocities, scores]))
        # The shares move with the state: their gradients are those of the components' scores less the mean score.
        each = jnp.sum(slopes + velocities * scores, axis=1)
        return velocity, jnp.dot(shares, each) - jnp.dot(velocity, score)

    def faded(self, angle: Scalar, state: State, reach: Scalar) -> tuple[State, Scalar]:
        r"""Velocity $m f(\phi, m y)$, which fades beyond `reach` as that of a network does, and its divergence."""
        near, _ = squash(state, reach)
        factor, slope = jax.value_and_grad(lambda y: squash(y, reach)[1])(state)
        (velocity, rate), (turned, _) = jax.jvp(lambda y: self(angle, y), (near,), (state,))
        return factor * velocity, jnp.dot(slope, velocity + factor * turned) + jnp.square(factor) * rate
