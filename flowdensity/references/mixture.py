"""Mixtures of Gaussians: closed-form density, and closed-form velocity and divergence on a Gaussian path."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._arrays import Fixes
from .._checks import real_array
from .._registry import savable
from .._squash import squash
from .._typing import Array, ArrayLike, Context, Float, Scalar, State

EQUAL_WEIGHTS = Fixes(categories="weights = numpy.ones(len(means))")
"""Fix that gives all components the same weight."""


@savable
class GaussianMixture(eqx.Module):
    r"""A mixture of Gaussians $N(m_k, C_k)$, with its velocity on the Gaussian path from noise.

    Let $S_k = \sin^2\phi\,C_k + \cos^2\phi\,I$ be the covariance of component $k$ at the angle $\phi$, $\pi_k(\phi, y)$ the
    posterior probability of the component and $g_k$ its score. The velocity is

    $$
    f = \sum_k \pi_k f_k, \qquad f_k = \sin\phi\cos\phi\,(C_k - I)\,S_k^{-1}(y - \sin\phi\,m_k) + \cos\phi\,m_k, \qquad
    g_k = -S_k^{-1}(y - \sin\phi\,m_k) .
    $$

    All computations use the principal axes of each component, along which these matrices are diagonal.

    Args:
        weights: positive weights of the components, which are normalized to sum 1, shape `(components,)`.
        means: means of the components in whitened units, shape `(components, dim)`.
        covariances: positive definite covariances, shape `(components, dim, dim)`.

    Raises:
        TypeError: if an argument does not consist of real numbers.
        ValueError: if the shapes are inconsistent, a weight is not positive, or a covariance is not positive definite.

    Examples:
        >>> means = np.array([[-1.0, 0.0], [1.0, 0.0]])
        >>> mixture = fd.models.GaussianMixture(np.ones(2), means, np.stack([0.2 * np.eye(2)] * 2))
        >>> mixture.log_prob(jnp.zeros(2))
        >>> velocity, divergence = mixture(0.5, jnp.zeros(2))
    """

    log_weights: Float[Array, " components"]
    axes: Float[Array, "components dim dim"]
    centers: Float[Array, "components dim"]
    variances: Float[Array, "components dim"]

    def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike):
        # The eigendecomposition is computed in float64, whatever JAX's default dtype.
        given = {"weights": weights, "means": means, "covariances": covariances}
        weights, means, covariances = (
            real_array("GaussianMixture", name, each, EQUAL_WEIGHTS) for name, each in given.items()
        )
        if not (weights.shape == means.shape[:1] and covariances.shape == (*means.shape, *means.shape[1:])):
            raise ValueError(
                "GaussianMixture expected `weights`, `means` and `covariances` of the shapes (k,), (k, dim) and (k, dim, dim); "
                f"got {weights.shape}, {means.shape} and {covariances.shape}. "
                f"Fix: {_of_one_shape(weights.shape, means.shape, covariances.shape)}"
            )
        variances, axes = np.linalg.eigh(covariances)
        if not (np.all(weights > 0.0) and np.all(variances > 0.0)):
            raise ValueError(
                "GaussianMixture expected positive `weights` and positive definite `covariances`; got a smallest weight of "
                f"{weights.min():.3g} and a smallest variance of {variances.min():.3g}. "
                f"Fix: {_made_positive(weights, covariances)}"
            )
        self.log_weights = jnp.asarray(np.log(weights / weights.sum()), float)
        self.axes = jnp.asarray(axes, float)
        self.centers = jnp.asarray(np.einsum("kij,ki->kj", axes, means), float)
        self.variances = jnp.asarray(variances, float)

    def __check_init__(self) -> None:
        count, dim = self.centers.shape
        shapes = self.log_weights.shape, self.axes.shape, self.variances.shape
        expected = (count,), (count, dim, dim), (count, dim)
        if shapes != expected:
            raise ValueError(f"GaussianMixture expected arrays of the shapes {expected}; got {shapes}")

    def given(self, context: Context) -> "GaussianMixture":
        """The mixture itself, which depends on no context."""
        return self

    def log_prob(self, state: State) -> Scalar:
        """Log density of a whitened state, shape `(dim,)`, in nats."""
        centered = jnp.einsum("kij,i->kj", self.axes, state, precision="highest") - self.centers
        exponents = -0.5 * jnp.sum(
            jnp.square(centered) / self.variances + jnp.log(2.0 * jnp.pi * self.variances), axis=1
        )
        return jax.scipy.special.logsumexp(self.log_weights + exponents)

    def __call__(self, angle: Scalar, state: State) -> tuple[State, Scalar]:
        """Velocity, shape `(dim,)`, and its divergence at a whitened state."""
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        variances = jnp.square(sine) * self.variances + jnp.square(cosine)
        # Narrow components amplify rounding errors, and the default precision of matrix products on a GPU is too low for them.
        turned = jnp.einsum("kij,i->kj", self.axes, state, precision="highest")
        centered = turned - sine * self.centers
        scores = -centered / variances
        shares = jax.nn.softmax(self.log_weights + 0.5 * jnp.sum(centered * scores - jnp.log(variances), axis=1))
        slopes = sine * cosine * (self.variances - 1.0) / variances
        velocities = slopes * centered + cosine * self.centers
        each = jnp.einsum("kij,nkj->nki", self.axes, jnp.stack([velocities, scores]), precision="highest")
        velocity, score = jnp.einsum("k,nki->ni", shares, each, precision="highest")
        # The posterior probabilities depend on the state: the gradient of log(share) is the component's score minus the mean
        # score.
        moved = jnp.sum((each[0] - velocity[None]) * (each[1] - score[None]), axis=1)
        return velocity, jnp.dot(shares, jnp.sum(slopes, axis=1) + moved)

    def faded(self, angle: Scalar, state: State, reach: Scalar) -> tuple[State, Scalar]:
        r"""Velocity $m f(\phi, m y)$ and its divergence. The squash factor $m$ fades it beyond `reach`, as for a network."""
        near, _ = squash(state, reach)
        factor, slope = jax.value_and_grad(lambda y: squash(y, reach)[1])(state)
        (velocity, rate), (change, _) = jax.jvp(lambda y: self(angle, y), (near,), (state,))
        return factor * velocity, jnp.dot(slope, velocity + factor * change) + jnp.square(factor) * rate


def _of_one_shape(weights: tuple[int, ...], means: tuple[int, ...], covariances: tuple[int, ...]) -> str:
    """Fix that gives the arrays of a mixture the shapes that its means imply."""
    count, dim = means if len(means) == 2 else (1, math.prod(means))
    lines = [] if len(means) == 2 else ["means = numpy.reshape(means, (1, -1))"]
    if weights != (count,):
        lines.append(f"weights = numpy.ones({count})")
    if covariances != (count, dim, dim):
        known = covariances in ((dim, dim), (1, dim, dim))
        lines.append(f"covariances = numpy.tile({'covariances' if known else f'numpy.eye({dim})'}, ({count}, 1, 1))")
        if covariances == (1, dim, dim):
            lines[-1] = f"covariances = numpy.repeat(covariances, {count}, axis=0)"
    return "; ".join(lines)


def _made_positive(weights: np.ndarray, covariances: np.ndarray) -> str:
    """Fix that drops components without a positive weight, or increases the variances."""
    if not np.all(weights > 0.0):
        if not np.any(weights > 0.0):
            return "weights = numpy.ones(len(means))"
        kept = np.flatnonzero(weights > 0.0).tolist()
        return f"weights, means, covariances = (numpy.asarray(each)[{kept}] for each in (weights, means, covariances))"
    least, most = np.linalg.eigvalsh(covariances).min(), max(1.0, float(np.abs(covariances).max()))
    return f"covariances = covariances + {1e-6 * most - min(0.0, least):.7g} * numpy.eye({covariances.shape[-1]})"
