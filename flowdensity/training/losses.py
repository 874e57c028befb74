"""Losses over draws: those of flows and diffusions, near the data and far from them, and that of a log density."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Array, Context, ContextRows, Float, Key, Rows, Scalar, State, Times
from ..data.tables import Sample
from ..models.flows import AbstractGaussianFlow
from ..models.log_density import LogDensityNetwork
from ..models.paths import stratified_times

LIKELIHOOD_SHARE = 0.5
"""Default fraction of the angles that are drawn with the likelihood weighting."""
MAX_LIKELIHOOD_WEIGHT = 10.0
"""Largest likelihood weight of an angle, relative to the weight at 45 degrees."""
FAR_WEIGHT = 1e-3
"""Weight of the loss far from the data, beside the matching loss."""
TERMS_PER_FAR_TERM = 16
"""Number of terms of the matching loss for each term of the loss far from the data."""
MAX_FAR_RADIUS = 3.0
"""Largest radius of states far from the data, in units of the reach."""


class MatchingDraws(NamedTuple):
    """Fixed draws for a matching loss: rows, and the angles and the noise they are mixed with."""

    sample: Sample
    angles: Times
    noise: Rows


@eqx.filter_jit
def draw_matching(
    key: Key, sample: Sample, model: AbstractGaussianFlow, count: int, likely: float = LIKELIHOOD_SHARE
) -> MatchingDraws:
    r"""Draw rows, angles and noise for `count` terms of the matching loss.

    A fraction `likely` of the angles is drawn with the likelihood weighting (`likelihood_angles`). The others are drawn from the
    distribution of the model's path.

    Returns:
        `MatchingDraws` with a leading axis of `count`.
    """
    rows, times, weighed, noise = jr.split(key, 4)
    chosen = sample.draw(rows, count)
    first, last = model.times(1)
    several = round(likely * count)
    for_likelihood = jnp.clip(likelihood_angles(stratified_times(weighed, several)), first, last)
    angles = jnp.concatenate([for_likelihood, model.angle(stratified_times(times, count - several))])
    return MatchingDraws(chosen, angles, jr.normal(noise, chosen.states.shape))


def likelihood_angles(u: Times) -> Times:
    r"""Map uniform `u` in [0, 1] to angles with a density proportional to $\min(\tan\phi, 10)$.

    An error $\Delta F$ of the velocity is an error $\tan\phi\,\Delta F$ of the score. The probability flow belongs to the
    diffusion $dy = -y\,ds + \sqrt2\,dw$ with $d\phi = -\tan\phi\,ds$. The Kullback-Leibler divergence of the data from the
    samples of that diffusion is therefore at most $\int\tan\phi\;\mathbb{E}|\Delta F|^2\,d\phi$ (Song et al. 2021, "Maximum
    likelihood training of score-based diffusion models", arXiv 2101.09258). The weight is capped because $\tan\phi$ is unbounded.
    """
    cut = jnp.arctan(MAX_LIKELIHOOD_WEIGHT)
    until = -jnp.log(jnp.cos(cut))
    area = u * (until + MAX_LIKELIHOOD_WEIGHT * (0.5 * jnp.pi - cut))
    steep = cut + (area - until) / MAX_LIKELIHOOD_WEIGHT
    return jnp.where(area < until, jnp.arccos(jnp.exp(-jnp.minimum(area, until))), steep)


def matching_loss(model: AbstractGaussianFlow, draws: MatchingDraws) -> Scalar:
    """Mean of the terms of the matching loss."""
    return jnp.mean(matching_terms(model, draws))


def matching_terms(model: AbstractGaussianFlow, draws: MatchingDraws) -> Float[Array, " count"]:
    r"""Terms $|F(\phi, y) - (\cos\phi\,x_1 - \sin\phi\,e)|^2/(u^2 D)$ of the loss, with $y = \sin\phi\,x_1 + \cos\phi\,e$.

    $u$ is the model's velocity scale. The mean is minimized by the conditional mean of the target, which is the velocity of the
    probability flow (Lipman et al. 2023, arXiv 2210.02747). With $u = 1$, it is 1 for $F = 0$ on whitened Gaussian data.
    """

    def one(angle: Scalar, data: Array, noise: Array, context: Array) -> Scalar:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        velocity = model.velocity(angle, sine * data + cosine * noise, context)
        return jnp.mean(jnp.square((velocity - (cosine * data - sine * noise)) / model.velocity_scale(angle)))

    return jax.vmap(one)(draws.angles, draws.sample.states, draws.noise, draws.sample.contexts)


def far_loss(key: Key, model: AbstractGaussianFlow, sample: Sample, count: int) -> Scalar:
    r"""Mean square of the network's velocity, relative to the velocity scale, at states without data.

    The states are in random directions, at one to three times the reach. There the matching loss says nothing, and a network
    that learned sharp edges can have velocities of hundreds. A small weight of this loss keeps them near zero, so that the log
    density far from the data is close to that of the reference.
    """
    to, how_far, when, rows = jr.split(key, 4)
    directions = jr.normal(to, (count, model.dim))
    radii = model.reach * MAX_FAR_RADIUS ** jr.uniform(how_far, (count, 1))
    states = radii * directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    first, last = model.times(1)
    angles = first + (last - first) * jr.uniform(when, (count,))

    def one(angle: Scalar, state: State, context: Context) -> Scalar:
        velocity, _ = model.network_velocity(angle, state, context)
        return jnp.mean(jnp.square(velocity / model.velocity_scale(angle)))

    return jnp.mean(jax.vmap(one)(angles, states, sample.draw(rows, count).contexts))


class LogDensityLabels(NamedTuple):
    """Log densities and their gradients, or their differences from those of a network's reference.

    Attributes:
        states: whitened states, shape `(rows, dim)`.
        contexts: whitened contexts, shape `(rows, context_dim)`.
        values: log densities in nats, shape `(rows,)`.
        slopes: gradients of the values with respect to state and context, shape `(rows, dim + context_dim)`.
    """

    states: Rows
    contexts: ContextRows
    values: Float[Array, " rows"]
    slopes: Float[Array, "rows inputs"]


def log_density_loss(network: LogDensityNetwork, labels: LogDensityLabels, slope: Scalar) -> Scalar:
    r"""Mean squared errors of log densities and of their gradients, each relative to its typical size.

    The weight of a term is $1/(1 + (d/2s)^2)$ for a departure $d$, where $s$ is the typical departure. Far out, where departures
    are large and a sampler does not stay, an error therefore counts in proportion to the departure.

    Args:
        network: the network, whose `scale` is $s$.
        labels: training labels, with the reference subtracted.
        slope: typical size of one component of a gradient.
    """
    departures, slopes = _with_slopes(network.departure, labels.states, labels.contexts)
    scale = jax.lax.stop_gradient(network.scale)
    weights = 1.0 / (1.0 + jnp.square(labels.values / (2.0 * scale)))
    value = jnp.square((departures - labels.values) / scale)
    gradient = jnp.mean(jnp.square((slopes - labels.slopes) / slope), axis=1)
    return jnp.mean(weights * (value + gradient))


@eqx.filter_jit
def less_reference(network: LogDensityNetwork, labels: LogDensityLabels) -> LogDensityLabels:
    """Subtract the log densities of a network's reference, and their gradients, from the labels."""
    values, slopes = _with_slopes(network.reference_log_prob, labels.states, labels.contexts)
    return labels._replace(values=labels.values - values, slopes=labels.slopes - slopes)


@eqx.filter_jit
def errors_at(
    network: LogDensityNetwork, labels: LogDensityLabels
) -> tuple[Float[Array, " rows"], Float[Array, "rows inputs"]]:
    """Differences between the log densities of a network and the labels, and between their gradients."""
    values, slopes = _with_slopes(network, labels.states, labels.contexts)
    return values - labels.values, slopes - labels.slopes


def _with_slopes(
    function: Callable[[State, Context], Scalar], states: Rows, contexts: ContextRows
) -> tuple[Float[Array, " rows"], Float[Array, "rows inputs"]]:
    """Values of a function of state and context, and their gradients with respect to both."""
    values, slopes = jax.vmap(jax.value_and_grad(function, argnums=(0, 1)))(states, contexts)
    return values, jnp.concatenate(slopes, axis=1)
