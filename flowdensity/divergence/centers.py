r"""Kernel centers: points of a Gaussian probability path, or points on a model's own trajectories.

The Langevin-Stein identity holds for any centers. They only determine where an imperfect head makes its errors. They are
therefore placed where `log_prob` will be evaluated: around the trajectories of the data and of the model's own samples, and
farther out.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Array, ContextRows, Float, Key, ScalarLike, Times
from ..data.tables import Sample
from ..models.flows import AbstractGaussianFlow
from ..models.paths import stratified_times
from .kernel import Kernel, draw_frame

MIN_KERNEL_WIDTH = 0.01
"""Smallest kernel width in whitened units. For smaller widths, float32 rounding dominates differences of the velocity."""
MAX_INFLATION = 10.0
"""Largest factor by which a center is moved outwards, since log densities level off beyond the reach of the data."""


class AbstractCenters(eqx.Module):
    """Distribution of kernel centers and widths."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension of the whitened state."""

    @abstractmethod
    def draw(self, key: Key, count: int, *, rho: ScalarLike, tails: ScalarLike, directions: int) -> Kernel:
        """Draw kernels, with a leading axis of `count`.

        Args:
            key: JAX PRNG key.
            count: number of kernels.
            rho: kernel width, as a fraction of the noise on a path or of the spread of trajectories.
            tails: fraction of centers that are moved outwards, because a sampler also visits regions without data. The factor is
                between 1 and 10, uniform in its logarithm. The same fraction of centers have the context of another center.
            directions: number of draws around each center.
        """


class PathCenters(AbstractCenters):
    r"""Centers $\sin\phi\,x_1 + \sqrt{1-\rho^2}\cos\phi\,e'$ with kernels of width $\max(\rho\cos\phi, 0.01)$.

    Draws around them have the distribution of the path from noise to the sample. $\rho = 1$ gives the plain denoising form.

    Args:
        sample: sample from which $x_1$ is drawn.
        model: model whose distribution of angles is used.
    """

    sample: Sample
    model: AbstractGaussianFlow

    @property
    def dim(self) -> int:
        return self.model.dim

    @eqx.filter_jit
    def draw(self, key: Key, count: int, *, rho: ScalarLike, tails: ScalarLike, directions: int) -> Kernel:
        rows, times, smear, noise, far, swap = jr.split(key, 6)
        chosen = self.sample.draw(rows, count)
        angles = self.model.angle(stratified_times(times, count))
        sine, cosine = jnp.sin(angles), jnp.cos(angles)
        smeared = jnp.sqrt(1.0 - rho**2) * cosine[:, None] * jr.normal(smear, chosen.states.shape)
        return Kernel(
            time=angles,
            center=inflation(far, count, tails) * (sine[:, None] * chosen.states + smeared),
            noise=_frames(noise, count, directions, self.dim),
            width=jnp.maximum(rho * cosine, MIN_KERNEL_WIDTH),
            context=mismatched(swap, chosen.contexts, tails),
        )


class TrajectoryCenters(AbstractCenters):
    """Centers on a model's own trajectories, with kernels whose width is a fraction of a given width at each time.

    Args:
        times: times of the nodes, shape `(nodes,)`.
        states: whitened states at these times, shape `(rows, nodes, dim)`.
        contexts: whitened contexts, shape `(rows, context_dim)`.
        widths: widths at the nodes, shape `(nodes,)`; by default the spread of the trajectories.
    """

    times: Times
    states: Float[Array, "rows nodes dim"]
    contexts: ContextRows
    middle: Float[Array, "nodes dim"]
    widths: Float[Array, " nodes"]

    def __init__(
        self,
        times: Times,
        states: Float[Array, "rows nodes dim"],
        contexts: ContextRows,
        widths: Float[Array, " nodes"] | None = None,
    ):
        self.times, self.states, self.contexts = times, states, contexts
        self.middle = jnp.mean(states, axis=0)
        self.widths = (
            jnp.sqrt(jnp.mean(jnp.square(states - self.middle[None]), axis=(0, 2))) if widths is None else widths
        )

    @property
    def dim(self) -> int:
        return self.states.shape[2]

    @eqx.filter_jit
    def draw(self, key: Key, count: int, *, rho: ScalarLike, tails: ScalarLike, directions: int) -> Kernel:
        rows, times, noise, far, swap = jr.split(key, 5)
        row = jr.randint(rows, (count,), 0, len(self.states))
        position = stratified_times(times, count) * (len(self.times) - 1)
        node = jnp.minimum(jnp.floor(position).astype(int), len(self.times) - 2)
        share = position - node

        def between(first: Array, second: Array) -> Array:
            weight = share.reshape(-1, *[1] * (first.ndim - 1))
            return (1.0 - weight) * first + weight * second

        middle = between(self.middle[node], self.middle[node + 1])
        point = between(self.states[row, node], self.states[row, node + 1])
        return Kernel(
            time=between(self.times[node], self.times[node + 1]),
            center=middle + inflation(far, count, tails) * (point - middle),
            noise=_frames(noise, count, directions, self.dim),
            width=jnp.maximum(rho * between(self.widths[node], self.widths[node + 1]), MIN_KERNEL_WIDTH),
            context=mismatched(swap, self.contexts[row], tails),
        )


class HalvedCenters(AbstractCenters):
    """Half of the centers from one distribution and half from another. For an odd count, the second provides one more."""

    first: AbstractCenters
    second: AbstractCenters

    @property
    def dim(self) -> int:
        return self.first.dim

    @eqx.filter_jit
    def draw(self, key: Key, count: int, *, rho: ScalarLike, tails: ScalarLike, directions: int) -> Kernel:
        sizes = (count // 2, count - count // 2)
        drawn = [
            law.draw(k, size, rho=rho, tails=tails, directions=directions)
            for law, k, size in zip((self.first, self.second), jr.split(key), sizes, strict=True)
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *drawn)


def inflation(key: Key, count: int, tails: ScalarLike) -> Float[Array, "count 1"]:
    """Inflation factors: a fraction `tails` is between 1 and 10, uniform in the logarithm, and the others are 1."""
    which, how_far = jr.split(key)
    factor = jnp.exp(jr.uniform(how_far, (count, 1), maxval=jnp.log(MAX_INFLATION)))
    return jnp.where(jr.bernoulli(which, tails, (count, 1)), factor, 1.0)


def mismatched(key: Key, contexts: ContextRows, fraction: ScalarLike) -> ContextRows:
    """Exchange a fraction of the contexts for those of other rows, half of which are also moved outwards.

    A likelihood is evaluated for one observation and arbitrary parameters, nearly all of which would not have produced it.
    """
    if contexts.shape[1] == 0:
        return contexts
    which, order, far = jr.split(key, 3)
    others = inflation(far, len(contexts), 0.5) * jr.permutation(order, contexts)
    return jnp.where(jr.bernoulli(which, fraction, (len(contexts), 1)), others, contexts)


def _frames(key: Key, count: int, directions: int, dim: int) -> Float[Array, "count directions dim"]:
    return jax.vmap(lambda k: draw_frame(k, directions, dim))(jr.split(key, count))
