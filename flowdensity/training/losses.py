"""What is minimised: the matching loss of a flow and the Langevin-Stein loss of a divergence head."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Array, ContextRows, Key, Rows, Scalar, Times
from ..divergence.kernel import Kernel, MeanJacobian, draw_frame, stein_terms
from ..divergence.stein import DivergenceHead
from ..models.flows import AbstractProbabilityFlow, Flow
from ..models.paths import AbstractPath

MINIMUM_WIDTH = 0.01
"""Least kernel width in whitened units: below it the differences of the velocity drown in float32."""


class Sample(NamedTuple):
    """A table on the device: whitened events, shape `(rows, dim)`, and contexts, shape `(rows, context_dim)`."""

    states: Rows
    contexts: ContextRows

    def draw(self, key: Key, count: int) -> "Sample":
        """`count` rows with replacement."""
        rows = jr.randint(key, (count,), 0, len(self.states))
        return Sample(self.states[rows], self.contexts[rows])


def stratified_times(key: Key, count: int) -> Times:
    """One uniform time in each of `count` equal parts of [0, 1]."""
    return (jnp.arange(count) + jr.uniform(key, (count,))) / count


class MatchingDraws(NamedTuple):
    """Fixed draws for a matching loss: rows with the angles and the noise they are mixed with."""

    sample: Sample
    angles: Times
    noise: Rows


@eqx.filter_jit
def draw_matching(key: Key, sample: Sample, path: AbstractPath, count: int) -> MatchingDraws:
    """Draw rows, angles and noise for `count` terms of the matching loss.

    Returns:
        `MatchingDraws` with a leading axis of `count`.
    """
    rows, times, noise = jr.split(key, 3)
    chosen = sample.draw(rows, count)
    return MatchingDraws(
        chosen,
        path.angle(stratified_times(times, count)),
        jr.normal(noise, chosen.states.shape),
    )


def matching_loss(model: Flow, draws: MatchingDraws) -> Scalar:
    r"""Mean of $|F(\phi, y) - (\cos\phi\,x_1 - \sin\phi\,e)|^2/D$ with $y = \sin\phi\,x_1 + \cos\phi\,e$.

    Least at the conditional mean of the target, the velocity of the probability flow (Lipman et al. 2023,
    arXiv 2210.02747), and 1 for $F = 0$ on whitened Gaussian data.
    """

    def one(angle: Scalar, data: Array, noise: Array, context: Array) -> Scalar:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        velocity = model.velocity(angle, sine * data + cosine * noise, context)
        return jnp.mean(jnp.square(velocity - (cosine * data - sine * noise)))

    terms = jax.vmap(one)(draws.angles, draws.sample.states, draws.noise, draws.sample.contexts)
    return jnp.mean(terms)


@eqx.filter_jit
def draw_kernels(
    key: Key,
    sample: Sample,
    path: AbstractPath,
    count: int,
    *,
    rho: float,
    tails: float,
    directions: int,
) -> Kernel:
    r"""Kernel draws along the path: centres $\sin\phi\,x_1 + \sqrt{1-\rho^2}\cos\phi\,e'$, widths $\max(\rho\cos\phi, 0.01)$.

    A fraction `tails` of the centres is inflated by a factor between 1 and 4, uniform in its logarithm, because a
    sampler visits where there are no data.

    Args:
        key: JAX PRNG key.
        sample: rows to draw $x_1$ from.
        path: where along the circle.
        count: number of kernels.
        rho: kernel width as a fraction of the noise on the path.
        tails: fraction of inflated centres.
        directions: draws about each centre.

    Returns:
        A `Kernel` with a leading axis of `count`.
    """
    rows, times, smear, noise, inflate, far = jr.split(key, 6)
    chosen = sample.draw(rows, count)
    angles = path.angle(stratified_times(times, count))
    cosine = jnp.cos(angles)
    centres = jnp.sin(angles)[:, None] * chosen.states + jnp.sqrt(1.0 - rho**2) * cosine[:, None] * jr.normal(
        smear, chosen.states.shape
    )
    stretch = jnp.exp(jr.uniform(inflate, (count,), maxval=jnp.log(4.0)))
    stretch = jnp.where(jr.bernoulli(far, tails, (count,)), stretch, 1.0)
    return Kernel(
        time=angles,
        centre=stretch[:, None] * centres,
        noise=jax.vmap(lambda k: draw_frame(k, directions, centres.shape[1]))(jr.split(noise, count)),
        width=jnp.maximum(rho * cosine, MINIMUM_WIDTH),
        context=chosen.contexts,
    )


def stein_loss(head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernels: Kernel) -> Scalar:
    r"""Mean Langevin-Stein loss of a divergence head over kernel draws.

    $\mathbb{E}[g^2 - 2gT - 2\,r\cdot\nabla g]$ with the control variate of `flowdensity.divergence.kernel`, in units of
    the head's scale; least at $g = \nabla\cdot F$ (Jagwani et al. 2026, arXiv 2605.16486).

    Args:
        head: the divergence head, which is trained.
        model: the frozen model.
        control: the mean Jacobian, a control variate.
        kernels: draws with a leading batch axis.

    Returns:
        Scalar, squared nats per squared unit of time over the squared scale, up to an additive constant.
    """
    terms = jax.vmap(lambda kernel: stein_terms(head, model, control, kernel))(kernels)
    losses = jnp.square(terms.value) - 2.0 * terms.value * terms.target - 2.0 * terms.slope
    return jnp.mean(losses) / jnp.square(jax.lax.stop_gradient(head.scale))
