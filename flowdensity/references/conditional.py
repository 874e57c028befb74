"""Conditional mixtures of Gaussians: a joint mixture of state and context, conditioned on the context."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._registry import savable
from .._typing import Array, Context, Float
from .mixture import GaussianMixture


@savable
class ConditionalMixture(eqx.Module):
    r"""A mixture of Gaussians whose weights and means depend on the context.

    A joint mixture of a state and a summary $u = P c$ of the context, conditioned on the context, is again a mixture. Its
    covariances are Schur complements and do not depend on the context. Its means are affine in the context. Its weights are
    proportional to $w_k\,N(u; a_k, U_k)$. If a context has more entries than $P$ has columns, only the first ones are used.

    Args:
        mixture: the mixture at a context of zeros, but with the unconditional weights $w_k$.
        slopes: slopes of the means with respect to the context, along the principal axes of each component, shape
            `(components, dim, context_dim)`.
        projection: $P$, shape `(summary, context_dim)`.
        summary_means: $a_k$, shape `(components, summary)`.
        summary_whiteners: inverses of the Cholesky factors of $U_k$, shape `(components, summary, summary)`.

    Examples:
        >>> mixture = fd.models.GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
        >>> slopes, one, zero = jnp.ones((1, 2, 1)), jnp.ones((1, 1)), jnp.zeros((1, 1))
        >>> reference = fd.models.ConditionalMixture(mixture, slopes, one, zero, one[None])
        >>> reference.given(jnp.ones(1)).log_prob(jnp.ones(2))
    """

    mixture: GaussianMixture
    slopes: Float[Array, "components dim context_dim"]
    projection: Float[Array, "summary context_dim"]
    summary_means: Float[Array, "components summary"]
    summary_whiteners: Float[Array, "components summary summary"]

    def given(self, context: Context) -> GaussianMixture:
        """The mixture given a whitened context, shape `(context_dim,)`."""
        context = context[: self.projection.shape[1]]
        summary = self.projection @ context
        white = jnp.einsum("kij,kj->ki", self.summary_whiteners, summary - self.summary_means, precision="highest")
        scales = jnp.log(jnp.diagonal(self.summary_whiteners, axis1=1, axis2=2))
        log_weights = jax.nn.log_softmax(self.mixture.log_weights + jnp.sum(scales - 0.5 * jnp.square(white), axis=1))
        centers = self.mixture.centers + jnp.einsum("kij,j->ki", self.slopes, context, precision="highest")
        return eqx.tree_at(lambda m: (m.log_weights, m.centers), self.mixture, (log_weights, centers))
