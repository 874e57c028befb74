r"""Gaussian kernels and the Langevin-Stein identity.

Here $F$ is the network's contribution to the velocity, divided by the velocity scale (`seen_field`), and $g$ learns its
divergence. Draw $y = c + h\eta$ with $\eta \sim N(0, I)$ around any center $c$. The score of this kernel is $-\eta/h$. With
$r = F(c) - F(y)$ and $T = -r\cdot\eta/h$, Stein's identity says for every smooth $F$ and every smooth scalar $f$ that

$$\mathbb{E}[T f(y) + r\cdot\nabla f(y)] = \mathbb{E}[f(y)\,\nabla\cdot F(y)] ,$$

so that $\mathbb{E}[g^2 - 2 g T - 2 r\cdot\nabla g] = \mathbb{E}[(g - \nabla\cdot F)^2] + \mathrm{const}$ for any $h > 0$ and any
distribution of centers. $F$ is evaluated but never differentiated. See "How it works" in the docs.

The constant $F(c)$ is a control variate. Any field that is fixed given the center may be subtracted from $F$ if its divergence is
added back. A better field is linear, $F(c) + (A_\phi + a I)(y - c)$:

$$r \to r + h (A_\phi + a I)\eta , \qquad T \to \operatorname{tr}(A_\phi + a I) - r\cdot\eta/h .$$

$A_\phi$ is the mean Jacobian at the angle $\phi$. The same identity gives it from evaluations of $F$ alone (`mean_jacobian`). The
number $a$ sets the trace to $g(c)$, the current estimate at the center. The remaining noise comes from the traceless part of the
*departure* of the Jacobian from its mean.

To remove this noise as well, a *frame* of draws replaces the single $\eta$ around each center: orthogonal standard-normal
vectors of the same length. Each of them is $N(0, I)$, so the identity holds for each. Over a whole frame of D vectors the
traceless part of $\eta^\top J\eta$ sums to zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Array, Context, Float, Key, Rows, Scalar, State, Times
from ..data.statistics import FULL_COVARIANCE_LIMIT
from ..models.flows import AbstractProbabilityFlow
from .gram_schmidt import gram_schmidt
from .stein import DivergenceHead, seen_field


class Kernel(NamedTuple):
    """A frame of draws from one Gaussian kernel.

    The draws share `time`, `center`, shape `(dim,)`, `width` and whitened `context`. `noise`, shape `(directions, dim)`, has a
    standard-normal vector for each draw.
    """

    time: Scalar
    center: State
    noise: Rows
    width: Scalar
    context: Context


def draw_frame(key: Key, directions: int, dim: int) -> Rows:
    """Draw orthogonal standard-normal vectors of the same length, shape `(directions, dim)`, with directions <= dim."""
    vectors = jr.normal(key, (dim, directions)).T
    # The basis is uniform. The common length of the vectors is drawn independently, like that of a standard-normal vector.
    return jnp.linalg.norm(vectors[0]) * gram_schmidt(vectors)


def frame_size(dim: int) -> int:
    """Number of draws around each center: a whole frame in up to eight dimensions, and a single draw above.

    In many dimensions, additional centers help more than additional draws around the same ones.
    """
    return dim if dim <= 8 else 1


def map_kernels(function: Callable[[Kernel], Any], kernels: Kernel) -> Any:
    """Apply `function` to each of many kernels, a few thousand draws at a time."""
    return jax.lax.map(function, kernels, batch_size=max(1, 4096 // kernels.noise.shape[1]))


class MeanJacobian(eqx.Module):
    """Mean Jacobian of the network's contribution to the velocity, divided by the velocity scale; piecewise linear in time.

    Args:
        nodes: increasing times, shape `(nodes,)`.
        matrices: symmetric matrices, shape `(nodes, dim, dim)`, or their diagonals, `(nodes, dim)`.
    """

    nodes: Times
    matrices: Float[Array, "nodes dim dim"] | Float[Array, "nodes dim"]

    def weights(self, time: Scalar) -> Times:
        """Weights of the nodes at `time`, shape `(nodes,)`: the hat functions of linear interpolation."""
        return jax.vmap(lambda values: jnp.interp(time, self.nodes, values))(jnp.eye(len(self.nodes)))

    def times(self, time: Scalar, vector: State) -> State:
        """Product with a vector at `time`, shape `(dim,)`."""
        products = self.matrices @ vector if self.matrices.ndim == 3 else self.matrices * vector[None]
        return self.weights(time) @ products

    def trace(self, time: Scalar) -> Scalar:
        """Trace at `time`."""
        diagonals = jnp.diagonal(self.matrices, axis1=1, axis2=2) if self.matrices.ndim == 3 else self.matrices
        return self.weights(time) @ jnp.sum(diagonals, axis=1)


@eqx.filter_jit
def mean_jacobian(model: AbstractProbabilityFlow, nodes: Times, kernels: Kernel) -> MeanJacobian:
    r"""Estimate $\mathbb{E}[\partial F/\partial y]$ as $\mathbb{E}[(F(y) - F(c))\,\eta^\top]/h$, without derivatives.

    Above 256 dimensions only its diagonal is estimated, because the whitening uses only the diagonal of the covariance there.

    Args:
        model: the model.
        nodes: increasing times, shape `(nodes,)`.
        kernels: draws with a leading axis. Each contributes to the nodes next to its time.
    """
    hats = MeanJacobian(nodes, jnp.zeros((len(nodes), 0)))

    def changes(kernel: Kernel) -> Rows:
        time, center, noise, width, context = kernel
        ends = jnp.concatenate([center[None], center[None] + width * noise])
        fields = jax.vmap(lambda y: seen_field(model, time, y, context)[0])(ends)
        return (fields[1:] - fields[:1]) / width

    slopes = map_kernels(changes, kernels)
    weights = jax.vmap(hats.weights)(kernels.time)
    # A node without neighboring draws has weight zero everywhere and keeps a zero matrix.
    totals = jnp.maximum(jnp.sum(weights, axis=0), jnp.finfo(weights.dtype).tiny)
    weights = weights / (totals * kernels.noise.shape[1])[None]
    if kernels.center.shape[1] > FULL_COVARIANCE_LIMIT:
        return MeanJacobian(nodes, jnp.einsum("nk,nfi,nfi->ki", weights, slopes, kernels.noise, optimize="optimal"))
    matrices = jnp.einsum("nk,nfi,nfj->kij", weights, slopes, kernels.noise, optimize="optimal")
    return MeanJacobian(nodes, 0.5 * (matrices + matrices.swapaxes(1, 2)))


class SteinTerms(NamedTuple):
    r"""Terms of the Langevin-Stein identity for one kernel draw.

    `value` is $g(y)$ and `target` is $T$ (both nats per unit of time), `displacement` is $r$, `slope` is
    $r\cdot\nabla g(y)$ and `point` is $y$.
    """

    value: Scalar
    target: Scalar
    displacement: State
    slope: Scalar
    point: State


def stein_terms(
    head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernel: Kernel
) -> SteinTerms:
    """Evaluate the terms of the Langevin-Stein identity for each draw of a frame, along the leading axis of the result."""
    time, center, noise, width, context = kernel
    at_center, seen_at_center = seen_field(model, time, center, context)
    rate = jax.lax.stop_gradient(head(time, center, seen_at_center))
    isotropic = (rate - control.trace(time)) / center.size

    def one(eta: State) -> SteinTerms:
        point = center + width * eta
        (field, seen), tangent = jax.linearize(lambda y: seen_field(model, time, y, context), point)
        displacement = at_center - field + width * (control.times(time, eta) + isotropic * eta)
        _, seen_tangent = tangent(displacement)
        value, slope = jax.jvp(lambda y, s: head(time, y, s), (point, seen), (displacement, seen_tangent))
        return SteinTerms(
            value=value,
            target=rate - jnp.dot(displacement, eta) / width,
            displacement=displacement,
            slope=slope,
            point=point,
        )

    return jax.vmap(one)(noise)
