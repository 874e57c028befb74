"""The matching loss of a flow or a diffusion."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Array, Key, Rows, Scalar, Times
from ..data.tables import Sample
from ..models.flows import AbstractCircle
from ..models.paths import stratified_times


class MatchingDraws(NamedTuple):
    """Fixed draws for a matching loss: rows with the angles and the noise they are mixed with."""

    sample: Sample
    angles: Times
    noise: Rows


@eqx.filter_jit
def draw_matching(key: Key, sample: Sample, model: AbstractCircle, count: int) -> MatchingDraws:
    """Draw rows, angles and noise for `count` terms of the matching loss.

    Returns:
        `MatchingDraws` with a leading axis of `count`.
    """
    rows, times, noise = jr.split(key, 3)
    chosen = sample.draw(rows, count)
    return MatchingDraws(
        chosen,
        model.angle(stratified_times(times, count)),
        jr.normal(noise, chosen.states.shape),
    )


def matching_loss(model: AbstractCircle, draws: MatchingDraws) -> Scalar:
    r"""Mean of $|F(\phi, y) - (\cos\phi\,x_1 - \sin\phi\,e)|^2/(u^2 D)$ with $y = \sin\phi\,x_1 + \cos\phi\,e$.

    $u$ is the model's unit of velocity. Least at the conditional mean of the target, the velocity of the probability flow
    (Lipman et al. 2023, arXiv 2210.02747); where $u = 1$, it is 1 for $F = 0$ on whitened Gaussian data.
    """

    def one(angle: Scalar, data: Array, noise: Array, context: Array) -> Scalar:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        velocity = model.velocity(angle, sine * data + cosine * noise, context)
        return jnp.mean(jnp.square((velocity - (cosine * data - sine * noise)) / model.unit(angle)))

    terms = jax.vmap(one)(draws.angles, draws.sample.states, draws.noise, draws.sample.contexts)
    return jnp.mean(terms)
